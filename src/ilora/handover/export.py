"""`ilora export`: a folder that others can use without ilora, complete or not there at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ilora.errors import IloraError, InputError
from ilora.files import flush_folder, flush_tree, refuse_own
from ilora.handover.asking import Asking, asking
from ilora.handover.card import Wishes, card
from ilora.handover.gguf import write_gguf
from ilora.handover.merged import write_merged
from ilora.handover.peft_folder import write_peft
from ilora.handover.source import Source

KINDS: dict[str, Callable[[Source, Path], None]] = {"peft": write_peft, "merged": write_merged, "gguf": write_gguf}
SCHEMA = 1


def export_source(source: Source, to: Path, *, kind: str, wishes: Wishes) -> Path:
    """Write the adapter as one of KINDS, with its card, into the new folder `to`; returns its full name.

    ilora.json holds for programs what the card says to people. Raises InputError, with nothing written, where the
    folder is not empty or the adapter has no such form; IloraError where it cannot be written.
    """
    if kind not in KINDS:
        raise InputError(f"--as {kind}: allowed are {', '.join(KINDS)}")
    to = to.expanduser().absolute()
    refuse_own(to, "--to")
    if to.exists() and not (to.is_dir() and not any(to.iterdir())):
        raise InputError(f"{to}: exists already and is not empty; give another folder to --to, or move it away")
    asked = asking(source)
    scratch = to.with_name(f".{to.name}-writing")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        KINDS[kind](source, scratch)
        if kind != "gguf":
            asked.generation().save_pretrained(scratch)
        (scratch / "README.md").write_text(card(source, asked, kind=kind, wishes=wishes), encoding="utf-8")
        facts = json.dumps(_facts(source, asked, kind), ensure_ascii=False, indent=1, allow_nan=False)
        (scratch / "ilora.json").write_text(facts + "\n", encoding="utf-8")
        flush_tree(scratch)
        scratch.rename(to)
        flush_folder(to.parent)
    except (OSError, SafetensorError) as error:
        raise IloraError(f"{to}: cannot write: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return to


def _facts(source: Source, asked: Asking, kind: str) -> dict[str, Any]:
    base = source.base
    return {
        "schema": SCHEMA,
        "kind": kind,
        "ilora": version("ilora"),
        "base_model": {
            "hub_id": base.name if source.base_on_hub else None,
            "revision": base.revision,
            "name": base.name,
            "weights_sha256": base.weights_sha256,
            "dtype": source.config.model.dtype,
            "copy": source.copy_of_base,
            "tokenizer_sha256": asked.tokenizer_sha256,
        },
        "prompt": {
            "template": asked.template,
            "other_templates": asked.others,
            "separator": asked.separator if asked.template == "none" else None,
            "end": asked.end_text,
            "max_length": source.config.data.max_length,
        },
        "generation": asked.generation().to_diff_dict(),
        "method": str(source.results.get("method")),
        "variant": source.variant,
        "stage": source.stage,
        "tasks": [
            {
                "name": task.task["name"],
                "metric": task.task.get("metric"),
                "base": task.before,
                "learnt": task.learnt,
                "score": task.score,
                "standard_error": task.error,
                "forgotten": task.forgotten,
                "rows": task.rows,
                "max_new_tokens": task.task.get("max_new_tokens"),
                "train_sha256": task.task.get("train_sha256"),
            }
            for task in source.tasks
        ],
    }

"""`ilora general`: what lm-evaluation-harness says of a run's base model and of its final adapter, in RUN/general.json.

The harness is optional (`pip install 'ilora[harness]'`), and most of its tasks take their data from the hub.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ilora.config import load_config
from ilora.errors import IloraError, InputError
from ilora.files import write_atomic
from ilora.model.dtype import with_dtype
from ilora.model.load import resolve
from ilora.report.html import write_report
from ilora.results.reader import read_results, refuse_no_results

SCHEMA = 1


def general(run: Path, tasks: Sequence[str], *, limit: int | None = None, batch_size: int = 8) -> dict[str, Any]:
    """Score base model and adapter on the harness's tasks; write general.json and the report anew.

    limit: rows a task, at most. Returns the content of general.json. Errors: InputError where the harness is not
    installed, for a folder that is no finished run, and for a method without a single adapter that answers.
    """
    adapter, base = _adapter(run), _base(run)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    evaluate = _simple_evaluate()

    def scores(**more: str) -> dict[str, Any]:
        try:
            found = evaluate(
                model="hf", model_args=base | more, tasks=list(tasks), limit=limit, batch_size=batch_size,
                device=str(device),  # its own default is a GPU, whether there is one or not
                log_samples=False,
            )  # fmt: skip
        except Exception as error:  # the harness raises its own, its data sets' and plain ones
            raise IloraError(f"lm_eval: {type(error).__name__}: {error}") from error
        return dict(found["results"])

    content = {
        "schema": SCHEMA,
        "base_model": base["pretrained"],
        "adapter": str(adapter.relative_to(run)),
        "limit": limit,
        "scores": compared(scores(), scores(peft=str(adapter.absolute()))),
    }
    write_atomic(run / "general.json", json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    write_report(run.absolute().parent.parent if run.absolute().parent.name == "contrast" else run)
    return content


def compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry for every task and metric: before, after, and the standard error of each, None where there is none."""
    rows = []
    for task, measured in before.items():
        for name in measured:  # `acc,none`: a metric and the filter of the answers; `acc_stderr,none` beside it
            metric, comma, rule = name.partition(",")
            if not comma or metric.endswith("_stderr") or _number(measured[name]) is None:
                continue
            error = f"{metric}_stderr,{rule}"
            rows.append(
                {
                    "task": task,
                    "metric": metric if rule == "none" else name,
                    "before": _number(measured[name]),
                    "after": _number(after.get(task, {}).get(name)),
                    "before_stderr": _number(measured.get(error)),
                    "after_stderr": _number(after.get(task, {}).get(error)),
                }
            )
    return rows


def lines(content: Mapping[str, Any]) -> list[str]:
    """The scores for the terminal."""
    return [
        f"{row['task']} {row['metric']}: {_figure(row['before'], row['before_stderr'])} before, "
        f"{_figure(row['after'], row['after_stderr'])} after"
        for row in content["scores"]
    ]


def _figure(value: float | None, error: float | None) -> str:
    shown = "–" if value is None else f"{value:.4f}"
    return shown if error is None else f"{shown} ± {error:.4f}"


def _number(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def _adapter(run: Path) -> Path:
    """The folder of the adapter that answers after the last task."""
    refuse_no_results(run)
    results = read_results(run)
    if not results.get("complete"):
        raise InputError(f"{run}: not finished; `ilora resume {run}` first")
    folder = results.get("adapter")
    if not folder:
        raise InputError(f"{run}: the method {results.get('method')} leaves no single adapter that answers")
    if not (run / str(folder) / "adapter_config.json").is_file():
        raise InputError(f"{run / str(folder)}: no adapter there")
    return run / str(folder)


_QUANTIZED = {"8bit": "load_in_8bit", "4bit": "load_in_4bit"}  # as the harness hands them to transformers


def _base(run: Path) -> dict[str, Any]:
    """What the harness loads the base model by: as the run did."""
    settings = load_config(run / "config.yaml").model
    given: dict[str, Any] = {"pretrained": resolve(settings.name), "dtype": with_dtype(settings).dtype}
    given |= {"revision": settings.revision} if settings.revision else {}
    given |= {_QUANTIZED[settings.quantization]: True} if settings.quantization != "none" else {}
    return given | ({"trust_remote_code": True} if settings.trust_remote_code else {})


def _simple_evaluate() -> Any:
    try:
        from lm_eval import simple_evaluate
    except ImportError as error:
        raise InputError(f"ilora general needs lm-evaluation-harness: pip install 'ilora[harness]' ({error})") from None
    return simple_evaluate

"""RUN/gate/<phase>/repaired: an adapter that passed in the place of a phase's own, and all that was measured of it.

adapter_model.safetensors, ...   a PEFT folder of the form that the phase's own has
predictions/                     <task>.jsonl, perplexity.json and probes.json, as of a phase
repair.json                      what it is, how it was made, of which adapter, by which rules it passed
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ilora.errors import InputError
from ilora.files import flush_folder, flush_tree, write_flushed
from ilora.gates.evidence import PROBES, Ability, digest
from ilora.gates.judge import Judge
from ilora.gates.rules import Rules, are_of_run, read_rules
from ilora.releases.adoption import FILE, NAME, REPAIRED
from ilora.results.reader import phase_labels, read_results, read_text

WEIGHTS = "adapter_model.safetensors"
Records = Mapping[str, Sequence[Mapping[str, Any]]]
"""By task the answers to the gate's rows."""


def place_of(run: Path, phase: str) -> Path:
    """Where the repaired adapter of a phase lies."""
    return run / "gate" / phase / REPAIRED


def write_repaired(
    judge: Judge, scratch: Path, told: Mapping[str, Any], records: Records, ability: Ability, *, source: str
) -> Path:
    """Complete a scratch folder beside its place that has the PEFT folder's files, and put it there.

    told: what the adapter is. source: where the rules come from.
    """
    evidence = judge.evidence
    (scratch / "predictions").mkdir()
    for label, found in records.items():
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in found)
        write_flushed(scratch / "predictions" / f"{label}.jsonl", text.encode())
    measured = {} if ability.probes is None else {PROBES: ability.probes.model_dump()}
    if ability.perplexity is not None and (known := evidence.results.get("perplexity")):
        measured["perplexity.json"] = {"perplexity": ability.perplexity, "tokens": known["tokens"]}
    for name, content in measured.items():
        _write_json(scratch / "predictions" / name, {NAME: content})
    own = evidence.run / "adapters" / evidence.phase / evidence.answering / WEIGHTS
    rules = {"rules": judge.rules.model_dump(mode="json"), "rules_from": source}
    digests = {"adapter_sha256": digest(own), "weights_sha256": digest(scratch / WEIGHTS)}
    _write_json(scratch / FILE, {**told, "phase": evidence.phase, **digests, **rules})
    flush_tree(scratch)
    folder = place_of(evidence.run, evidence.phase)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
    flush_folder(folder.parent)
    return folder


def drop_repaired(run: Path, phase: str) -> None:
    """Delete what an earlier repair found, as by other rules."""
    folder = place_of(run, phase)
    if folder.is_dir():
        shutil.rmtree(folder)
        flush_folder(folder.parent)


def _write_json(path: Path, content: Any) -> None:
    write_flushed(path, (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())


def find_repaired(run: Path) -> tuple[Path, Rules, str]:
    """The repaired adapter of a run's last phase, the rules by which it passed, and where they come from.

    Where it is the phase's own already, since `promote --repaired` was stopped after that: the phase's own folder.
    Raises InputError where there is none, one of an adapter that is not the phase's own any more, one whose weights
    changed, or one that passed by rules that the run has changed since.
    """
    results = read_results(run)
    label = phase_labels(results)[-1]
    own, folder = run / "adapters" / label / str(results["answers_with"]), place_of(run, label)
    again, taken = f"`ilora gate {run} --repair` looks for one", not (folder / FILE).is_file()
    if taken:
        folder = own
    if not (folder / FILE).is_file():
        raise InputError(f"{run}: no repaired adapter of phase {label}; {again}")
    try:
        told = json.loads(read_text(folder / FILE))
        rules = Rules.model_validate(told["rules"])
        phase, of, source = told["phase"], told["adapter_sha256"], str(told["rules_from"])
        weights = told["weights_sha256"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise InputError(f"{folder / FILE}: damaged ({error}); {again}") from None
    if phase != label or (not taken and of != digest(own / WEIGHTS)):
        raise InputError(f"{folder}: the adapter of phase {label} is another one than was repaired; {again}")
    if weights != digest(folder / WEIGHTS):
        raise InputError(f"{folder / WEIGHTS}: changed since the adapter passed; {again}")
    if are_of_run(run, source) and read_rules(run)[0] != rules:
        raise InputError(f"{folder}: it passed by other rules than {run} has now; {again}")
    return folder, rules, source

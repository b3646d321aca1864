"""Taking the rows of one task out of the files of a run. Each function may be repeated, and writes whole files."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ilora.comparison.folders import asked_digest
from ilora.config import load_config, read_yaml
from ilora.data.task import task_label
from ilora.errors import InputError
from ilora.files import write_atomic
from ilora.methods import method_class
from ilora.releases.journal import Deletion
from ilora.replay.memory import ReplayMemory
from ilora.results.reader import read_text
from ilora.results.scores import compressed, read_predictions, read_records
from ilora.stream import BEFORE
from ilora.training.checkpoint import Checkpoint, split_tensors
from ilora.training.state import Progress

GATE = "gate.json"
_KEPT = ("id", "score", "routed_right", "adapter")  # of a prediction: no text


def parts(run: Path) -> list[Path]:
    """All folders of a run that have a configuration: the run, its contrast runs, releases, what was set aside."""
    whole = [run, *(run / "releases").glob("[0-9]*"), *(run / "releases" / "withdrawn").glob("[0-9]*")]
    found = [folder for one in whole for folder in (one, *(one / "contrast").glob("*"))]
    return [folder for folder in found if (folder / "config.yaml").is_file()]


def sections(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The tasks of a configuration as it stands in a file."""
    listed = (config.get("data") or {}).get("tasks") or []
    return [{"name": task} if isinstance(task, str) else task for task in listed]


def configuration(config: dict[str, Any], deletion: Deletion) -> dict[str, Any]:
    """A configuration with nothing of the task but its name and the settings that hold from it on."""

    def section(task: dict[str, Any]) -> dict[str, Any]:
        if task["name"] != deletion.task or task.get("forgotten"):
            return task
        kept = {
            "name": task["name"],
            "settings": task.get("settings") or {},
            "replaces": task.get("replaces"),
            "template": task.get("template"),
        }
        return kept | {"forgotten": deletion.day}

    data = config["data"] | {"tasks": [section(task) for task in sections(config)]}
    return config | {"data": data | ({"start_rows": None} if deletion.task == BEFORE else {})}


def concerned(config: dict[str, Any], task: str) -> bool:
    """Whether a configuration has the task, or rows of before the first one."""
    names = [section["name"] for section in sections(config)]
    return task in names or (task == BEFORE and bool((config.get("data") or {}).get("start_rows")))


def entry(folder: Path, deletion: Deletion) -> dict[str, Any]:
    """What results.json (of a release: scores.json) says of the task from now on: counts, digests, how it is scored."""
    found: dict[str, Any] = {"name": deletion.task, "label": task_label(deletion.task)}
    for file in result_files(folder):
        for task in json.loads(read_text(file))["tasks"]:
            if task["name"] == deletion.task:
                found |= task
    return found if found.get("forgotten") else found | {"source": "", "read_as": "", "forgotten": deletion.day}


def result_files(folder: Path) -> Iterator[Path]:
    """The files of results in a part of a run."""
    yield from (file for name in ("results.json", "scores.json") if (file := folder / name).is_file())


def redact_texts(folder: Path, deletion: Deletion) -> None:
    """Rewrite the configuration and the results of a part of a run, whose scores stay."""
    told = entry(folder, deletion)
    for file in result_files(folder):
        results = json.loads(read_text(file))
        tasks = [told if task["name"] == deletion.task else task for task in results["tasks"]]
        write_atomic(file, json.dumps(results | {"tasks": tasks}, ensure_ascii=False, indent=1) + "\n")
    made = configuration(read_yaml(folder / "config.yaml"), deletion)
    write_atomic(folder / "config.yaml", yaml.safe_dump(made, sort_keys=False, allow_unicode=True))


def predictions(file: Path) -> dict[Path, bytes]:
    """A prediction file without any text: the scores of single rows, and a digest of what was asked.

    By path, as it lies there: as it was written, compressed, or, after a kill, both.
    """
    records = read_records(file)
    asked, lines = asked_digest(records), []
    for record in records:
        kept = {key: record[key] for key in _KEPT if key in record}
        kept["parsed"] = None if record.get("parsed") is None else ""
        lines.append(json.dumps(kept | {"asked_sha256": asked}, ensure_ascii=False) + "\n")
    text = "".join(lines).encode()
    made = {file: text, compressed(file): gzip.compress(text, mtime=0)}
    return {path: content for path, content in made.items() if path.is_file()}


def gate_with(run: Path, made: Mapping[Path, bytes]) -> str | None:
    """What gate.json is to hold so that its decision stands when these files have new content; None: there is none.

    The scores that it judged do not change. To be written before the files are. Raises InputError for a damaged one.
    """
    if not (run / GATE).is_file():
        return None
    try:
        content = json.loads(read_text(run / GATE))
        for file in {path.with_name(path.name.removesuffix(".gz")) for path in made}:
            name, then = file.relative_to(run).as_posix(), read_predictions(file).encode()
            if content["files"].get(name) == hashlib.sha256(then).hexdigest():
                now = made[file] if file in made else gzip.decompress(made[compressed(file)])
                content["files"][name] = hashlib.sha256(now).hexdigest()
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{run / GATE}: damaged ({error}); move it away") from None
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def usable(found: Checkpoint, deletion: Deletion) -> bool:
    """Whether a checkpoint can still be gone on from: the task has no training left to do."""
    config = found.values["config"]
    names = [task["name"] for task in sections(config)]
    if deletion.task not in names:
        return True  # rows of before the first task
    phase = 1 if config["stream"] == "joint" else names.index(deletion.task) + 1
    return Progress(**found.values["position"]).finished >= phase


def checkpoint(found: Checkpoint, deletion: Deletion, told: dict[str, Any]) -> Checkpoint | None:
    """A checkpoint without the task's rows in memory and method; None where they are out already.

    told: what results.json says of the task.
    """
    values, tensors, task = dict(found.values), dict(found.tensors), deletion.task
    gone = values.get("forgotten", {})
    if task in gone:
        return None
    config = load_config(values["config"])
    now = config.at(values["position"]["phase"])
    memory = ReplayMemory(now.method.memory_capacity, seed=config.seed)
    memory.load_state_dict(values["memory"] | tensors["memory"])
    shown = (values.get("start") or {}).get("rows", 0) if task == BEFORE else told.get("train", 0)
    memory.forget(task, shown=shown)
    values["memory"], tensors["memory"] = split_tensors(memory.state_dict())
    state = method_class(config.method.name).without_task(values["method"] | tensors["method"], task)
    values["method"], tensors["method"] = split_tensors(state)
    names = [section["name"] for section in sections(values["config"])]
    known = zip(names, values["fingerprints"], strict=True)
    values["fingerprints"] = [None if name == task else digest for name, digest in known]
    values["config"] = configuration(values["config"], deletion)
    values["forgotten"] = gone | {task: told}
    return Checkpoint(values, tensors)


def refuse_unknown_state(config: dict[str, Any], file: Path) -> None:
    """Raises InputError for a method of one's own that does not say what of its state is a task's rows."""
    for method in [config.get("method"), *(config.get("contrast") or [])]:
        name = str(method["name"] if isinstance(method, dict) else method)
        if ":" not in name:
            continue
        order = method_class(name).__mro__
        states, without = (
            next(place for place, kind in enumerate(order) if hook in vars(kind))
            for hook in ("state_dict", "without_task")
        )
        if states < without:
            raise InputError(
                f"{file}: method {name}: it has a `state_dict` of its own, which may hold rows; define `without_task` "
                "beside it, which leaves out what is of a task"
            )

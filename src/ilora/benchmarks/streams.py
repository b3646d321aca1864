"""The usual long streams over a folder that the user has: 15 classification tasks, and 15 of SuperNI.

`long15` has orders 4, 5 and 6 of O-LoRA (Wang et al. 2023, arXiv 2310.14152), `superni15` order 1 of SAPT (Zhao et al.
2024, arXiv 2401.08295). A task's folder may lie up to three levels below the given one and hold

    {train,dev,test}.json   lists of {"sentence", "label"}, with labels.json beside them     O-LoRA
    {train,dev,test}.json   {"Definition": [...], "Instances": [{"input", "output"}, ...]}   SAPT, SuperNI
    {train,eval,test}.json  lists of {"prompt", "answer"}                                    TRACE

Prompts are those of the two codebases, version 1. A task without dev file is evaluated on its test file alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ilora.benchmarks.base import BENCHMARKS, Stream
from ilora.benchmarks.sources import files_by_split, normal, own_files, refuse_columns
from ilora.data import tables
from ilora.data.forms import RowReader
from ilora.data.rows import collect, filled
from ilora.data.tables import Problem
from ilora.data.task import SPLITS, Row, Task
from ilora.errors import InputError
from ilora.metrics.metrics import infer_task
from ilora.registry import did_you_mean
from ilora.settings import TaskConfig

_DEPTH = 3
_NLI = 'What is the logical relationship between the "sentence 1" and the "sentence 2"? Choose one from the option.\n'
_SENTIMENT = "What is the sentiment of the following paragraph? Choose one from the option.\n"
_TOPIC = "What is the topic of the following paragraph? Choose one from the option.\n"
_QQP = 'Whether the "first sentence" and the "second sentence" have the same meaning? Choose one from the option.\n'
_BOOLQA = "According to the following passage, is the question true or false? Choose one from the option.\n"
_MULTIRC = (
    "According to the following passage and question, is the candidate answer true or false? "
    "Choose one from the option.\n"
)
_WIC = (
    "Given a word and two sentences, whether the word is used with the same sense in both sentence? "
    "Choose one from the option.\n"
)
INSTRUCTIONS = {
    "MNLI": _NLI, "CB": _NLI, "WiC": _WIC, "COPA": "", "QQP": _QQP, "BoolQA": _BOOLQA, "RTE": _NLI, "IMDB": _SENTIMENT,
    "yelp": _SENTIMENT, "amazon": _SENTIMENT, "SST-2": _SENTIMENT, "dbpedia": _TOPIC, "agnews": _TOPIC,
    "MultiRC": _MULTIRC, "yahoo": _TOPIC,
}  # fmt: skip
ORDERS = {
    4: tuple(INSTRUCTIONS),
    5: tuple("MultiRC BoolQA WiC MNLI CB COPA QQP RTE IMDB SST-2 dbpedia agnews yelp amazon yahoo".split()),
    6: tuple("yelp amazon MNLI CB COPA QQP RTE IMDB SST-2 dbpedia agnews yahoo MultiRC BoolQA WiC".split()),
}
OTHER_NAMES = {"BoolQA": ("BoolQ",), "agnews": ("ag", "ag_news")}
SUPERNI = (
    "task1572_samsum_summary", "task363_sst2_polarity_classification", "task1290_xsum_summarization",
    "task181_outcome_extraction", "task002_quoref_answer_generation", "task1510_evalution_relation_extraction",
    "task639_multi_woz_user_utterance_generation", "task1729_personachat_generate_next",
    "task073_commonsenseqa_answer_generation", "task1590_diplomacy_text_generation",
    "task748_glucose_reverse_cause_event_detection", "task511_reddit_tifu_long_text_summarization",
    "task591_sciq_answer_generation", "task1687_sentiment140_classification", "task875_emotion_classification",
)  # fmt: skip


def classification(chosen: TaskConfig, folder: Path | None, resplit: bool) -> Task:
    """One of the 15 tasks: accuracy over its labels."""
    name = chosen.name
    place = _place(chosen, folder, resplit, OTHER_NAMES.get(name, ()))
    labels = _labels(place)
    rows = _read(chosen, place, partial(_classified, instruction=INSTRUCTIONS[name], labels=labels))
    metric, choices = ("accuracy", labels) if labels else infer_task([item.answer for item in rows["train"]])
    return Task(name, rows, metric=metric, choices=choices, max_new_tokens=16, source=str(place))


def superni(chosen: TaskConfig, folder: Path | None, resplit: bool) -> Task:
    """A SuperNI task, judged by ROUGE-L like all of them in SAPT."""
    place = _place(chosen, folder, resplit, (chosen.name.partition("_")[0],))
    rows = _read(chosen, place, RowReader())
    return Task(chosen.name, rows, metric="rouge_l", source=str(place))


def _place(chosen: TaskConfig, folder: Path | None, resplit: bool, others: tuple[str, ...]) -> Path:
    """The task's folder: its own, that of its files, or one below the benchmark's folder."""
    name = chosen.name
    refuse_columns(chosen)
    if resplit:
        raise InputError("data.resplit: this benchmark has its own splits; only trace8 can be divided anew")
    if chosen.path is not None or chosen.train is not None:
        return chosen.path or (chosen.train or Path()).parent
    if folder is None or chosen.dataset is not None:
        raise InputError(f"task '{name}': give the folder of the benchmark with `data.path`")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected one that holds task folders")
    places: dict[str, Path] = {}
    for path in _below(folder, _DEPTH):
        if (path / "train.json").is_file():
            places.setdefault(normal(path.name), path)
    for one in (name, *others):
        if normal(one) in places:
            return places[normal(one)]
    known = sorted(path.name for path in places.values())
    raise InputError(
        f"{folder}: no folder '{name}' with a train.json{did_you_mean(name, known)}; "
        f"task folders there: {', '.join(known) or 'none'}"
    )


def _below(folder: Path, depth: int) -> list[Path]:
    inner = sorted(path for path in folder.iterdir() if path.is_dir()) if depth else []
    return [*inner, *(path for each in inner for path in _below(each, depth - 1))]


def _labels(place: Path) -> tuple[str, ...]:
    """What labels.json lists; nothing where there is none."""
    path = place / "labels.json"
    if not path.is_file():
        return ()
    labels = [label for _, label in tables.entries(path)]
    if not labels or not all(isinstance(label, str) and label.strip() for label in labels):
        raise InputError(f"{path}: expected a list of labels, each a text")
    return tuple(labels)


def _read(chosen: TaskConfig, place: Path, convert: Callable[[Any], Row | None]) -> dict[str, Sequence[Row]]:
    files = own_files(chosen) or {split: found for split, found in files_by_split(place).items() if split}
    rows = {}
    for split in SPLITS:
        if split in files:
            path = files[split][0]
            rows[split] = collect(tables.entries(path), convert, str(path))
    missing = [split for split in ("train", "test") if split not in rows]
    if missing == ["test"] and "eval" in rows:
        return {"train": rows["train"], "test": rows["eval"]}
    if missing:
        raise InputError(f"{place}: no {' and no '.join(missing)} file; expected train, dev and test as .json")
    return rows


def _classified(entry: Any, *, instruction: str, labels: tuple[str, ...]) -> Row:
    if isinstance(entry, Problem) or not isinstance(entry, Mapping):
        return RowReader()(entry)
    if {"sentence", "label"} <= set(entry):
        options = f"Option: {', '.join(labels)} \n" if instruction and labels else ""
        prompt = f"{instruction}{options}{filled(entry['sentence'], 'sentence').strip()}\nAnswer:"
        return Row(prompt, filled(entry["label"], "label"))
    if {"Definition", "input", "output"} <= set(entry):
        definition = entry["Definition"]
        definition = definition[0] if isinstance(definition, list) and definition else definition
        task = f"{filled(definition, 'Definition').strip()}\n" if definition else ""
        output = entry["output"][0] if isinstance(entry["output"], list) and entry["output"] else entry["output"]
        return Row(f"{task}{filled(entry['input'], 'input')}\nOutput:", filled(output, "output"))
    return RowReader()(entry)


for _number, _order in ORDERS.items():
    _title = "long15" if _number == 4 else f"long15-order{_number}"
    _about = f"15 English classification tasks in order {_number} of O-LoRA, over a folder of yours"
    BENCHMARKS(_title)(Stream(_about, _order, tuple(INSTRUCTIONS), classification))
BENCHMARKS("superni15")(
    Stream("15 tasks of SuperNI in SAPT's order 1, over a folder of yours", SUPERNI, SUPERNI, superni)
)

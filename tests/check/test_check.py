"""`ilora data check` finds by itself the faults that packaged benchmarks are known for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ilora import cli
from ilora.check.audit import check_config, check_task, config_of, failed, summarised
from ilora.check.table import bars, check_table
from ilora.config import load_config
from ilora.data.encoding import Encoder
from ilora.data.examples import Example
from ilora.data.task import Row, Task
from ilora.errors import InputError
from ilora.evaluation.scoring import prepare, questions
from ilora.methods.base import Method
from ilora.model.load import load_tokenizer
from ilora.stream import load_tasks
from ilora.training import speed
from ilora.training.loop import StepReport
from tests.helpers import MakeConfig, write_task

WORDS = "red green blue black white small large old new fast slow warm cold north south east west".split()


def texts(start: int, count: int) -> list[Row]:
    """Distinct prompts that are not alike."""
    return [
        Row(" ".join(f"{word}{(number * 7 + place) % 977}" for place, word in enumerate(WORDS)), "ABC"[number % 3])
        for number in range(start, start + count)
    ]


def checked(train: list[Row], evaluate: list[Row], test: list[Row], **settings: object) -> dict[str, object]:
    task = Task("t", {"train": train, "eval": evaluate, "test": test}, choices=("A", "B", "C"), **settings)  # type: ignore[arg-type]
    return check_task(task)


def problems(report: dict[str, object]) -> list[tuple[str, str]]:
    return [(problem["level"], problem["text"]) for problem in report["problems"]]  # type: ignore[attr-defined]


def test_clean_data_has_no_problems() -> None:
    report = checked(texts(0, 30), texts(100, 10), texts(200, 10))
    assert problems(report) == []
    assert not failed([report])


def test_an_eval_that_is_the_test() -> None:
    report = checked(texts(0, 30), texts(200, 10), texts(200, 10))
    assert problems(report) == [("warning", "eval and test have the same rows")]
    assert report["same"] == ["eval/test"]


def test_few_distinct_training_rows() -> None:
    report = checked(texts(0, 28) * 17, texts(100, 10), texts(200, 10))
    assert problems(report) == [("warning", "train has 476 rows, 28 of them distinct")]


def test_test_rows_in_train_fail_the_check() -> None:
    report = checked(texts(0, 40), texts(100, 10), [*texts(0, 3), *texts(200, 30)])
    assert problems(report)[0] == ("error", "3 of 33 test rows stand in train too")
    assert failed([report])


def test_near_duplicates_answers_and_balance() -> None:
    near = [Row(row.prompt + " again", row.answer) for row in texts(0, 2)]
    train = [*texts(0, 30), Row("unreadable", "either A or B")]
    found = problems(checked(train, texts(100, 10), [*near, *texts(200, 8)]))
    assert ("warning", "like an earlier row (80% of words and word pairs): 2 test (like train)") in found
    assert ("error", "answers that the metric accuracy cannot judge: 1 train, such as 'either A or B'") in found
    one_sided = [Row(row.prompt, "A") for row in texts(0, 30)]
    found = problems(checked(one_sided, texts(100, 10), texts(200, 10)))
    assert ("note", "never right in train: B, C") in found
    assert ("warning", "one answer has 100% of train") in found


def test_lengths(tiny_model: Path, tmp_path: Path) -> None:
    write_task(tmp_path, "one")
    overrides = [f"model.name={tiny_model}", "data.max_length=32", "data.template=alpaca", "training.epochs=2"]
    config = config_of(tmp_path, overrides)
    (report,) = check_config(config)
    tokens = report["tokens"]
    assert sum(tokens["histogram"].values()) == 24 + 6 + 8
    assert tokens["cut"]["train"] > 0
    assert any(text.startswith("prompts cut to data.max_length (32)") for _, text in problems(report))
    summary = summarised([report], config)
    assert summary["train_tokens"] == 2 * tokens["train"] <= 2 * 24 * 32
    assert json.loads(json.dumps(summary)) == summary


def test_the_time_is_that_of_each_tasks_own_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = config_of(write_task(tmp_path, "one").parent, ["data.max_length=32", "training.epochs=2"])
    tokens = {"median": 20, "train": 3_000}
    reports = [
        {"rows": {"train": 100}, "run": {"rows": {"train": 50}}, "tokens": tokens, "problems": []},
        {"rows": {"train": 100}, "run": None, "tokens": tokens | {"median": 99}, "problems": []},
    ]
    monkeypatch.setattr(speed, "tokens_per_second", lambda config, lengths: [1_000 / length for length in lengths])
    summary = summarised(reports, config, timed=True)
    assert summary["train_tokens"] == 2 * (1_500 + 3_000)  # of the first task a run uses the half
    assert summary["seconds"] == 2 * (1_500 * 20 + 3_000 * 32) / 1_000
    assert summary["tokens_per_second"] == round(9_000 / summary["seconds"], 1)


def test_speed_is_of_whole_optimizer_steps(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[int, bool]] = []
    whole = speed.optimizer_step

    def step(method: Method, optimizer: torch.optim.Optimizer, rows: list[Example]) -> StepReport:
        before = [parameter.clone() for parameter in method.trainable]
        report = whole(method, optimizer, rows)
        moved = any(not torch.equal(a, b) for a, b in zip(before, method.trainable, strict=True))
        core: Any = method.engine.core
        steps.append((len(rows[0]), moved and core.is_gradient_checkpointing))
        return report

    monkeypatch.setattr(speed, "optimizer_step", step)
    speeds = speed.tokens_per_second(make_config("model.gradient_checkpointing=true"), [4, 32])
    assert all(value > 0 for value in speeds)
    assert steps == [(4, True)] * 4 + [(32, True)] * 3


def write_rows(folder: Path, **splits: list[Row]) -> Path:
    """A task folder with these rows."""
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        content = [{"prompt": row.prompt, "answer": row.answer} for row in rows]
        (folder / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize("override", ["data.deduplicate=true", "data.limit={train: 5, eval: 5, test: 5}"])
def test_the_check_is_of_all_rows_before_any_repair(tmp_path: Path, override: str) -> None:
    test = [*texts(200, 30), *texts(0, 2)]
    write_rows(tmp_path / "one", train=[*texts(0, 40), *texts(0, 1)], eval=test, test=test)
    (report,) = check_config(config_of(tmp_path, [override]), tokens=False, near=False)
    assert report["rows"] == {"train": 41, "eval": 32, "test": 32}
    assert ("error", "2 of 32 test rows stand in train too") in problems(report)
    assert ("warning", "eval and test have the same rows") in problems(report)
    assert failed([report])
    note = ("note", "deduplicate would leave out 3 train, 32 eval; this report is of all rows")
    if "deduplicate" in override:
        assert note in problems(report)
        assert report["run"]["dropped"] == {"train": 3, "eval": 32, "test": 0}
        assert sum(report["run"]["rows"].values()) == 38 + 32  # eval is a part of train now
    else:
        assert report["run"] == {"rows": {"train": 5, "eval": 5, "test": 5}, "dropped": {}}
        assert note not in problems(report)


def test_rows_that_cannot_be_used_are_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = {"train": texts(0, 30), "eval": texts(100, 5), "test": texts(200, 5)}
    write_rows(tmp_path / "data" / "blank", **clean | {"train": [*texts(0, 30), Row(" ", "A")]})
    write_rows(tmp_path / "data" / "leaky", **clean | {"test": texts(0, 5)})
    out = tmp_path / "report.json"
    monkeypatch.setattr("sys.argv", ["ilora", "data", "check", str(tmp_path / "data"), "--quick", "--json", str(out)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    blank, leaky = json.loads(out.read_text())["tasks"]
    ((level, text),) = problems(blank)
    assert (level, "'prompt' is blank" in text, "train.json" in text) == ("error", True, True)
    assert set(blank) == set(leaky)
    assert ("error", "5 of 5 test rows stand in train too") in problems(leaky)
    shown = capsys.readouterr().out
    assert "blank" in shown
    assert "5 of 5 test rows stand in train too" in shown
    with pytest.raises(InputError, match="'prompt' is blank"):
        load_tasks(config_of(tmp_path / "data", []).data)  # a run refuses them


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    for data in ({"path": str(tmp_path / "none")}, {"path": str(tmp_path / "none"), "benchmark": "trace8"}):
        with pytest.raises(InputError, match="none: no such f"):
            list(check_config(load_config({"data": data}), tokens=False))


def test_cut_rows_are_those_of_evaluation(tiny_model: Path, tmp_path: Path) -> None:
    """A prompt has to leave room for the longest answer, not only for its own."""
    rows = [Row("red " * number + ":", "cat") for number in range(1, 60)]
    write_rows(tmp_path / "one", train=rows, eval=rows, test=rows)
    settings = [f"model.name={tiny_model}", "data.max_length=40", "data.template=none", "evaluation.max_new_tokens=20"]
    config = config_of(tmp_path, settings)
    (report,) = check_config(config, near=False)
    encoder = Encoder(load_tokenizer(config.model), config.data)
    (task,) = load_tasks(config.data)
    train = encoder.encode(task, "train")
    assert report["tokens"]["cut"]["train"] == sum(example.cut for example in train)
    for split in ("eval", "test"):
        data = prepare(task, encoder, train, split=split, max_new_tokens=20)
        asked = questions(data, range(len(data.examples)), encoder)
        whole = config.data.model_copy(update={"max_length": 9999})
        uncut = Encoder(encoder.tokenizer, whole).encode(task, split)
        really = sum(len(one.prompt) < len(other.prompt) for one, other in zip(asked, uncut, strict=True))
        assert report["tokens"]["cut"][split] == data.cut == really
        assert really > sum(example.cut for example in data.examples)


def test_a_template_that_one_row_has_not() -> None:
    ask = "Read the following passage with care, answer in one word only and give no explanation of any kind:"
    rows = [Row(f"{ask} {row.prompt[: 8 + number % 7]} Answer:", "A") for number, row in enumerate(texts(0, 60))]
    report = checked([*rows[:39], Row("Zzz", "A")], rows[40:50], rows[50:])
    assert not any(report["near"].values())  # type: ignore[attr-defined]


def test_one_folder_of_a_benchmark_is_judged_as_the_benchmark_does(tmp_path: Path) -> None:
    article = {"content": {"0": "Erstens."}, "summary": ["Kurz."]}
    folder = tmp_path / "20minuten"
    folder.mkdir()
    for split in ("train", "eval", "test"):
        (folder / f"{split}.json").write_text(json.dumps([article]))
    (report,) = check_config(config_of(folder, ["data.benchmark=trace8"]), tokens=False)
    assert (report["task"], report["metric"]) == ("20Minuten", "sari")


def test_one_task_folder_and_a_configuration(tmp_path: Path) -> None:
    folder = write_task(tmp_path, "one")
    assert [task.name for task in load_tasks(config_of(folder, []).data)] == ["one"]
    assert [task.name for task in load_tasks(config_of(folder / "train.json", []).data)] == ["train"]
    assert config_of(tmp_path, ["data.limit.train=3"]).data.limit.train == 3
    file = tmp_path / "c.yaml"
    file.write_text(f"data: {{path: {tmp_path}}}\n")
    assert config_of(file, []).data.path == tmp_path


@pytest.mark.parametrize(("leak", "code"), [(False, 0), (True, 1)])
def test_the_command(
    leak: bool, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tasks" / "one"
    folder.mkdir(parents=True)
    for split, rows in {"train": texts(0, 30), "eval": texts(100, 5), "test": texts(0 if leak else 200, 5)}.items():
        content = [{"prompt": row.prompt, "answer": row.answer} for row in rows]
        (folder / f"{split}.json").write_text(json.dumps(content))
    out = tmp_path / "report.json"
    monkeypatch.setattr("sys.argv", ["ilora", "data", "check", str(tmp_path / "tasks"), "--quick", "--json", str(out)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == code
    report = json.loads(out.read_text())
    assert report["failed"] is leak
    assert report["tasks"][0]["shared"]["train/test"] == (5 if leak else 0)
    assert ("5 of 5 test rows stand in train too" in capsys.readouterr().out) is leak


def test_the_table_shows_untrusted_text_as_it_is() -> None:
    from rich.console import Console

    report = checked(texts(0, 30), texts(100, 5), texts(200, 5)) | {"task": "[bold]x[/bold]\x1b[31m"}
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    summary = {"tasks": [report], "train_tokens": None, "seconds": None}
    console.print(check_table(summary))
    shown = console.export_text()
    assert "[bold]x[/bold]" in shown
    assert "\x1b" not in shown
    assert bars([0, 1, 100]) == " ▁█"


@pytest.mark.parametrize(("too_long", "level"), [("error", "error"), ("drop", "note")])
def test_answers_that_are_too_long_are_an_error_unless_they_are_left_out(
    too_long: str, level: str, tiny_model: Path, tmp_path: Path
) -> None:
    rows = [Row("red :", "cat"), Row("blue :", "cat " * 60)]
    write_rows(tmp_path / "one", train=rows * 5, eval=rows, test=rows)
    settings = [f"model.name={tiny_model}", "data.max_length=40", f"data.too_long={too_long}"]
    (report,) = check_config(config_of(tmp_path, settings), near=False)
    (found,) = [problem for problem in report["problems"] if "answers that alone do not fit" in problem["text"]]
    assert found["level"] == level
    assert ("leaves them out" in found["text"]) == (too_long == "drop")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["data.max_length=32", "data.template=alpaca"],
            "warning: 24 of 24 training prompts are cut to data.max_length (32",
        ),
        (["data.max_length=20"], "error: answers that alone do not fit into data.max_length (20)"),
        (
            ["data.max_length=64", "method={name: l2p, prompt_length: 12}"],
            "data.max_length (64, of which the method's vectors take 36 and a row 28)",
        ),
        (["evaluation.max_new_tokens=8"], "reference answers are longer than max_new_tokens (8)"),
        (["evaluation.max_new_tokens=256"], "max_new_tokens is 256, but the model reads at most 256"),
        (["evaluation.split=eval"], "error: task 'two': no eval split for evaluation.split"),
        (["data.max_length=300"], "data.max_length: 300, but model"),
        (["data.max_length=64", "method={name: l2p, prompt_length: 17}"], "of which the prompts of l2p take 51"),
    ],
)
def test_what_a_run_would_refuse_or_warn_of_is_said_before(
    overrides: list[str], says: str, tiny_model: Path, tmp_path: Path
) -> None:
    """Positions, the vectors of a method, answers beyond the generation limit, prompts of which little is left."""
    write_task(tmp_path, "one")
    for split in ("train", "test"):
        rows = [{"prompt": f"{split} {number} ?", "answer": "red " * 40 + str(number)} for number in range(10)]
        (tmp_path / f"{split}.json").write_text(json.dumps(rows))
    two = {split: str(tmp_path / f"{split}.json") for split in ("train", "test")}
    tasks = [{"name": "one", "path": str(tmp_path / "one")}, {"name": "two", **two}]
    values = {"model": str(tiny_model), "data": {"tasks": tasks, "template": "none", "max_length": 256}}
    try:
        reports = check_config(load_config(values, overrides), near=False)
        said = [f"{level}: {text}" for report in reports for level, text in problems(report)]
    except InputError as error:
        said = [str(error)]
    assert any(says in line for line in said), said

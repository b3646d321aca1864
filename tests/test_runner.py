"""Whole runs through the Python API: what they leave behind, against computations made by hand."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from ilora import InputError, add, resume, run
from ilora.results import scores
from ilora.training import session
from ilora.training.checkpoint import load_latest
from tests.helpers import (
    ANIMALS,
    SMALL,
    MakeConfig,
    difference,
    run_killed,
    sealed,
    task_rows,
    trained,
    weights,
    write_task,
)


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def prediction_files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.glob("predictions/**/*.jsonl")}


def memory_tasks(folder: Path) -> set[str]:
    """Whose rows the newest checkpoint's memory holds."""
    found, _ = load_latest(folder / "checkpoints")
    assert found is not None
    return {task for task, _ in found.values["memory"]["rows"]}


# -- add ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("training.reset_optimizer=false",), ("evaluation.unseen=none",)])
def test_run_and_add_equal_the_whole_stream_at_once(
    more: tuple[str, ...], make_config: MakeConfig, tmp_path: Path
) -> None:
    more = ("data.limit.train=16", "data.limit.test=4", *more)
    whole = run(make_config(*more), tmp_path / "whole", quiet=True)
    grown = run(make_config("data.tasks=[one, two]", *more), tmp_path / "grown", quiet=True)
    assert len(grown.results["variants"]["slow"]["R"]) == 2
    earlier = prediction_files(grown.path)
    assert memory_tasks(grown.path) == {"one", "two"}

    after = add(grown.path, ["three"], quiet=True)

    assert difference(weights(whole.path), weights(grown.path)) == 0.0
    assert prediction_files(grown.path) == prediction_files(whole.path)
    assert earlier.items() <= prediction_files(grown.path).items()
    assert memory_tasks(grown.path) == {"one", "two", "three"}
    for key in ("variants", "tasks", "phases", "complete", "answers_with", "adapter"):
        assert after.results[key] == whole.results[key]
    assert [len(row) for row in after.results["variants"]["slow"]["R"]] == [3, 3, 3]
    for file in ("config.yaml", "metrics.jsonl"):
        assert (grown.path / file).read_text().count("\n") == (whole.path / file).read_text().count("\n")
    assert (grown.path / "config.yaml").read_text() == (whole.path / "config.yaml").read_text()


def test_adding_folders_twice(make_config: MakeConfig, tmp_path: Path) -> None:
    new = [write_task(tmp_path / "elsewhere", name) for name in ("four", "five")]
    config = make_config(*SMALL, "data.tasks=[one]", "training.epochs=1", contrast=["sequential"])
    folder = run(config, tmp_path / "run", quiet=True).path
    first = weights(folder)
    for number, task in enumerate(new, 2):
        result = add(folder, [str(task)], quiet=True)
        assert len(result.results["variants"]["slow"]["R"]) == number
        assert [len(other["variants"]["fast"]["R"]) for other in result.contrast] == [number]
    tasks = yaml.safe_load((folder / "config.yaml").read_text())["data"]["tasks"]
    assert [task["name"] for task in tasks] == ["one", "four", "five"]
    assert [task["path"] for task in tasks] == [None, *map(str, new)]
    assert result.results["adapter"] == "adapters/03-five/slow"
    now = weights(folder)
    assert difference(first, {key: now[key] for key in first}) == 0.0
    assert (folder / "contrast/sequential/adapters/03-five/fast/adapter_model.safetensors").is_file()


def test_add_killed_and_resumed_gives_the_same_bits(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ("data.limit.train=16", "data.limit.test=4", "data.tasks=[one, two]")
    run(make_config(*small), tmp_path / "whole", quiet=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    add(tmp_path / "whole", ["three"], quiet=True)

    class Killed(Exception):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(session, "optimizer_step", killed)
        with pytest.raises(Killed):
            add(tmp_path / "killed", ["three"], quiet=True)
    assert json.loads((tmp_path / "killed/results.json").read_text())["complete"] is False
    with pytest.raises(InputError, match="not finished"):
        add(tmp_path / "killed", ["three"], quiet=True)
    resume(tmp_path / "killed", quiet=True)
    assert difference(weights(tmp_path / "whole"), weights(tmp_path / "killed")) == 0.0
    assert prediction_files(tmp_path / "whole") == prediction_files(tmp_path / "killed")


# -- streams and what is evaluated -----------------------------------------------------------------------------------


def test_joint_stream_sees_the_union_of_the_training_splits(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    original = session.optimizer_step

    def spying(method: Any, optimizer: Any, examples: list[Any], **named: Any) -> Any:
        seen.extend(example.id for example in examples)
        return original(method, optimizer, examples, **named)

    monkeypatch.setattr(session, "optimizer_step", spying)
    result = run(make_config("stream=joint", "training.epochs=1"), tmp_path / "run", quiet=True)
    assert sorted(seen) == sorted(f"{task}/train/{row}" for task in ("one", "two", "three") for row in range(24))
    assert {key.split("/")[0] for key in seen[:12]} == {"one", "two", "three"}  # mixed, not one after the other
    slow = result.results["variants"]["slow"]
    assert len(slow["R"]) == 1
    assert None not in slow["R"][0]
    assert slow["summary"] == {
        "OP": statistics.mean(slow["R"][0]),
        "BWT": None,
        "forgetting": None,
        "FWT": None,
        "plasticity": None,
    }
    assert result.results["adapter"] == "adapters/01-joint/slow"


@pytest.mark.parametrize(("unseen", "seen"), [("none", [1, 2, 3]), ("next", [2, 3, 3]), ("all", [3, 3, 3])])
def test_unseen_tasks_that_are_scored(unseen: str, seen: list[int], make_config: MakeConfig, tmp_path: Path) -> None:
    result = run(
        make_config(*SMALL, f"evaluation.unseen={unseen}", "training.epochs=1"),
        tmp_path / "run",
        quiet=True,
    )
    for variant, folder in (("slow", ""), ("fast", "fast")):
        scored = [
            len(list((result.path / "predictions" / f"after-{label}" / folder).glob("*.jsonl")))
            for label in ("01-one", "02-two", "03-three")
        ]
        assert scored == seen
        rows = result.results["variants"][variant]["R"]
        assert [sum(score is not None for score in row) for row in rows] == seen
        assert all(score is None for row, count in zip(rows, seen, strict=True) for score in row[count:])
    assert not (result.path / "predictions/after-00-base").exists()
    assert result.results["variants"]["slow"]["zero_shot"] is None
    assert result.results["variants"]["slow"]["summary"]["FWT"] is None


@pytest.mark.usefixtures("report", "sketched")
def test_earlier_tasks_that_are_scored_at_the_end_only(make_config: MakeConfig, tmp_path: Path) -> None:
    small = (*SMALL, "training.epochs=1", "evaluation.zero_shot=true", "evaluation.unseen=next")
    always, last = (
        run(make_config(*small, f"evaluation.earlier={earlier}"), tmp_path / earlier, quiet=True).results
        for earlier in ("always", "last")
    )
    for variant, whole in always["variants"].items():
        kept = [[0, 1], [1, 2], [0, 1, 2]]
        rows = last["variants"][variant]["R"]
        assert rows == [
            [s if i in row else None for i, s in enumerate(scores)]
            for row, scores in zip(kept, whole["R"], strict=True)
        ]
        summary = last["variants"][variant]["summary"]
        assert summary == {**whole["summary"], "forgetting": pytest.approx(-summary["BWT"])}


@pytest.mark.usefixtures("report", "sketched")
def test_contrast_runs_are_those_methods_alone(make_config: MakeConfig, tmp_path: Path) -> None:
    er = {"name": "er", "memory_size": 20}
    small = ("data.limit.train=16", "data.limit.test=4", "data.tasks=[one, two]")
    both = run(make_config(*small, contrast=["sequential", er]), tmp_path / "both", quiet=True)
    alone = run(make_config(*small, method=er), tmp_path / "alone", quiet=True)
    assert [other["method"] for other in both.contrast] == ["sequential", "er"]
    assert difference(weights(both.path / "contrast/er"), weights(alone.path)) == 0.0
    assert both.contrast[1]["variants"] == alone.results["variants"]
    assert difference(weights(both.path / "contrast/sequential"), weights(alone.path)) > 1e-4
    page = (both.path / "report.html").read_text()
    assert "Sequential" in page or "sequential" in page
    assert not (both.path / "contrast/er/report.html").exists()


def test_contrast_run_is_resumed_too(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(*SMALL, "data.tasks=[one, two]", contrast=["sequential"])
    whole = run(config, tmp_path / "whole", quiet=True)
    run_killed(config, tmp_path / "killed", monkeypatch, at="step", count=8 + 7)  # in the contrast's second task
    resumed = resume(tmp_path / "killed", quiet=True)
    for folder in (".", "contrast/sequential"):
        assert difference(weights(whole.path / folder), weights(resumed.path / folder)) == 0.0
    assert [other["variants"] for other in resumed.contrast] == [other["variants"] for other in whole.contrast]


# -- what a run leaves behind ------------------------------------------------------------------------------------------


def test_results_against_a_hand_computation(make_config: MakeConfig, tmp_path: Path) -> None:
    # A rate at which the tiny model learns something, so that the scores are neither all 0 nor all 1.
    result = run(make_config("training.learning_rate=0.02", "training.epochs=8"), tmp_path / "run", quiet=True)
    tasks, labels = ["one", "two", "three"], ["01-one", "02-two", "03-three"]

    def score(folder: str, task: str) -> float | None:
        file = result.path / "predictions" / folder / f"{task}.jsonl"
        if not file.is_file():
            return None
        rows = records(file)
        assert [row["id"] for row in rows] == [f"{task}/test/{number}" for number in range(8)]
        return statistics.mean(row["score"] for row in rows)

    stored = json.loads((result.path / "results.json").read_text())
    assert stored == result.results
    assert stored["complete"] is True
    zero_shot = [score("after-00-base", task) for task in tasks]
    everything: list[float] = []
    for variant, below in (("slow", ""), ("fast", "/fast")):
        r: Any = [[score(f"after-{label}{below}", task) for task in tasks] for label in labels]
        found = stored["variants"][variant]
        assert found["R"] == r
        assert found["zero_shot"] == zero_shot
        assert found["n"] == [[8, 8, None], [8, 8, 8], [8, 8, 8]]
        expected = {
            "OP": sum(r[2]) / 3,
            "BWT": ((r[2][0] - r[0][0]) + (r[2][1] - r[1][1])) / 2,
            "forgetting": ((max(r[0][0], r[1][0]) - r[2][0]) + (max(r[0][1], r[1][1]) - r[2][1])) / 2,
            "FWT": ((r[0][1] - zero_shot[1]) + (r[1][2] - zero_shot[2])) / 2,
            "plasticity": (r[0][0] + r[1][1] + r[2][2]) / 3,
        }
        assert found["summary"] == pytest.approx(expected)
        everything += [cell for row in r for cell in row if cell is not None]
    assert len(set(everything)) > 2, "the test needs scores that differ"
    by_reference = {row["prompt"]: row["answer"] for row in task_rows("two", 8, seed=2)}
    for row in records(result.path / "predictions/after-03-three/two.jsonl"):
        assert row["reference"] == by_reference[row["prompt"]]
        assert row["score"] == float(row["parsed"] == row["reference"])


def test_metrics_have_terms_speed_and_memory(make_config: MakeConfig, tmp_path: Path) -> None:
    result = run(make_config("data.tasks=[one, two]"), tmp_path / "run", quiet=True)
    lines = records(result.path / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["task"] for line in lines] == ["one"] * 6 + ["two"] * 6
    assert [line["epoch"] for line in lines] == [0, 0, 0, 1, 1, 1] * 2
    assert [set(line["terms"]) for line in lines] == [{"ce"}] * 6 + [{"ce", "ce_replayed", "consistency"}] * 6
    for line in lines:
        terms = line["terms"]
        expected = (
            terms["ce"]
            if len(terms) == 1
            else 0.5 * terms["ce"] + 0.5 * terms["ce_replayed"] + 1.0 * terms["consistency"]
        )
        assert line["loss"] == pytest.approx(expected, rel=1e-5)
        assert line["tokens_per_second"] > 0
        assert 2**26 < line["peak_memory_bytes"] < 2**36
        assert line["grad_norm"] > 0
    times = [line["time"] for line in lines]
    assert times == sorted(times)
    assert result.results["cost"]["steps"] == 12


def test_tensorboard_tracker_writes_the_metrics(make_config: MakeConfig, tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = make_config(*SMALL, "data.tasks=[one, two]", "training.epochs=1", "trackers=[tensorboard]")
    result = run(config, tmp_path / "run", quiet=True)
    events = next((result.path / "trackers").rglob("events.out.tfevents.*"))
    accumulator = accumulators.EventAccumulator(str(events.parent))
    accumulator.Reload()
    logged = {event.step: event.value for event in accumulator.Scalars("loss")}
    assert logged == pytest.approx(
        {line["step"]: line["loss"] for line in records(result.path / "metrics.jsonl")}, rel=1e-5
    )
    assert "terms/ce_replayed" in accumulator.Tags()["scalars"]


def test_bfloat16_run_resumes_bit_for_bit(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(*SMALL, "model.dtype=bfloat16", "data.tasks=[one, two]")
    whole = run(config, tmp_path / "whole", quiet=True)
    assert {tensor.dtype for tensor in weights(whole.path).values()} == {torch.float32}  # adapters train in float32
    run_killed(config, tmp_path / "killed", monkeypatch, at="step", count=8)
    resumed = resume(tmp_path / "killed", quiet=True)
    assert difference(weights(whole.path), weights(resumed.path)) == 0.0
    assert prediction_files(whole.path) == prediction_files(resumed.path)
    exact = trained(make_config(*SMALL, "data.tasks=[one, two]"), tmp_path / "float32")
    assert 0.0 < difference(weights(whole.path), exact) < 0.1


@pytest.mark.usefixtures("report", "sketched")
def test_prompt_is_inert_in_the_report(make_config: MakeConfig, tmp_path: Path) -> None:
    # The same prompt with another answer in the second task: the first one's answers are lost, so the page shows them.
    for name, answer in (("one", "cat"), ("two", "owl")):
        folder = write_task(tmp_path / "tasks", name)
        for split, count in (("train", 24), ("eval", 2), ("test", 4)):
            rows = [{"prompt": "<script>alert(1)</script> &lt;", "answer": answer}] * count
            (folder / f"{split}.json").write_text(json.dumps(rows))
    config = make_config(
        "training.learning_rate=0.02",
        "training.epochs=10",
        "adapter.target_modules=all-linear",
        method="sequential",
        data={"path": str(tmp_path / "tasks"), "max_length": 64},
    )
    result = run(config, tmp_path / "run", quiet=True)
    assert result.results["variants"]["fast"]["R"] == [[1.0, 0.0], [0.0, 1.0]]
    page = result.report.read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp;lt;" in page
    assert "<script>alert" not in page


def test_adapters_load_with_plain_peft_and_answer_the_same(make_config: MakeConfig, tmp_path: Path) -> None:
    changes = ["data.tasks=[one, two]", "training.learning_rate=0.02"]
    config = make_config(*changes, "evaluation.zero_shot=false", "evaluation.max_new_tokens=4")
    result = run(config, tmp_path / "run", quiet=True)
    assert result.adapter == result.path / "adapters/02-two/slow"
    for variant, below in (("slow", ""), ("fast", "fast")):
        base = AutoModelForCausalLM.from_pretrained(result.results["base_model"])
        tokenizer = AutoTokenizer.from_pretrained(result.results["base_model"])
        model = PeftModel.from_pretrained(base, result.path / "adapters/02-two" / variant).eval()
        changed = 0
        for row in records(result.path / "predictions/after-02-two" / below / "two.jsonl"):
            inputs = tokenizer(row["prompt"], return_tensors="pt")

            def answer(model: Any = model, tokenizer: Any = tokenizer, inputs: Any = inputs) -> str:
                made = model.generate(**inputs, do_sample=False, max_new_tokens=4, pad_token_id=tokenizer.eos_token_id)
                return str(tokenizer.decode(made[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)).strip()

            assert answer() == row["prediction"]
            with model.disable_adapter():
                changed += answer() != row["prediction"]
        assert changed > 0, "the test needs an adapter that changes answers"


def test_metrics_cut_off_within_a_character_do_not_stop_a_resume(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_task(tmp_path / "tasks", "é")
    config = make_config("training.epochs=1", data={"path": str(tmp_path / "tasks"), "max_length": 64})
    run_killed(config, tmp_path / "run", monkeypatch, at="step", count=3)
    with (tmp_path / "run/metrics.jsonl").open("ab") as file:
        file.write('{"time": 1.0, "task": "é'.encode()[:-1])
    resume(tmp_path / "run", quiet=True)
    assert [line["step"] for line in records(tmp_path / "run/metrics.jsonl")] == [1, 2, 3]


def test_a_run_from_before_a_setting_goes_on(make_config: MakeConfig, tmp_path: Path) -> None:
    """A setting that came in later counts as its default, in the checkpoint's configuration too."""
    made = run(make_config(*SMALL, "training.epochs=1", "data.tasks=[one]"), tmp_path / "run", quiet=True)
    for file in made.path.glob("checkpoints/*/state.json"):
        state = json.loads(file.read_text(encoding="utf-8"))
        adapter = state["values"]["config"]["adapter"]
        del adapter["layers"], adapter["keep_below"]
        file.write_text(sealed(state), encoding="utf-8")
    assert resume(made.path, quiet=True).results["complete"]


@pytest.mark.usefixtures("report")
def test_tasks_without_eval_rows_too_long_and_answers_that_cannot_be_read(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    folder = write_task(tmp_path / "tasks", "one")
    (folder / "eval.json").unlink()
    train = json.loads((folder / "train.json").read_text())
    data = {"path": str(tmp_path / "tasks"), "tasks": [{"name": "one", "choices": ANIMALS}], "max_length": 64}
    short = ("training.epochs=1", "method=sequential")
    (folder / "train.json").write_text(json.dumps(train + [{"prompt": "one 1 red :", "answer": "cat" + "!" * 200}] * 2))
    with pytest.raises(InputError, match=r"answers are never cut.*data\.too_long=drop"):
        run(make_config(*short, data=data), tmp_path / "refused", quiet=True)
    made = run(make_config(*short, data=data | {"too_long": "drop"}), tmp_path / "run", quiet=True)
    (task,) = made.results["tasks"]
    assert (task["metric"], task["train"], task["too_long"]) == ("accuracy", 24, {"train": 2})
    (variant,) = made.results["variants"].values()
    records = scores.read_records(next((tmp_path / "run/predictions/after-01-one").glob("*.jsonl")))
    assert variant["unreadable"] == [[sum(record["parsed"] is None for record in records)]]
    page = made.report.read_text()
    assert "longer than data.max_length" in page
    assert f"{variant['unreadable'][0][0]} of 8" in page or variant["unreadable"] == [[0]]
    assert ("Not learnt." in page) == (variant["R"][0][0] <= task["chance"] + 2 * variant["se"][0][0])


def test_prompts_count_against_the_length_of_a_row(make_config: MakeConfig, tmp_path: Path) -> None:
    method = {"name": "progressive_prompts", "prompt_length": 20}
    with pytest.raises(InputError, match=r"data\.max_length: 64, of which .* take 60 in a stream of 3 tasks"):
        run(make_config(method=method), tmp_path / "run", quiet=True)


# -- nothing is lost, and a resume is of the same run ------------------------------------------------------------------


def test_a_finished_run_without_its_checkpoints_is_shown_and_never_begun_again(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    path = run(make_config("data.tasks=[one]", "training.epochs=1"), tmp_path / "run", quiet=True).path
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and "checkpoints" not in file.parts}
    shutil.rmtree(path / "checkpoints")
    assert resume(path, quiet=True).results["complete"]
    with pytest.raises(InputError, match="checkpoints are missing, and to begin again would delete"):
        resume(path, ["training.learning_rate=0.5"], quiet=True)
    with pytest.raises(InputError, match="checkpoints are missing"):
        add(path, [str(write_task(tmp_path / "more", "four"))], quiet=True)
    assert {file: file.read_bytes() for file in before} == before


def test_an_unfinished_run_without_its_checkpoints_is_not_begun_again(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_killed(make_config(), tmp_path / "run", monkeypatch, at="step", count=8)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(InputError, match="checkpoints are missing"):
        resume(tmp_path / "run", quiet=True)


def test_a_damaged_results_file_is_made_again_from_the_predictions(make_config: MakeConfig, tmp_path: Path) -> None:
    made = run(make_config("data.tasks=[one]", "training.epochs=1"), tmp_path / "run", quiet=True)
    (made.path / "results.json").write_text("{")
    assert resume(made.path, quiet=True).results["variants"] == made.results["variants"]


def test_the_text_of_the_perplexity_must_be_the_same(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one small red cat " * 20)
    config = make_config("data.tasks=[one]", f"evaluation.perplexity_file={text}")
    run_killed(config, tmp_path / "run", monkeypatch, at="step", count=3)
    text.write_text("two big old owls " * 20)
    with pytest.raises(InputError, match=r"perplexity_file: .*text\.txt changed since the run began"):
        resume(tmp_path / "run", quiet=True)


def test_a_model_that_lies_elsewhere_now_is_the_same_by_its_weights(
    make_config: MakeConfig, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(make_config(*SMALL, "data.tasks=[one]"), tmp_path / "whole", quiet=True)
    run_killed(make_config(*SMALL, "data.tasks=[one]"), tmp_path / "run", monkeypatch, at="step", count=3)
    moved = shutil.copytree(tiny_model, tmp_path / "model")
    resumed = resume(tmp_path / "run", [f"model.name={moved}"], quiet=True)
    assert difference(weights(whole.path), weights(resumed.path)) == 0.0


def test_foreign_files_in_a_run_are_named_or_left_alone(make_config: MakeConfig, tmp_path: Path) -> None:
    path = run(make_config("data.tasks=[one]", "training.epochs=1"), tmp_path / "run", quiet=True).path
    foreign = path / "trajectory" / "mine.safetensors"
    foreign.write_text("5")
    assert resume(path, quiet=True).results["complete"]
    assert foreign.read_text() == "5"
    with (path / "predictions" / "after-01-one" / "one.jsonl").open("ab") as file:
        file.write(b"\xff\xfe")
    with pytest.raises(InputError, match=r"one\.jsonl: not UTF-8 text"):
        resume(path, quiet=True)

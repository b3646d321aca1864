"""Sweeps to their end, through failures, and killed for real."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ilora import InputError, resume, run
from ilora.commands import sweep as command
from ilora.commands.sweep import RunsFailed, sweep
from ilora.config import load_config
from ilora.sweeps.book import Book, Entry
from ilora.sweeps.local import Processes
from ilora.sweeps.plan import expand, read_sweep
from tests.helpers import FEW_SCORES, MakeConfig
from tests.processes import ilora_fork, outcome, wait_for


class Here:
    """An executor in this process: what is started has ended when it is asked for. `fail`: runs that break."""

    def __init__(self, fail: Callable[[Entry], bool] = lambda _: False) -> None:
        self.fail, self.done, self.started = fail, [], []  # type: ignore[var-annotated]

    def has_room(self, _: Entry) -> bool:
        return not self.done

    def start(self, entry: Entry) -> None:
        self.started.append(entry.job.title)
        if self.fail(entry):
            entry.log.write_text("first line\nout of luck\n", encoding="utf-8")
            self.done.append((entry, 3))
            return
        words = entry.command()
        if words[0] == "run":
            run(load_config(Path(words[1])), words[3], quiet=True)
        else:
            resume(words[1], quiet=True)
        self.done.append((entry, 0))

    def ended(self) -> list[tuple[Entry, int]]:
        done, self.done = self.done, []
        return done

    def stop(self) -> None:
        self.done = []


@pytest.fixture
def file(make_config: MakeConfig, tmp_path: Path) -> Path:
    """Two methods, two seeds, two short tasks: the shortest runs in which a method's memory matters."""
    short = ("training.epochs=1", "training.checkpoint_every=4", "data.limit={train: 16, eval: 2, test: 2}")
    config = make_config("data.tasks=[one, two]", *short, *FEW_SCORES).dump()
    path = tmp_path / "pair.yaml"
    path.write_text(yaml.safe_dump({"config": config, "methods": ["sequential", "er"], "seeds": 2}), encoding="utf-8")
    return path


def use(monkeypatch: pytest.MonkeyPatch, executor: Here) -> Here:
    monkeypatch.setattr(command, "executor", lambda *_: executor)
    return executor


def states(folder: Path) -> dict[str, str]:
    runs = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["runs"]
    return {entry["folder"].removeprefix("runs/"): entry["state"] for entry in runs}


def test_a_sweep_equals_its_runs_one_by_one(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, Here())
    book = sweep(file, out=tmp_path / "s")
    assert states(tmp_path / "s") == dict.fromkeys(("sequential/1-0", "er/1-0", "sequential/1-1", "er/1-1"), "done")
    alone = run(book.entries[1].job.config, tmp_path / "alone", quiet=True)
    assert outcome(alone.path) == outcome(tmp_path / "s" / "runs" / "er" / "1-0") != {}
    said = capsys.readouterr().out
    assert "er 1-1: done in" in said
    assert f"ilora compare {tmp_path / 's'}" in said
    again = use(monkeypatch, Here())
    sweep(file, out=tmp_path / "s")
    assert again.started == []


def test_a_failed_run_is_named_stops_no_other_and_is_tried_again(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Here(lambda entry: entry.job.title == "er 1-0"))
    with pytest.raises(RunsFailed, match=r"(?s)1 of 4 runs failed.*er 1-0: exit code 3: out of luck"):
        sweep(file, out=tmp_path / "s", quiet=True)
    assert sorted(states(tmp_path / "s").values()) == ["done", "done", "done", "failed"]
    again = use(monkeypatch, Here())
    sweep(file, out=tmp_path / "s", quiet=True)
    assert again.started == ["er 1-0"]
    assert set(states(tmp_path / "s").values()) == {"done"}


def test_only_some_runs_now_and_the_others_later(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for patterns, expected in (
        (["er/*"], ["er 1-0", "er 1-1"]),
        (["*/1-0", "er/1-0"], ["sequential 1-0"]),
        ([], ["sequential 1-1"]),
    ):
        at_work = use(monkeypatch, Here())
        sweep(file, out=tmp_path / "s", only=patterns, quiet=True)
        assert at_work.started == expected
    assert set(states(tmp_path / "s").values()) == {"done"}
    with pytest.raises(InputError, match=r"--only ewc/\*: fits none of the 4 runs; the first is sequential/1-0"):
        sweep(file, out=tmp_path / "s", only=["er/*", "ewc/*"], quiet=True)


def test_more_runs_may_be_asked_for_but_not_other_ones(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Here())
    sweep(file, ["data.limit.train=8"], out=tmp_path / "s", quiet=True)
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    file.write_text(yaml.safe_dump(content | {"methods": ["sequential", "er", "zero_shot"]}), encoding="utf-8")
    more = use(monkeypatch, Here())
    sweep(file, ["data.limit.train=8"], out=tmp_path / "s", quiet=True)
    assert more.started == ["zero_shot 1-0", "zero_shot 1-1"]
    with pytest.raises(InputError, match=r"data\.limit\.train: 8 -> 9"):
        sweep(file, ["data.limit.train=9"], out=tmp_path / "s", quiet=True)


def test_a_setting_newer_than_the_sweep_has_its_default(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Here())
    book = sweep(file, out=tmp_path / "s", quiet=True)
    begun = book.entries[0].config_file
    content = yaml.safe_load(begun.read_text(encoding="utf-8"))
    del content["training"]["weight_decay"]
    begun.write_text(yaml.safe_dump(content), encoding="utf-8")
    again = use(monkeypatch, Here())
    sweep(file, out=tmp_path / "s", quiet=True)
    assert again.started == []


def test_a_folder_left_by_a_run_that_had_no_time_is_begun_anew(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Here())
    (tmp_path / "s" / "runs" / "er" / "1-1").mkdir(parents=True)
    sweep(file, out=tmp_path / "s", quiet=True)
    assert set(states(tmp_path / "s").values()) == {"done"}


def test_dry_run_estimates_and_writes_nothing(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep(file, out=tmp_path / "s", dry_run=True)
    said = capsys.readouterr().out
    assert "4 runs, 4 to do: about 0.0 h with 1 at a time" in " ".join(said.split())
    assert said.count("waiting") == 4
    assert said.count("calibrating") == 1  # model and data are the same for all
    assert not (tmp_path / "s").exists()


def test_one_sweep_at_a_time(file: Path, tmp_path: Path) -> None:
    with Book(tmp_path / "s", []).alone(), pytest.raises(InputError, match="another process is working on this sweep"):
        sweep(file, out=tmp_path / "s", quiet=True)


@pytest.mark.parametrize("processes", [0, 10_000])
def test_processes_beyond_the_cores_are_refused(file: Path, processes: int) -> None:
    with pytest.raises(InputError, match=f"--processes {processes}: allowed are 1 to {os.cpu_count()}"):
        sweep(file, processes=processes)


def test_ray_that_is_not_there_is_named(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'ilora\[ray\]'"):
        sweep(file, out=tmp_path / "s", ray="local")


# -- real processes ----------------------------------------------------------------------------------------------------


def steps_done(out: Path) -> int:
    """Lines in the runs' metrics.jsonl."""
    return sum(file.read_bytes().count(b"\n") for file in out.glob("runs/*/*/metrics.jsonl"))


def test_a_run_is_a_process_of_its_own(file: Path, tmp_path: Path) -> None:
    """A real one, which ends before it imports torch: there is no such configuration."""
    entry = Book(tmp_path / "s", expand(read_sweep(file, ()), file)).entries[0]
    processes = Processes(1)
    processes.start(entry)
    ended: list[tuple[Entry, int]] = []
    wait_for(lambda _: bool(ended.extend(processes.ended()) or ended), tmp_path, lambda: True)
    assert ended == [(entry, 2)]
    assert processes.ended() == []
    assert f"ilora: {entry.config_file}: no such configuration file" in entry.log.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_killed_interrupted_and_finished_it_is_the_sweep_that_was_never_stopped(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    content["config"]["training"] |= {"epochs": 10}
    file.write_text(yaml.safe_dump(content | {"seeds": 1}), encoding="utf-8")
    out = tmp_path / "s"
    command_line = ("sweep", file, "--out", out, "--processes")
    first = ilora_fork(*command_line, 2, log=tmp_path / "first")
    wait_for(lambda _: len(list(out.glob("runs/*/*/metrics.jsonl"))) == 2, out, first.is_alive)
    first.kill()
    first.join()
    before = steps_done(out)  # a resume may cut some of them off
    second = ilora_fork(*command_line, 1, log=tmp_path / "second")
    wait_for(lambda _: steps_done(out) > before + 5, out, second.is_alive)
    assert second.pid is not None
    os.kill(second.pid, signal.SIGINT)
    second.join(120)
    assert second.exitcode == 130
    assert "the same command goes on" in (tmp_path / "second.err").read_text()
    stopped = [log.read_text().count("ilora: interrupted") for log in out.glob("runs/*/*.log")]
    if sys.platform == "linux":  # elsewhere a run outlives its sweep
        assert sorted(stopped) == [1, 2]  # both by the end of the first sweep, one by the second
    for folder in (out, tmp_path / "whole"):  # in this process now
        use(monkeypatch, Here())
        sweep(file, out=folder, quiet=True)
    assert set(states(out).values()) == {"done"}
    for method in ("er", "sequential"):
        expected = outcome(tmp_path / "whole" / "runs" / method / "1-0")
        assert outcome(out / "runs" / method / "1-0") == expected != {}


@pytest.mark.slow
def test_a_local_ray_cluster(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    book = sweep(file, out=tmp_path / "s", ray="local", quiet=True)
    assert [entry.state for entry in book.entries] == ["done"] * 4

"""Runs whose passes are computed together: each is the run that it is alone."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ilora import InputError
from ilora.commands.sweep import RunsFailed, sweep
from ilora.config import load_config
from ilora.kernels.graphs import Compute, CudaRecorder
from ilora.model.joint import JointDecoder, Part, Pass
from ilora.model.stacked import StackedDecoder
from ilora.sweeps.book import Book, Entry
from ilora.sweeps.plan import expand, read_sweep
from tests.helpers import SMALL, MakeConfig, difference, settings, trained, weights
from tests.kernels.helpers import Again, flash_on_a_cpu

CARD = torch.cuda.is_available()
METHODS = ("sequential", "er", "ilora", "derpp", "lwf", "ewc", "gem", "olora")


def sweep_file(folder: Path, make_config: MakeConfig, names: Sequence[str], *overrides: str, **more: object) -> Path:
    masks = ["adapter.dropout=0"] if CARD else []  # a GPU's masks of a joint pass are not those of single ones
    config = make_config("data.tasks=[one, two]", *SMALL, *masks, *overrides).dump()
    methods = {name: settings(name) for name in names}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"config": config, "methods": methods, **more}), encoding="utf-8")
    return path


def count_parts(patch: pytest.MonkeyPatch) -> list[int]:
    """Of the joint passes to come, the number of runs in each."""
    counted: list[int] = []
    for kind in (JointDecoder, StackedDecoder):

        def counting(*given: Any, compute: Callable[..., Pass] = kind.compute, **more: bool) -> Pass:
            counted.append(len(given[1]))
            return compute(*given, **more)

        patch.setattr(kind, "compute", counting)
    return counted


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def refuse_other_numbers(entry: Entry, folder: Path) -> None:
    """Make the run alone, and compare."""
    alone = folder / entry.job.label
    # A GPU adds up in another order for another size, and AdamW makes more of it where gradients are small.
    near = 1e-4 if CARD else 1e-5
    assert difference(trained(load_config(entry.config_file), alone), weights(entry.path)) < near, entry.job.label
    for one, other in zip(lines(alone), lines(entry.path), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=near)


def test_each_run_is_what_it_is_alone(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout included; among them methods with passes of their own: a sum."""
    joint = count_parts(monkeypatch)
    book = sweep(sweep_file(tmp_path, make_config, METHODS), out=tmp_path / "s", together=len(METHODS), quiet=True)
    assert [entry.state for entry in book.entries] == ["done"] * len(METHODS)
    assert max(joint) >= 7
    for entry in book.entries:
        refuse_other_numbers(entry, tmp_path)


@pytest.mark.skipif(CARD, reason="does on a CPU what the test below does on a GPU")
def test_filled_up_and_recorded_each_run_is_what_it_is_alone(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU."""
    recorder, joint = Again(), count_parts(monkeypatch)
    flash_on_a_cpu(monkeypatch)
    monkeypatch.setattr("ilora.model.together.CudaRecorder", lambda: recorder)
    file = sweep_file(tmp_path, make_config, ["er", "ilora"], "adapter.dropout=0", "training.epochs=3", seeds=2)
    book = sweep(file, out=tmp_path / "s", together=4, quiet=True)
    assert max(joint) == 4
    assert 0 < recorder.recorded < recorder.replayed
    for entry in book.entries[:2]:
        refuse_other_numbers(entry, tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not CARD, reason="needs a CUDA GPU")
def test_on_a_gpu_joint_passes_are_recorded(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16, in which a run alone is recorded, too: the first losses are near."""
    joint, recorded, record = count_parts(monkeypatch), list[int](), CudaRecorder.record

    def counting(recorder: CudaRecorder, compute: Compute) -> Any:
        recorded.append(1)
        return record(recorder, compute)

    monkeypatch.setattr(CudaRecorder, "record", counting)
    file = sweep_file(tmp_path, make_config, ["er", "ilora"], "model.dtype=bfloat16", "training.epochs=3", seeds=2)
    book = sweep(file, out=tmp_path / "s", together=4, quiet=True)
    assert max(joint) == 4
    assert recorded
    for entry in book.entries[:2]:
        trained(load_config(entry.config_file), tmp_path / entry.job.label)
        first, other = lines(tmp_path / entry.job.label)[0], lines(entry.path)[0]
        assert first["loss"] == pytest.approx(other["loss"], rel=2e-2)


def test_a_run_that_diverges_or_lacks_something_leaves_the_others_as_they_are(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    file = sweep_file(tmp_path, make_config, ["sequential"])
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    wild = {"method": "sequential", "training": {"learning_rate": 9e29}}
    lost = {"method": "sequential", "adapter": {"start_from": "nowhere"}}
    content["methods"] |= {"wild": wild, "lost": lost, "er": settings("er")}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(RunsFailed, match=r"(?s)2 of 4 runs failed.*lost 1-0: exit code 2.*wild 1-0: exit code 1"):
        sweep(file, out=tmp_path / "s", together=4, quiet=True)
    assert "learning rate" in (tmp_path / "s" / "runs" / "wild" / "1-0.log").read_text(encoding="utf-8")
    book = Book(tmp_path / "s", expand(read_sweep(file, ()), file))
    assert [entry.state for entry in book.entries] == ["done", "waiting", "done", "waiting"]
    for entry in book.entries[::2]:
        refuse_other_numbers(entry, tmp_path)


def test_stopped_and_called_again_it_goes_on(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal in the middle of a joint pass; fewer places than runs."""
    file = sweep_file(tmp_path, make_config, ["sequential", "er", "ilora"])
    compute = JointDecoder.compute
    passes = iter(range(1000))

    def interrupted(decoder: JointDecoder, parts: Sequence[Part], *, hidden: bool) -> Pass:
        if next(passes) == 12:
            signal.raise_signal(signal.SIGTERM)
        return compute(decoder, parts, hidden=hidden)

    monkeypatch.setattr(JointDecoder, "compute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(file, out=tmp_path / "s", together=2, quiet=True)
    book = Book(tmp_path / "s", expand(read_sweep(file, ()), file))
    assert {entry.state for entry in book.entries} == {"waiting"}
    assert [entry.begun for entry in book.entries] == [True, True, False]
    book = sweep(file, out=tmp_path / "s", together=2, quiet=True)
    for entry in book.entries:
        assert entry.state == "done"
        refuse_other_numbers(entry, tmp_path)


def test_where_memory_ends_fewer_go_together(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a forward pass, and in a backward pass: the runs keep their micro-batches."""
    joint = count_parts(monkeypatch)
    ways = {kind: getattr(kind, name) for kind, name in ((JointDecoder, "compute"), (Pass, "backward"))}

    def compute(decoder: JointDecoder, parts: Sequence[Part], *, hidden: bool) -> Pass:
        if len(parts) > 3:
            raise torch.OutOfMemoryError("too small for four")
        return ways[JointDecoder](decoder, parts, hidden=hidden)

    def backward(taken: Pass, upstream: Mapping[int, Any]) -> Any:
        if len(taken.parts) > 2:
            raise torch.OutOfMemoryError("too small for three")
        return ways[Pass](taken, upstream)

    monkeypatch.setattr(JointDecoder, "compute", compute)
    monkeypatch.setattr(Pass, "backward", backward)
    file = sweep_file(tmp_path, make_config, ["sequential"], "training.micro_batch_size=4", seeds=4)
    book = sweep(file, out=tmp_path / "s", together=4, quiet=True)
    assert set(joint) >= {1, 2}
    assert max(joint[-8:]) <= 2
    refuse_other_numbers(book.entries[0], tmp_path)
    assert not any(entry.log.read_text(encoding="utf-8") for entry in book.entries)


def test_what_cannot_be_done_together_is_refused_at_once(make_config: MakeConfig, tmp_path: Path) -> None:
    file = sweep_file(tmp_path, make_config, ["er"])
    with pytest.raises(InputError, match="leave out --processes and --ray"):
        sweep(file, out=tmp_path / "s", together=2, ray="local")
    with pytest.raises(InputError, match="--together 0"):
        sweep(file, out=tmp_path / "s", together=0)
    with pytest.raises(InputError, match="er 1-0: trackers: wandb"):
        sweep(file, ["trackers=[wandb]"], out=tmp_path / "s", together=2)
    assert not (tmp_path / "s").exists()

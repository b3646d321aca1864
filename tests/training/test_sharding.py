"""The base in parts over two and four processes: the same run as with a whole one, from the same checkpoints.

`test_processes.py` runs methods in parts.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import T5Config

from ilora import run
from ilora.commands.connect import connect, evaluate
from ilora.config import Config, load_config
from ilora.connectivity import pictures
from ilora.data.examples import Example
from ilora.errors import InputError
from ilora.model import adapters
from ilora.model.engine import Engine
from ilora.model.fitting import fitted
from ilora.model.identity import weights_sha256
from ilora.model.load import load_model
from ilora.model.sharding import sharding_of, whole_of
from ilora.planning.need import Hardware, Layout, Work, need
from ilora.planning.shape import read_shape
from ilora.results.scores import perplexity_file
from ilora.settings import AdapterConfig, ModelConfig
from tests.helpers import MakeConfig, difference, plain, settings, weights
from tests.model.test_architectures import write
from tests.processes import forks, steps, wait_for, write_config
from tests.training.test_processes import (
    assert_equal,
    finished,
    free_port,
    predictions,
    refused,
    start_pair,
    uneven,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]

IDS = torch.tensor([[5, 6, 7, 8]])
RANKED = ["data.tasks=[{name: one, metric: accuracy, choices: [cat, dog, owl, fox], scoring: rank}, two]"]
WAYS: dict[str, list[str]] = {
    "checkpointing, output head": ["model.gradient_checkpointing=true", "adapter.target_modules=[q_proj, lm_head]"],
    "ranking": RANKED,
    "states below": [*RANKED, "adapter.layers=1", "adapter.keep_below=true"],
    "merged, perplexity": ["evaluation.merge=true"],
    "mixture of experts": [],
    "tied head": [],
}


def way(name: str, make_config: MakeConfig, tiny_model: Path, folder: Path) -> Config:
    """I-LoRA's run in one of the ways; what it needs is written into `folder`."""
    sections: dict[str, Any] = {"method": settings("ilora")}
    if name == "mixture of experts":
        sections["model"] = {"name": str(write("mixtral", tiny_model, folder / "mixtral")), "dtype": "float32"}
    if name == "tied head":
        sections["model"] = {"name": str(write("gemma3", tiny_model, folder / "tied")), "dtype": "float32"}
    made = uneven(make_config, **sections).dump()
    if name == "merged, perplexity":
        text = folder / "text.txt"
        text.write_text("one small old red : fox. " * 12, encoding="utf-8")
        made["evaluation"]["perplexity_file"] = str(text)
    return load_config(made, WAYS[name])


@pytest.fixture(scope="module")
def ways(make_config: MakeConfig, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with each way's <name>.yaml and its run <name>, by the same two processes, in parts."""
    folder = tmp_path_factory.mktemp("ways")
    commands = []
    for name in WAYS:
        file = write_config(folder / f"{name}.yaml", way(name, make_config, tiny_model, folder))
        commands.append(("run", file, "model.shard=full", "--out", folder / name))
    finished(start_pair(commands, log=folder / "log"), log=folder / "log", runs=len(commands))
    return folder


@pytest.mark.parametrize("name", list(WAYS))
def test_in_parts_as_whole(name: str, ways: Path, tmp_path: Path) -> None:
    one = run(load_config(ways / f"{name}.yaml"), tmp_path / "one", quiet=True)
    assert_equal(one.path, ways / name)
    if name == "merged, perplexity":
        files = [perplexity_file(path, "02-two") for path in (one.path, ways / name)]
        first, second = (json.loads(file.read_text())["slow"] for file in files)
        assert first["tokens"] == second["tokens"]
        assert first["perplexity"] == pytest.approx(second["perplexity"], rel=1e-5)


def checkpoints(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The newest checkpoint's tensors, and its values without times, losses and `model.shard`."""
    place = max((path / "checkpoints").iterdir())
    values = json.loads((place / "state.json").read_text())["values"]
    for key in ("train_seconds", "evaluation_seconds", "peak_memory_bytes"):
        del values["counters"][key]
    del values["position"]["validation"], values["counters"]["phase_steps"]
    del values["config"]["model"]["shard"]
    files = {file.name: load_file(file) for file in place.glob("*.safetensors")}
    return {f"{name}:{key}": value for name, found in files.items() for key, value in found.items()}, values


def test_two_processes_then_one_then_four_on_two_machines(make_config: MakeConfig, tmp_path: Path) -> None:
    """Killed in each, and gone on with in other numbers of processes; the checkpoint is as one from whole weights."""
    config = load_config(uneven(make_config, method=settings("ilora")).dump(), ["training.checkpoint_every=1"])
    whole = run(config, tmp_path / "whole", quiet=True).path
    file, made, log = write_config(tmp_path / "config.yaml", config), tmp_path / "run", tmp_path / "log"
    for count, machines, shard, kill in ((2, 1, "full", 2), (1, 1, "none", 4), (4, 2, "hybrid", None)):
        command = ("run", file, "--out", made) if kill == 2 else ("resume", made)
        log = tmp_path / f"log-{count}"
        processes = start_pair([(*command, f"model.shard={shard}")], log=log, count=count, machines=machines)
        if kill is None:
            finished(processes, log=log)
            break
        wait_for(steps(kill), made, processes[0].is_alive)
        for process in processes:
            process.kill()
            process.join()
    assert difference(weights(whole), weights(made)) <= 1e-5
    assert predictions(whole) == predictions(made)
    (ours, we), (theirs, they) = checkpoints(made), checkpoints(whole)
    assert difference(ours, theirs) <= 1e-5
    assert we == they


# -- what a process keeps, and what is refused -------------------------------------------------------------------------


def in_each(work: Callable[..., Any], *arguments: Any, folder: Path) -> list[Any]:
    """What a function returns in each of two processes; an InputError's text where it raises one."""
    port = free_port()
    processes = [forks.Process(target=_alone, args=(work, arguments, folder, rank, port)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def _alone(work: Callable[..., Any], arguments: Any, folder: Path, rank: int, port: int) -> None:
    torch.set_num_threads(1)
    names = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "LOCAL_WORLD_SIZE": 2,
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": 1,
    }
    os.environ.update({key: str(value) for key, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"})
    (folder / f"{rank}.json").write_text(json.dumps(work(Accelerator(cpu=True), *arguments)))


def loaded(accelerator: Accelerator, model: Path, **settings: Any) -> Any:
    config = ModelConfig(name=str(model), **{"dtype": "float32", "shard": "full"} | settings)
    return load_model(config, max_length=64, device=accelerator.device, accelerator=accelerator)[0]


def kept_and_refused(accelerator: Accelerator, model: Path, folder: Path) -> dict[str, Any]:
    """In each process: the hash, bytes and values of a model in parts, then what is said of those that cannot be."""
    core = loaded(accelerator, model)
    found: dict[str, Any] = {"sha256": weights_sha256(core), "bytes": sharding_of(core).local_bytes()}  # type: ignore[union-attr]
    found["values"] = []
    for ahead in (False, True):  # as on a GPU
        sharding_of(core).ahead = ahead  # type: ignore[union-attr]
        with torch.no_grad():
            found["values"].append(core(input_ids=IDS).logits.tolist())
    sharding_of(core).rejoin()  # type: ignore[union-attr]
    wrapped = adapters.attach(core, AdapterConfig(r=2), name="fast", seed=1)
    layer = core.get_decoder().layers[0].self_attn.q_proj
    for weight in adapters.parameters(wrapped, "fast").values():
        torch.nn.init.ones_(weight)
    before = whole_of(layer.get_base_layer().weight).clone()
    with adapters.merged(wrapped, "fast"):
        inside = whole_of(layer.get_base_layer().weight) - before
        found["merged"] = float((inside - layer.get_delta_weight("fast").detach()).abs().max())
    found["back"] = bool(torch.equal(whole_of(layer.get_base_layer().weight), before))
    mine = model if accelerator.process_index == 0 else folder / "lost"
    for name, changed in {
        "a lost file": {"model": mine},
        "no slices": {"model": folder / "pickled"},
        "quantized": {"model": model, "quantization": "4bit"},
        "compiled": {"model": model, "kernels": "compiled"},
        "auto": {"model": model, "quantization": "4bit", "shard": "auto"},
        "no language model": {"model": folder / "t5", "shard": "auto"},
    }.items():
        try:
            loaded(accelerator, **changed)  # type: ignore[arg-type]
            found[name] = "loaded"
        except InputError as error:
            found[name] = str(error)
    return found


@pytest.fixture(scope="module")
def answers(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("parts")
    pickled = folder / "pickled"
    pickled.mkdir()
    for file in tiny_model.iterdir():
        if file.suffix != ".safetensors":
            (pickled / file.name).write_bytes(file.read_bytes())
    torch.save(load_file(tiny_model / "model.safetensors"), pickled / "pytorch_model.bin")
    T5Config().save_pretrained(folder / "t5")
    return in_each(kept_and_refused, tiny_model, folder, folder=folder)


def test_half_of_the_weights_in_each_of_two_processes(answers: list[dict[str, Any]], tiny_model: Path) -> None:
    whole = plain(tiny_model)
    size = sum(weight.nbytes for weight in whole.parameters())
    for found in answers:
        assert found["bytes"] <= 0.55 * size
        assert found["sha256"] == weights_sha256(whole)
        for values in found["values"]:
            torch.testing.assert_close(torch.tensor(values), whole(input_ids=IDS).logits, rtol=0, atol=1e-6)
    assert sum(found["bytes"] for found in answers) == size


def test_an_adapter_is_merged_into_the_parts_and_taken_out_again(answers: list[dict[str, Any]]) -> None:
    for found in answers:
        assert found["merged"] <= 1e-6
        assert found["back"]


def test_what_cannot_lie_in_parts_is_refused_in_every_process(answers: list[dict[str, Any]]) -> None:
    for found in answers:
        assert "lost" in found["a lost file"]
        assert "safetensors" in found["no slices"]
        assert "model.quantization" in found["quantized"]
        assert "model.kernels" in found["compiled"]
        assert "model.shard" not in found["auto"]  # what lacks is said of bitsandbytes, if anything
        assert "T5Config" in found["no language model"]
    assert answers[0]["a lost file"].startswith("process 1: ")


def test_more_processes_than_rows_are_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    file = write_config(tmp_path / "config.yaml", uneven(make_config, method=settings("ilora")))
    few = {"data.limit.train=1": "task 'one'", "training.global_batch_size=1": "training.global_batch_size"}
    for number, (override, place) in enumerate(few.items()):
        assert place in refused("run", file, override, "--out", tmp_path / "run", log=tmp_path / f"log-{number}")
        assert not (tmp_path / "run").exists()


# -- between adapters --------------------------------------------------------------------------------------------------


def read_result(file: Path) -> dict[str, Any]:
    """Without what depends on time and place."""
    content: dict[str, Any] = json.loads(file.read_text())
    return {key: value for key, value in content.items() if key not in ("seconds", "made_from")}


def about(value: Any) -> Any:
    """Equal to the same with other numbers, by 1e-5."""
    if isinstance(value, dict):
        return {key: about(each) for key, each in value.items()}
    if isinstance(value, list):
        return list(map(about, value))
    return pytest.approx(value, abs=1e-5) if isinstance(value, float) else value


def test_paths_similarity_and_scores_in_parts_as_whole(
    finished: Path, sketched: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two processes share rows, the bend's gradient and the base; the first one writes and speaks."""
    made, log = Path(shutil.copytree(finished, tmp_path / "run")), tmp_path / "log"
    write_config(made / "config.yaml", load_config(made / "config.yaml", ["model.shard=full"]))
    ends = [made / "adapters" / phase / "slow" for phase in ("01-one", "02-two")]
    few = ("--points", 3, "--paths", "delta,bezier", "--bend-steps", 2, "--similarity")
    commands = [("connect", *ends, *few, "--data", made, "--out", tmp_path / "two"), ("evaluate", made, "--rows", 5)]
    processes = start_pair(commands, log=log)
    for process in processes:
        process.join(120)
    said = [log.with_name(f"log-{rank}.{kind}").read_text() for rank in range(2) for kind in ("out", "err")]
    assert [process.exitcode for process in processes] == [0, 0], said
    assert said[1:] == ["", "", ""]
    assert said[0].count("page:") == said[0].count("written:") == 1

    monkeypatch.setattr(pictures, "drawings", lambda _result: {})
    alone = {"points": 3, "paths": ("delta", "bezier"), "bend_steps": 2, "similarity": True, "quiet": True}
    for result in connect(ends, data=finished, out=tmp_path / "one", **alone):
        assert read_result(tmp_path / "two" / result["file"]) == about(read_result(tmp_path / "one" / result["file"]))
    scored = evaluate(finished, rows=5, out=tmp_path / "scored", quiet=True)["folder"]
    for file in scored.glob("*.jsonl"):
        assert file.read_text() == (made / "evaluations" / "02-two-slow-test" / file.name).read_text()


# -- memory that ends in one process -----------------------------------------------------------------------------------


def short_of_memory(accelerator: Accelerator, model: Path) -> dict[str, Any]:
    """In each process: how far gradients are from the right ones when memory ends in the second at a gathering."""
    wrapped = adapters.attach(loaded(accelerator, model), AdapterConfig(r=2, dropout=0), name="fast", seed=1)
    engine = Engine(model=wrapped, accelerator=accelerator, pad=0)
    parameters = list(adapters.parameters(engine.model, "fast").values())
    rows = [Example("one", str(number), [5 + number] * (2 + number), [7, 8]) for number in range(8)]
    gather, calls = FSDPModule.unshard, [0, 0]  # so many so far; the one that fails
    arrived: list[int] = []  # bytes of the other process

    def failing(self: Any, *, after: bool, **how: Any) -> Any:
        calls[0] += 1
        fails = accelerator.process_index == 1 and calls[0] == calls[1]
        made = None if fails and not after else gather(self, **how)
        if fails:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return made

    def counting(self: Any, **how: Any) -> Any:
        arrived.extend(one.nbytes - one.to_local().nbytes for one in self.parameters() if isinstance(one, DTensor))
        return gather(self, **how)

    def gradients(micro: int = 4) -> list[torch.Tensor]:
        def passes() -> None:
            engine.model.zero_grad()
            for batch in engine.micro_batches(rows):
                engine.forward(batch).logits.square().mean(-1).sum().backward()

        engine.micro_batch_size, calls[0] = micro, 0
        fitted(engine, engine.mine(rows), passes)
        found = [torch.zeros_like(one) if one.grad is None else one.grad.clone() for one in parameters]
        engine.all_reduce(found)
        return found

    right = gradients()
    FSDPModule.unshard = counting  # type: ignore[method-assign]
    gradients(2)
    made: dict[str, Any] = {"largest": max(float(one.abs().max()) for one in right), "away": {}, "size": {}}
    made["arrived"] = sum(arrived)
    for after in (False, True):
        FSDPModule.unshard = partialmethod(failing, after=after)  # type: ignore[method-assign, assignment]
        for number in range(1, 6):  # the ends, two layers forward, two backward
            calls[1] = number
            pairs = zip(gradients(), right, strict=True)
            made["away"][f"{number} {after}"] = max(float((one - other).abs().max()) for one, other in pairs)
            made["size"][f"{number} {after}"] = engine.micro_batch_size
    FSDPModule.unshard = gather  # type: ignore[method-assign]
    return made


def test_weights_arrive_as_planned_and_where_memory_ends_the_other_process_helps(
    tiny_model: Path, tmp_path: Path
) -> None:
    first, second = in_each(short_of_memory, tiny_model, folder=tmp_path)
    shape = read_shape(ModelConfig(name=str(tiny_model), dtype="float32"), AdapterConfig(r=2))
    work = Work(rows=8, micro_batch=2, tokens=6, longest=11, answer=2, checkpointing=False)
    planned = need(shape, work, Layout("full", 2, 1, 2), Hardware()).traffic
    assert first["arrived"] == second["arrived"] == planned
    assert set(first["size"].values()) == {4}
    assert set(second["size"].values()) == {2}
    for found in (first, second):
        assert found["largest"] > 1e-3
        assert max(found["away"].values()) <= 1e-5

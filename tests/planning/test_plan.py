"""The plan in figures against what is there: a loaded model, a saved adapter, a step that is measured."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from ilora.config import load_config
from ilora.data.examples import Example, collate
from ilora.errors import InputError
from ilora.kernels.losses import token_losses
from ilora.model import adapters
from ilora.model.engine import Engine
from ilora.model.memory import Device, Part, kept_bytes, step_bytes
from ilora.model.sizes import LayerSizes, Sizes
from ilora.planning.need import Hardware, Layout, Work, layouts, need
from ilora.planning.plan import dry_run
from ilora.planning.shape import Shape, read_shape, tensor_bytes
from ilora.settings import AdapterConfig, ModelConfig
from tests.command import Command, Refused
from tests.helpers import MakeConfig, plain

SHAPES = Path(__file__).parents[2] / "configs" / "shapes"
PUBLISHED = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "qwen3-235b-a22b": 235_093_634_560,
}


# -- exact figures -----------------------------------------------------------------------------------------------------


def test_parameters_and_adapter_are_those_of_a_run(tiny_model: Path, finished: Path) -> None:
    config = load_config(finished / "config.yaml")
    shape = read_shape(config.model, config.adapter)
    assert shape.parameters == sum(weight.numel() for weight in plain(tiny_model).parameters())
    assert shape.stored == shape.bytes == 4 * shape.parameters
    (first, *_) = sorted(finished.glob("adapters/*/fast/adapter_model.safetensors"))
    assert dry_run(config).adapter_bytes == sum(value.nbytes for value in load_file(first).values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_have_the_published_number_of_parameters(name: str, tmp_path: Path) -> None:
    values = json.loads((SHAPES / name / "config.json").read_text(encoding="utf-8"))
    few = values | {"num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(few), encoding="utf-8")
    shape = read_shape(ModelConfig(name=str(tmp_path)), AdapterConfig())
    one, other = shape.layers
    assert one == other
    assert shape.root + values["num_hidden_layers"] * one == 2 * PUBLISHED[name]  # in bfloat16


def test_of_experts_a_token_passes_through_the_chosen_ones(tmp_path: Path) -> None:
    values = json.loads((SHAPES / "qwen3-235b-a22b" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 1}), encoding="utf-8")
    shape = read_shape(ModelConfig(name=str(tmp_path)), AdapterConfig())
    attention, router, expert = 4096 * 128 * (2 * 64 + 2 * 4), 128 * 4096, 3 * 4096 * 1536
    assert [layer.matrices for layer in shape.sizes.layers] == [attention + router + 8 * expert]
    assert shape.parameters - shape.active == 120 * expert + 151936 * 4096  # the others, and the input embedding


def test_an_adapter_on_the_last_layers_leaves_the_others_without_a_backward_pass(tiny_model: Path) -> None:
    whole, half = (read_shape(ModelConfig(name=str(tiny_model)), AdapterConfig(layers=n)) for n in (2, 1))
    assert (whole.sizes.first, half.sizes.first) == (0, 1)
    assert half.trained * 2 == whole.trained
    kept = [kept_bytes(one.sizes, Part.like(1, 10, 1), Device(), checkpointing=False) for one in (whole, half)]
    assert kept[0] == 2 * kept[1]


def test_quantized_weights_are_smaller(tiny_model: Path) -> None:
    sizes = {
        bits: read_shape(ModelConfig(name=str(tiny_model), quantization=bits), AdapterConfig())
        for bits in ("none", "4bit")
    }
    assert sizes["4bit"].parameters == sizes["none"].parameters
    assert sum(sizes["4bit"].layers) < 0.3 * sum(sizes["none"].layers)
    assert sizes["4bit"].root == sizes["none"].root  # embedding and head stay


# -- a step that is measured -------------------------------------------------------------------------------------------


class Live(TorchDispatchMode):
    """The most bytes that tensors made inside the block hold at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {
            part.untyped_storage()._cdata for part in tree_leaves((args, kwargs)) if isinstance(part, torch.Tensor)
        }
        found = func(*args, **(kwargs or {}))
        for part in tree_leaves(found):
            if isinstance(part, torch.Tensor) and (storage := part.untyped_storage())._cdata not in before | self.seen:
                self.seen.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return found

    def _gone(self, storage: int, size: int) -> None:
        self.seen.discard(storage)
        self.now -= size


@pytest.mark.parametrize("modules", ["auto", "all-linear"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_is_within_a_seventh_of_the_measured_peak(modules: str, checkpointing: bool, tmp_path: Path) -> None:
    sizes = LlamaConfig(
        vocab_size=200, hidden_size=64, intermediate_size=192, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    sizes.save_pretrained(tmp_path)
    settings = AdapterConfig(r=4, target_modules=modules, dropout=0.0)
    base = LlamaForCausalLM(sizes).requires_grad_(False)
    model = adapters.attach(base, settings, name="fast", seed=0).train()
    if checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    batch = collate([Example("t", str(n), [5] * 124, [6] * 4) for n in range(4)], pad=0)
    with Live() as live:
        logits = Engine(model, Accelerator(), pad=0).forward(batch).answer_logits
        token_losses(logits, batch.targets, count=batch.label_count).sum().backward()
    shape = read_shape(ModelConfig(name=str(tmp_path), dtype="float32"), settings)
    part = Part.of(batch.examples)
    expected = step_bytes(shape.sizes, part, Device(), checkpointing=checkpointing)
    assert expected == pytest.approx(live.peak, rel=0.15)


# -- layouts -----------------------------------------------------------------------------------------------------------


SHAPE = Shape(
    parameters=1000, active=900, trained=10, bytes=2000, layers=(600, 600, 600), stored=None,
    sizes=Sizes(
        layers=(LayerSizes(matrices=300, norms=8, inputs=4, copies=8, ranks=2, mixed=False),) * 3, first=0, hidden=4,
        vocabulary=20, queries=4, keys=4, heads=2, element=2, dropout=False,
    ),
)  # fmt: skip
WORK = Work(rows=64, micro_batch=4, tokens=10.0, longest=16, answer=2, checkpointing=False)


def test_sharded_weights_are_divided_and_arrive_twice_for_each_micro_batch() -> None:
    whole, full = (need(SHAPE, WORK, Layout("", 4, 1, shards), Hardware()) for shards in (1, 4))
    assert (whole.base, whole.gathered, whole.traffic, whole.gathering) == (2000, 0, 0, 0.0)
    assert full.base == 500
    assert full.gathered == 200 + 2 * 600  # whole, beside the parts that are kept
    assert full.traffic == (200 + 2 * 4 * 1800) * 3 // 4  # 16 rows of a device in micro-batches of 4
    assert full.reduced == whole.reduced == 2 * 4 * 10 * 3 // 4
    assert full.computing == whole.computing
    assert full.bytes - full.gathered == whole.bytes - 1500


def test_layers_below_the_adapter_arrive_forward_alone() -> None:
    upper = replace(SHAPE, sizes=replace(SHAPE.sizes, first=1))
    every, some = (need(shape, WORK, Layout("", 4, 1, 4), Hardware()).traffic for shape in (SHAPE, upper))
    assert every - some == 4 * 600 * 3 // 4


def test_between_machines_the_network_decides() -> None:
    slow = Hardware(network=1)
    across, within = (need(SHAPE, WORK, Layout("", 2, 2, shards), slow) for shards in (4, 2))
    assert across.gathering == pytest.approx(across.traffic / 2e9)
    assert within.gathering == pytest.approx(within.traffic / 300e9)
    assert within.reducing == across.reducing == pytest.approx(across.reduced / 2e9)


def test_layouts_follow_the_setting_and_the_machines() -> None:
    assert [one.shards for one in layouts(None, devices=8, nodes=4)] == [1, 32, 8]
    assert [one.shards for one in layouts("full", devices=8, nodes=1)] == [8]
    assert [one.shards for one in layouts("none", devices=8, nodes=4)] == [1]
    assert [one.shards for one in layouts(None, devices=1, nodes=1)] == [1]


def test_recomputing_costs_operations_and_saves_memory() -> None:
    kept, again = (
        need(SHAPE, replace(WORK, checkpointing=flag), Layout("", 1, 1, 1), Hardware()) for flag in (False, True)
    )
    assert again.activations < kept.activations
    assert again.computing > kept.computing


def test_steps_and_rows_are_those_of_the_stream(make_config: MakeConfig) -> None:
    found = dry_run(make_config("training.max_steps=5", "data.tasks.1.settings={training.epochs: 1}"))
    assert list(found.rows.values()) == [24, 24, 24]
    assert list(found.steps.values()) == [5, 3, 3]
    assert found.work.rows == 16  # eight new ones, eight from the memory
    assert found.counted
    assert 0 < found.work.tokens <= found.work.longest <= 64


def test_a_method_that_trains_nothing_takes_no_steps(make_config: MakeConfig) -> None:
    assert set(dry_run(make_config(method={"name": "zero_shot"})).steps.values()) == {0}


def test_vectors_before_a_row_are_tokens_of_it(make_config: MakeConfig) -> None:
    plain, prompts = (dry_run(make_config(method={"name": name})).work for name in ("sequential", "l2p"))
    assert prompts.longest - plain.longest == prompts.tokens - plain.tokens == 15


@pytest.mark.parametrize("setting", ["model.quantization=4bit", "adapter.use_dora=true"])
def test_what_a_run_refuses_to_split_is_shown_whole(setting: str, make_config: MakeConfig) -> None:
    found = dry_run(make_config(setting), devices=8)
    assert [one.layout.shards for one in found.needs] == [1]
    assert found.whole is not None


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_reads_no_weights_and_writes_nothing(ilora: Command, tiny_model: Path, config: Path) -> None:
    folder = config.parent / "model"
    folder.mkdir()
    (folder / "config.json").write_text((tiny_model / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    before = sorted(config.parent.rglob("*"))
    more = ("method=er", "contrast=[sequential, lwf]")
    done = ilora("run", config, f"model={folder}", *more, "--dry-run", "--devices", 2, "--nodes", 2)
    assert done.code == 0, done.err
    for part in ("parameters", "optimizer steps", "full within a machine", "data.max_length", "yes", "sequential, lwf"):
        assert part in done.out
    assert sorted(config.parent.rglob("*")) == before


def test_what_a_run_refuses_is_said(ilora: Command, config: Path) -> None:
    """Replayed rows, which `er` adds to a step, occupy no further process."""
    few = ("method=er", "training.global_batch_size=2", "--dry-run", "--devices", 3)
    assert "warning:  a run refuses 3 devices: training.global_batch_size: 2 rows" in ilora("run", config, *few).out
    enough = ("method=er", "training.global_batch_size=3", "--dry-run", "--devices", 3)
    assert "a run refuses" not in ilora("run", config, *enough).out
    scarce = ("data.limit.train=5", "training.global_batch_size=8", "--dry-run", "--devices", 6)
    assert "a run refuses 6 devices: task 'one': 5 training rows" in ilora("run", config, *scarce).out


def test_rows_that_a_run_leaves_out_are_not_counted(make_config: MakeConfig, tmp_path: Path) -> None:
    answers = ["small old fox " * 30, "small"] * 12
    rows = [{"prompt": "red " * number + "fox", "answer": answer} for number, answer in enumerate(answers)]
    files = {}
    for split, part in {"train": rows[:16], "eval": rows[16:20], "test": rows[20:]}.items():
        files[split] = str(tmp_path / f"{split}.json")
        Path(files[split]).write_text(json.dumps(part), encoding="utf-8")
    task = {"name": "one", "metric": "edit", **files}
    found = dry_run(make_config("data.too_long=drop", data={"tasks": [task], "max_length": 64, "template": "none"}))
    assert list(found.rows.values()) == [8]
    assert found.work.answer < 10
    with pytest.raises(InputError, match=r"task 'one': an answer has \d+ tokens .* a run refuses it: .*too_long=drop"):
        dry_run(make_config(data={"tasks": [task], "max_length": 64, "template": "none"}))


def test_bad_hardware_is_refused(refused: Refused, config: Path) -> None:
    refused("run", config, "--dry-run", "--hardware", "rate=0", says=["--hardware", "rate", "greater than 0"])
    refused("run", config, "--dry-run", "--hardware", "speed=1", says=["--hardware", "speed"])
    refused("run", config, "--devices", 2, says=["--devices", "--dry-run"])


def test_a_file_that_is_no_safetensors_file_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3), "b": torch.zeros(2, dtype=torch.bfloat16)}, tmp_path / "good.safetensors")
    assert tensor_bytes(tmp_path / "good.safetensors") == 16
    (tmp_path / "bad.safetensors").write_bytes(b"{}")
    with pytest.raises(InputError, match=r"bad\.safetensors"):
        tensor_bytes(tmp_path / "bad.safetensors")


def test_the_page_on_size_says_what_the_command_says() -> None:
    page = (SHAPES.parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")
    lines = page.partition("| Llama 3.1 8B |")[2].partition("| Llama 3.1 70B |")[0].splitlines()
    config = load_config(SHAPES / "plan.yaml")
    for nodes in (1, 4):
        for one in dry_run(config, devices=8, nodes=nodes).needs:
            cells = [f"{nodes} x 8", one.layout.name, f"{one.bytes / 1e9:.3g} GB"]
            (line,) = (line for line in lines if " | ".join(cells) in line)
            assert line.endswith(f" | {one.seconds:.3g} |")

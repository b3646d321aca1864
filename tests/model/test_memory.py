"""The predicted memory of a step against what autograd saves; what is free; what then fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from ilora.data.examples import Batch, Example, collate
from ilora.kernels.attention import GROUPED
from ilora.kernels.losses import token_losses
from ilora.model import adapters
from ilora.model.engine import Engine
from ilora.model.fitting import checkpoint
from ilora.model.memory import Device, Part, free_memory, kept_bytes, round_down, rows_that_fit, step_bytes
from ilora.model.sizes import Sizes, sizes_of
from ilora.settings import AdapterConfig

ROWS = [Example("t", f"{number}", [5 + number] * (60 + 20 * number), [6] * 4) for number in range(4)]
KINDS: dict[str, tuple[Any, Any, int]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, 16),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, 32),  # norms of heads, and heads wider than the model
}


def engine_of(
    kind: str, attention: str, *, dtype: torch.dtype, modules: str, dropout: float = 0.0, device: str = "cpu"
) -> Engine:
    config, model, head = KINDS[kind]
    sizes = config(
        vocab_size=200, hidden_size=64, intermediate_size=192, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, head_dim=head,
    )  # fmt: skip
    base = model(sizes).to(device, dtype).requires_grad_(False)
    base.set_attn_implementation(attention)
    settings = AdapterConfig(r=4, target_modules=modules, dropout=dropout)
    return Engine(adapters.attach(base, settings, name="fast", seed=0).train(), Accelerator(), pad=0)


def sizes(engine: Engine, dtype: torch.dtype, *, dropout: bool = False) -> Sizes:
    return sizes_of(engine.core, element=dtype.itemsize, dropout=dropout)


def loss_of(engine: Engine, batch: Batch) -> torch.Tensor:
    return token_losses(engine.forward(batch).answer_logits, batch.targets, count=batch.label_count).sum()


def saved_bytes(engine: Engine) -> int:
    """Of all tensors that a forward pass saves for the backward pass, each storage once, weights aside."""
    weights = {weight.untyped_storage().data_ptr() for weight in engine.model.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used again
        return tensor

    batch = collate(ROWS, pad=0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_of(engine, batch)
    return sum(tensor.untyped_storage().nbytes() for place, tensor in saved.items() if place not in weights)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("modules", ["auto", "all-linear"])
@pytest.mark.parametrize("attention", ["sdpa", GROUPED])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_what_is_kept_is_what_autograd_saves(
    kind: str, dtype: torch.dtype, modules: str, attention: str, dropout: float
) -> None:
    """Padded with sdpa, packed with our own attention."""
    engine = engine_of(kind, attention, dtype=dtype, modules=modules, dropout=dropout)
    device = Device("grouped" if attention == GROUPED else "sdpa", noise=dtype.itemsize)
    found = kept_bytes(sizes(engine, dtype, dropout=dropout > 0), Part.of(ROWS), device, checkpointing=False)
    assert found == pytest.approx(saved_bytes(engine), rel=0.05)


def test_with_checkpointing_each_layer_keeps_its_input() -> None:
    engine = engine_of("llama", GROUPED, dtype=torch.bfloat16, modules="auto")
    checkpoint(engine)
    found = kept_bytes(sizes(engine, torch.bfloat16), Part.of(ROWS), Device("grouped"), checkpointing=True)
    assert found == pytest.approx(saved_bytes(engine), rel=0.15)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("modules", ["auto", "all-linear"])
def test_a_step_takes_what_is_predicted_on_a_gpu(modules: str) -> None:
    engine = engine_of("llama", GROUPED, dtype=torch.bfloat16, modules=modules, device="cuda")
    rows = [Example("t", f"{number}", [5] * 508, [6] * 4) for number in range(32)]
    batch = collate(rows, pad=0, device="cuda")
    for _ in range(2):  # the first one makes workspaces
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss_of(engine, batch).backward()  # type: ignore[no-untyped-call]
    taken = torch.cuda.max_memory_allocated() - before
    expected = step_bytes(sizes(engine, torch.bfloat16), Part.of(rows), Device(), checkpointing=False)
    assert expected == pytest.approx(taken, rel=0.15)


def test_as_many_rows_fit_as_the_room_holds() -> None:
    of = sizes(engine_of("llama", "sdpa", dtype=torch.float32, modules="auto"), torch.float32)
    one = step_bytes(of, Part.like(1, 64, 4), Device(), checkpointing=False)
    for room, rows in ((0.5 * one, 0), (10 * one, 8), (1e15, 1024)):  # 85 % of it; at most 65,536 tokens
        assert rows_that_fit(of, Device(), room, length=64, answer=4, checkpointing=False) == rows
    assert step_bytes(of, Part.like(8, 64, 4), Device(), checkpointing=True) < 5 * one


def test_numbers_of_tokens_are_few() -> None:
    assert [round_down(number) for number in (1, 7, 17, 1000, 1024, 1200)] == [1, 7, 16, 960, 1024, 1152]


def test_free_memory_is_the_kernels_or_the_containers(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    assert free_memory(cpu, system=tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    assert free_memory(cpu, system=tmp_path) == 5000 * 1024
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    for limit, free in (("max", 5000 * 1024), ("3000000", 3_000_000 - 1_000_000 + 200_000)):
        for name, text in (("max", limit), ("current", "1000000"), ("stat", "anon 5\ninactive_file 200000\n")):
            (group / f"memory.{name}").write_text(f"{text}\n")
        assert free_memory(cpu, system=tmp_path) == free
    assert free_memory(torch.device("meta"), system=tmp_path) is None


def test_on_a_gpu_what_is_free_ends_with_the_processs_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1000 bytes others have 100; torch holds 250 here, of which 200 are in use."""
    card = torch.device("cuda")
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (650, 1000))
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda _: 200)
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda _: 250)
    for share, free in ((1.0, 700), (0.5, 300), (0.25, 50)):
        monkeypatch.setattr("torch.cuda.get_per_process_memory_fraction", lambda _, share=share: share)
        assert free_memory(card) == free

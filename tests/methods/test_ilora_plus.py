"""I-LoRA+: where on the path a task ends, and where the next one begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import LlamaForCausalLM

from ilora import adapters, run
from ilora.config import AdapterConfig, TrainingConfig
from ilora.data.examples import Example
from ilora.errors import InputError
from ilora.memory import ReplayMemory
from ilora.methods.ilora_plus import OLD, ILoRAPlus
from ilora.training.learner import Learner
from tests.conftest import MakeConfig
from tests.methods.test_contract import difference, weights

ROWS = [
    Example("one", "a", [13, 14, 15], [16, 1]),
    Example("one", "b", [17], [18, 1]),
    Example("one", "c", [19, 20], [18, 21, 1]),
    Example("two", "d", [5, 6, 7, 8], [9, 1]),
]


def made(tiny_model: Path, **settings: Any) -> ILoRAPlus:
    """In its second task, with three adapters that differ."""
    base = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).requires_grad_(False)
    model = adapters.attach(base, AdapterConfig(r=4, alpha=8, dropout=0.0), name="fast", seed=1)
    learner = Learner(model, ReplayMemory(10, seed=0), Accelerator(), TrainingConfig(), seed=0, pad=1)
    learner.memory.offer(ROWS)
    method = ILoRAPlus(learner, ILoRAPlus.Config(name="ilora+", **settings))
    method.begin_task()
    learner.task_index = 2
    torch.manual_seed(3)
    for name in ("fast", "slow", OLD):
        for parameter in adapters.parameters(model, name).values():
            parameter.data.normal_(std=0.3)
    return method


def values(method: ILoRAPlus, name: str) -> Tensor:
    return torch.cat([v.detach().flatten() for v in adapters.parameters(method.learner.model, name).values()])


@pytest.mark.parametrize(("t", "index", "expected"), [(0.3, 2, 0.3), ("mean", 2, 0.5), ("mean", 4, 0.25), (1, 3, 1.0)])
def test_a_task_ends_between_the_minima(tiny_model: Path, t: Any, index: int, expected: float) -> None:
    method = made(tiny_model, t=t)
    method.learner.task_index = index
    old, new, fast = (values(method, name) for name in (OLD, "slow", "fast"))
    method.end_task()
    torch.testing.assert_close(values(method, "slow"), (1 - expected) * old + expected * new)
    torch.testing.assert_close(values(method, OLD), old, atol=0, rtol=0)
    torch.testing.assert_close(values(method, "fast"), fast, atol=0, rtol=0)


def test_the_first_task_ends_where_it_is(tiny_model: Path) -> None:
    method = made(tiny_model, t=0.3)
    method.learner.task_index = 1
    before = values(method, "slow")
    method.end_task()
    assert torch.equal(values(method, "slow"), before)


def plain_loss(method: ILoRAPlus, t: float) -> float:
    """The mean over tasks of their rows' mean loss an answer token, by transformers' own forward pass, row by row."""
    model = method.learner.model
    slow, old = adapters.parameters(model, "slow"), adapters.parameters(model, OLD)
    before = {key: value.detach().clone() for key, value in slow.items()}
    sums: dict[str, list[float]] = {}
    with torch.no_grad(), adapters.active(model, "slow"):
        for key, value in slow.items():
            value.copy_((1 - t) * old[key] + t * before[key])
        for row in ROWS:
            logits = model(torch.tensor([row.prompt + row.answer])).logits[0]
            for place, token in enumerate(row.answer, len(row.prompt)):
                sums.setdefault(row.task, []).append(float(-logits[place - 1].log_softmax(-1)[token]))
        for key, value in slow.items():
            value.copy_(before[key])
    return sum(sum(losses) / len(losses) for losses in sums.values()) / len(sums)


@pytest.mark.parametrize("seed", range(4))
def test_memory_chooses_the_point_of_least_loss(tiny_model: Path, seed: int) -> None:
    method = made(tiny_model, t="memory", path_points=6)
    torch.manual_seed(seed)
    for name in ("slow", OLD):
        for parameter in adapters.parameters(method.learner.model, name).values():
            parameter.data.normal_(std=0.5)
    losses = [plain_loss(method, step / 5) for step in range(6)]
    slow = values(method, "slow")
    chosen = method.chosen()
    assert chosen == losses.index(min(losses)) / 5
    assert torch.equal(values(method, "slow"), slow)  # choosing moves nothing


def test_held_out_rows_judge_and_are_never_replayed(tiny_model: Path) -> None:
    method = made(tiny_model, t="memory", path_points=6, held_out=0.5)
    learner = method.learner
    judges = [row.id for row in ROWS if not method.replays(row)]
    assert 0 < len(judges) < len(ROWS)
    learner.current_tasks = frozenset(["three"])
    new = [Example("three", f"n{n}", [5, n], [9, 1]) for n in range(4, 8)]
    for learner.step in range(1, 20):
        learner.epoch = 1
        replayed = method.extend_batch(list(new))[len(new) :]
        assert replayed
        assert not {row.id for row in replayed} & set(judges)
    before = method._loss_of_memory()
    learner.memory.examples = [row for row in learner.memory.examples if row.id in judges]
    assert method._loss_of_memory() == before  # the others have no say


def test_without_memory_there_is_nothing_to_choose_by(tiny_model: Path) -> None:
    method = made(tiny_model, t="memory")
    method.learner.memory.examples.clear()
    assert method.chosen() == 1.0


def test_the_next_task_begins_there(tiny_model: Path) -> None:
    method = made(tiny_model, t=0.5)
    method.end_task()
    method.learner.task_index = 3
    method.begin_task()
    assert torch.equal(values(method, "fast"), values(method, "slow"))
    assert torch.equal(values(method, OLD), values(method, "slow"))


def test_at_t_1_it_is_ilora_with_a_slow_start(make_config: MakeConfig, tmp_path: Path) -> None:
    plus = run(make_config(method={"name": "ilora+", "memory_size": 20, "t": 1}), tmp_path / "plus", quiet=True)
    plain = run(
        make_config(method={"name": "ilora", "memory_size": 20, "next_task_from": "slow"}),
        tmp_path / "plain",
        quiet=True,
    )
    assert difference(weights(plus.path), weights(plain.path)) == 0.0


@pytest.mark.parametrize(
    ("key", "value"), [("t", "best"), ("t", 1.5), ("t", -0.1), ("path_points", 1), ("inference", "fast")]
)
def test_bad_settings(make_config: MakeConfig, key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"method\.{key}"):
        make_config(method={"name": "ilora+", key: value})


def test_results_say_where_tasks_ended(make_config: MakeConfig, tmp_path: Path) -> None:
    made = run(make_config(method={"name": "ilora+", "memory_size": 20, "t": "mean"}), tmp_path / "run", quiet=True)
    assert made.results["notes"] == {"t": {"two": 0.5, "three": pytest.approx(1 / 3)}}

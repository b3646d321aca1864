"""I-LoRA+: pseudo-rehearsal, where on the path a task ends, and where the next one begins."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from ilora import run
from ilora.data.examples import Example, Totals, collate
from ilora.errors import InputError
from ilora.methods.ilora import ILoRA
from ilora.methods.ilora_plus import OLD, ILoRAPlus
from ilora.model import adapters
from ilora.replay.memory import ReplayMemory
from ilora.settings import AdapterConfig
from tests.helpers import SMALL, MakeConfig, difference, move, trained, view

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
    run = view(model, pad=1, memory=ReplayMemory(10, seed=0))
    run.memory.offer(ROWS)
    method = ILoRAPlus(run, ILoRAPlus.Config(name="ilora+", **settings))
    method.begin_task()
    move(method, task_index=2)
    torch.manual_seed(3)
    for name in ("fast", "slow", OLD):
        for parameter in adapters.parameters(model, name).values():
            parameter.data.normal_(std=0.3)
    return method


def values(method: ILoRAPlus, name: str) -> Tensor:
    return torch.cat([v.detach().flatten() for v in adapters.parameters(method.engine.model, name).values()])


@pytest.mark.parametrize(("t", "index", "expected"), [(0.3, 2, 0.3), ("mean", 2, 0.5), ("mean", 4, 0.25), (1, 3, 1.0)])
def test_a_task_ends_between_the_minima(tiny_model: Path, t: Any, index: int, expected: float) -> None:
    method = made(tiny_model, t=t)
    move(method, task_index=index)
    old, new, fast = (values(method, name) for name in (OLD, "slow", "fast"))
    method.end_task()
    torch.testing.assert_close(values(method, "slow"), (1 - expected) * old + expected * new)
    torch.testing.assert_close(values(method, OLD), old, atol=0, rtol=0)
    torch.testing.assert_close(values(method, "fast"), fast, atol=0, rtol=0)


def test_the_first_task_ends_where_it_is(tiny_model: Path) -> None:
    method = made(tiny_model, t=0.3)
    move(method, task_index=1)
    before = values(method, "slow")
    method.end_task()
    assert torch.equal(values(method, "slow"), before)


PSEUDO = [
    Example("zero", "p", [30, 13, 14, 31], [16, 1], pseudo=True),
    Example("zero", "q", [30, 5, 31], [18, 21, 1], pseudo=True),
]


def plain_kl(method: ILoRAPlus, temperature: float) -> float:
    """τ² · KL(before ‖ now) over the answer tokens of PSEUDO, by transformers' own forward pass, row by row."""
    model, sums = method.engine.model, []
    for row in PSEUDO:
        said = {}
        for name in (OLD, "fast"):
            with torch.no_grad(), adapters.active(model, name):
                logits = model(torch.tensor([row.prompt + row.answer])).logits[0, len(row.prompt) - 1 : -1]
                said[name] = (logits / temperature).softmax(-1)
        sums += [float((p * (p / q).log()).sum()) for p, q in zip(said[OLD], said["fast"], strict=True)]
    return temperature**2 * sum(sums) / len(sums)


@pytest.mark.parametrize("micro", [1, 2, 3, 6])
def test_pseudo_rows_are_held_to_what_was_said_before_the_task(tiny_model: Path, micro: int) -> None:
    method = made(tiny_model, pseudo_strength=3.0, temperature=1.5, strength=0.7)
    rows = [*ROWS[:3], replace(ROWS[3], replayed=True), *PSEUDO]
    totals = Totals.of(rows)
    parts = [collate(rows[start : start + micro], pad=1) for start in range(0, len(rows), micro)]
    loss = sum(float(method.loss(part, totals).detach()) for part in parts)
    real = float(ILoRA.loss(method, collate(rows[:4], pad=1), Totals.of(rows[:4])).detach())
    assert loss == pytest.approx(real + 3.0 * plain_kl(method, 1.5), rel=1e-4)
    assert plain_kl(method, 1.5) > 0.01


def test_only_the_fast_adapter_is_pulled(tiny_model: Path) -> None:
    method = made(tiny_model)
    method.loss(collate(PSEUDO, pad=1), Totals.of(PSEUDO)).backward()
    model = method.engine.model
    assert any(p.grad is not None and p.grad.any() for p in adapters.parameters(model, "fast").values())
    assert all(p.grad is None for name in ("slow", OLD) for p in adapters.parameters(model, name).values())


def in_task(method: ILoRAPlus, task: str, index: int, rows: list[Example]) -> None:
    move(method, task=task, task_index=index, current_tasks=frozenset([task]))
    method.run.rows = rows
    method.begin_task()


def test_a_step_asks_the_present_texts_the_earlier_questions(tiny_model: Path) -> None:
    method = made(tiny_model, pseudo_share=0.5)
    method.memory.examples.clear()
    first = [Example("first", f"f{n}", [30, 10 + n, 31], [16 + n % 2, 1]) for n in range(6)]
    second = [Example("second", f"s{n}", [32, 33, 20 + n, 40 + n], [9, 1]) for n in range(6)]
    in_task(method, "first", 1, first)
    assert method.extend_batch(first[:4]) == first[:4]  # nothing earlier to ask
    method.end_task()
    in_task(method, "second", 2, second)
    batch = method.extend_batch(second[:4])
    assert batch[:4] == second[:4]
    made_up = [row for row in batch if row.pseudo]
    assert len(made_up) == 2
    for row in made_up:
        assert row.task == "first"
        assert (row.prompt[0], row.prompt[-1]) == (30, 31)
        assert row.prompt[1:-1] in [[20 + n] for n in range(6)]  # as long as the task's own rows at most
        assert row.answer in ([16, 1], [17, 1])
    method.end_task()
    assert [frame.task for frame in method.frames] == ["first", "second"]


def greedy(method: ILoRAPlus, prompt: list[int], longest: int) -> list[int]:
    """What the answering adapter of before the task says, by transformers' own forward pass, a token at a time."""
    model, ids = method.engine.model, list(prompt)
    with torch.no_grad(), adapters.active(model, OLD):
        while len(ids) < len(prompt) + longest and ids[len(prompt) :][-1:] != [1]:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize(("answers", "different", "writes"), [("written", 3, 1), ("auto", 20, 1), ("auto", 3, 0)])
def test_the_adapter_of_before_the_task_writes_answers(
    tiny_model: Path, answers: str, different: int, writes: bool
) -> None:
    method = made(tiny_model, pseudo_answers=answers)
    method.memory.examples.clear()
    first = [Example("first", f"f{n}", [30, 10 + n, 12, 13, 31], [16 + n % different, 50, 1]) for n in range(20)]
    in_task(method, "first", 1, first)
    method.end_task()
    second = [Example("second", f"s{n}", [32, 33, 20 + n, 40 + n], [9, 1]) for n in range(8)]
    in_task(method, "second", 2, second)
    for parameter in adapters.parameters(method.engine.model, OLD).values():
        parameter.data.normal_(std=0.3, generator=torch.Generator().manual_seed(7))
    method.engine.model.train()
    rows = [row for row in method.extend_batch(second) if row.pseudo]
    assert len(rows) == 8
    assert all(len(row) <= len(first[0]) for row in rows)
    kept = [row.answer for row in first]
    for row in rows:
        expected = greedy(method, row.prompt, 3)
        assert (row.answer == expected) == writes
        assert (row.answer in kept) == (not writes)
    assert method.engine.model.training


def test_frames_survive_a_stop(tiny_model: Path) -> None:
    method, other = made(tiny_model), made(tiny_model)
    rows = [Example("first", f"f{n}", [30, 10 + n, 31], [16, 1]) for n in range(6)]
    second = [Example("second", f"s{n}", [32, 20 + n], [9, 1]) for n in range(6)]
    in_task(method, "first", 1, rows)
    method.end_task()
    other.load_state_dict(json.loads(json.dumps(method.state_dict())))
    for one in (method, other):
        in_task(one, "second", 2, second)
    move(method, step=3)
    move(other, step=3)
    found = [[row for row in one.extend_batch(second[:4]) if row.pseudo] for one in (method, other)]
    assert found[0]
    assert found[0] == found[1]
    assert method.stored()["frames"] == 4 * 4  # 30, 31 and one answer of two tokens


@pytest.mark.parametrize(("share", "least", "most"), [(0.25, 30, 70), (1.0, 200, 200), (1.5, 280, 320)])
def test_the_share_is_kept_on_average(tiny_model: Path, share: float, least: int, most: int) -> None:
    method = made(tiny_model, pseudo_share=share)
    in_task(method, "first", 1, [Example("first", f"f{n}", [30, 10 + n, 31], [16, 1]) for n in range(6)])
    method.end_task()
    second = [Example("second", f"s{n}", [32, 20 + n], [9, 1]) for n in range(6)]
    in_task(method, "second", 2, second)
    count = 0
    for step in range(1, 101):
        move(method, step=step)
        count += sum(row.pseudo for row in method.extend_batch(second[:2]))
    assert least <= count <= most


def test_without_pseudo_rows_nothing_is_kept_for_them(tiny_model: Path) -> None:
    method = made(tiny_model, pseudo_share=0)
    in_task(method, "first", 1, [Example("first", f"f{n}", [30, 10 + n, 31], [16, 1]) for n in range(6)])
    method.end_task()
    assert method.frames == []


def plain_loss(method: ILoRAPlus, t: float) -> float:
    """The mean over tasks of their rows' mean loss an answer token, by transformers' own forward pass, row by row."""
    model = method.engine.model
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
        for parameter in adapters.parameters(method.engine.model, name).values():
            parameter.data.normal_(std=0.5)
    losses = [plain_loss(method, step / 5) for step in range(6)]
    slow = values(method, "slow")
    chosen = method.chosen()
    assert chosen == losses.index(min(losses)) / 5
    assert torch.equal(values(method, "slow"), slow)  # choosing moves nothing


def test_without_memory_there_is_nothing_to_choose_by(tiny_model: Path) -> None:
    method = made(tiny_model, t="memory")
    method.memory.examples.clear()
    assert method.chosen() == 1.0


def test_the_next_task_begins_there(tiny_model: Path) -> None:
    method = made(tiny_model, t=0.5)
    method.end_task()
    move(method, task_index=3)
    method.begin_task()
    assert torch.equal(values(method, "fast"), values(method, "slow"))
    assert torch.equal(values(method, OLD), values(method, "slow"))


def test_without_pseudo_rows_it_is_ilora_with_a_slow_start(make_config: MakeConfig, tmp_path: Path) -> None:
    plus = {"name": "ilora+", "memory_size": 20, "strength": 1, "pseudo_share": 0}
    plain = {"name": "ilora", "memory_size": 20, "next_task_from": "slow", "memory_policy": "balanced"}
    left = [trained(make_config(*SMALL, method=method), tmp_path / str(method["name"])) for method in (plus, plain)]
    assert difference(*left) == 0.0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("t", "best"),
        ("t", 1.5),
        ("t", -0.1),
        ("path_points", 1),
        ("inference", "fast"),
        ("pseudo_share", -1),
        ("temperature", 0),
    ],
)
def test_bad_settings(make_config: MakeConfig, key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"method\.{key}"):
        make_config(method={"name": "ilora+", key: value})


def test_results_say_where_tasks_ended(make_config: MakeConfig, tmp_path: Path) -> None:
    made = run(
        make_config(*SMALL, method={"name": "ilora+", "memory_size": 20, "t": "mean"}), tmp_path / "run", quiet=True
    )
    assert made.results["notes"]["t"] == {"two": 0.5, "three": pytest.approx(1 / 3)}
    assert (
        made.results["notes"]["pseudo_rows"].keys() == made.results["notes"]["frames"].keys() == {"one", "two", "three"}
    )
    assert made.results["notes"]["pseudo_rows"]["one"] == 0

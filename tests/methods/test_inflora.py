"""InfLoRA: A by hand, what it protects over a run, and the memory of subspaces against GPM by plain SVD."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ilora.data.examples import Example
from ilora.methods.inflora import InfLoRA
from ilora.methods.subspace import Protected
from ilora.model import adapters
from ilora.model.adapted import A_OF, B_OF, layers
from ilora.settings import AdapterConfig
from tests.helpers import MakeConfig, begin, plain, snapshot, train, view

INFLORA = {"name": "inflora"}
CPU = torch.device("cpu")


def span(columns: Tensor) -> Tensor:
    """The projector on their span, which knows no signs and no turns."""
    basis, _ = torch.linalg.qr(columns.double())
    return basis @ basis.T


# -- the subspaces -------------------------------------------------------------------------------------------------


def tasks(seed: int, *, inputs: int = 12, rank: int = 3) -> list[Tensor]:
    """Inputs (inputs, tokens) of some tasks, each mostly in a few directions of its own."""
    torch.manual_seed(seed)
    return [
        torch.randn(inputs, rank) @ torch.randn(rank, 40) + 0.1 * torch.randn(inputs, 40) for _ in range(inputs // 2)
    ]


def gpm(found: Tensor, inputs: Tensor, threshold: float) -> Tensor:
    """GPM as its paper has it: basis M (inputs, k), task inputs H, by SVD of the residual."""
    rest = inputs - found @ (found.T @ inputs)
    left, sizes, _ = torch.linalg.svd(rest, full_matrices=False)
    whole, count = inputs.square().sum(), 0
    while (whole - sizes[count:].square().sum()) / whole < threshold:
        count += 1
    return torch.cat([found, left[:, :count]], dim=1)


@pytest.mark.parametrize("seed", range(4))
def test_it_grows_as_gpm_does(seed: int) -> None:
    """Also after it has gone over to the directions that are free, once they are fewer."""
    ours, theirs, forms = Protected.nothing(12, CPU), torch.zeros(12, 0, dtype=torch.float64), []
    for inputs in tasks(seed):
        theirs = gpm(theirs, inputs.double(), 0.9)
        ours = ours.grown(inputs @ inputs.T, threshold=0.9)
        forms.append(ours.free)
        basis = ours.basis.double()
        torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]).double(), rtol=0, atol=1e-5)
        protected = torch.eye(12).double() - basis @ basis.T if ours.free else basis @ basis.T
        torch.testing.assert_close(protected, span(theirs), rtol=0, atol=1e-4)
        assert ours.share == pytest.approx(theirs.shape[1] / 12)
        assert 2 * basis.shape[1] <= 12
    assert set(forms) == {False, True}


def test_what_is_left_is_orthogonal_and_in_order() -> None:
    first, second = tasks(7)[:2]
    held = Protected.nothing(12, CPU).grown(first @ first.T, threshold=0.99)
    energies, directions = held.left_of(second @ second.T)
    left, sizes, _ = torch.linalg.svd(second.double() - span(held.basis) @ second.double(), full_matrices=False)
    count = len(energies)
    torch.testing.assert_close(energies, sizes[:count].square(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        (directions * left[:, :count]).sum(0).abs(), torch.ones(count).double(), atol=1e-3, rtol=0
    )
    assert float((held.basis.T.double() @ directions).abs().max()) < 1e-6
    assert bool((directions.gather(0, directions.abs().argmax(0, keepdim=True)) > 0).all())


def test_nothing_is_left_of_inputs_that_are_protected() -> None:
    moment = tasks(1)[0] @ tasks(1)[0].T
    whole = Protected.nothing(12, CPU).grown(moment, threshold=1.0)
    assert whole.left_of(moment)[1].shape[1] == 0
    assert whole.grown(moment, threshold=1.0) is whole


# -- the method ----------------------------------------------------------------------------------------------------


def inputs_by_hand(tiny_model: Path, rows: list[Example]) -> dict[str, Tensor]:
    """(inputs, tokens) of every layer that carries an adapter here, by transformers alone."""
    base, found = plain(tiny_model), {}
    for path, module in base.named_modules():
        if path.endswith(("q_proj", "v_proj")):
            key = f"base_model.model.{path}"
            found[key] = torch.zeros(32, 0)

            def see(_: object, inputs: tuple[Tensor], key: str = key) -> None:
                found[key] = torch.cat([found[key], inputs[0][0].T], dim=1)

            module.register_forward_pre_hook(see)
    with torch.no_grad():
        for row in rows:
            base(input_ids=torch.tensor([row.prompt + row.answer]))
    return found


def test_a_by_hand(tiny_model: Path) -> None:
    """The leading left singular vectors of (I - M Mᵀ) H, of length 1/√3."""
    rows = [Example("two", f"{n}", list(range(4 + n, 12 + 5 * n)), [9, 1]) for n in range(6)]
    model = adapters.attach(plain(tiny_model), AdapterConfig(r=4, alpha=8, dropout=0.1), name="fast", seed=0)
    method = InfLoRA(view(model, pad=3, rows=rows, task="two", task_index=2), InfLoRA.Config(**INFLORA))
    torch.manual_seed(5)
    basis, _ = torch.linalg.qr(torch.randn(32, 10))
    method.protected = {path: Protected(basis) for path in layers(model)}
    method.begin_task()
    new = adapters.parameters(model, "fast")
    for path, inputs in inputs_by_hand(tiny_model, rows).items():
        left, _, _ = torch.linalg.svd(inputs - basis @ (basis.T @ inputs), full_matrices=False)
        down = new[A_OF.format(path)].detach()
        torch.testing.assert_close(down.norm(dim=1), torch.full((4,), 3**-0.5))
        torch.testing.assert_close((3**0.5 * down * left[:, :4].T).sum(1).abs(), torch.ones(4), rtol=0, atol=1e-3)


def test_a_new_task_does_not_touch_what_is_protected(make_config: MakeConfig, tmp_path: Path) -> None:
    """Its own ΔW is zero on every protected direction; A is not trained; what earlier tasks had stays to the bit."""
    session = begin(make_config("adapter.dropout=0", method=INFLORA | {"threshold": 0.8}), tmp_path / "run")
    method, model = session.method, session.method.engine.model
    assert isinstance(method, InfLoRA)
    held: dict[str, Protected] = {}
    ends: list[dict[str, Tensor]] = []
    for number, _ in enumerate(train(session)):
        new = snapshot(model, "fast")
        for path, protected in held.items():
            assert not protected.free
            update = new[B_OF.format(path)] @ new[A_OF.format(path)]
            assert float(update.norm()) > 1e-4
            assert float((update @ protected.basis).norm()) < 1e-5 * float(update.norm())
        for name, end in zip(("task-0001", "task-0002"), ends, strict=False):
            assert all(torch.equal(value, end[key]) for key, value in snapshot(model, name).items())
        ends.append(new)
        held = dict(method.protected)
        assert method.notes()["protected_share"] > 0.05 * (number + 1)
    assert all(
        "lora_A" not in key or not value.requires_grad for key, value in adapters.parameters(model, "fast").items()
    )
    assert sum(value.numel() for value in method.trainable) == sum(v.numel() for k, v in ends[0].items() if "_B" in k)


def test_where_all_is_protected_nothing_is_left_to_learn(tiny_model: Path) -> None:
    """And nothing breaks: A is zero, and so is the update."""
    rows = [Example("two", f"{n}", list(range(4 + n, 12 + 5 * n)), [9, 1]) for n in range(6)]
    model = adapters.attach(plain(tiny_model), AdapterConfig(r=4, alpha=8), name="fast", seed=0)
    method = InfLoRA(view(model, pad=3, rows=rows, task="one", task_index=1), InfLoRA.Config(**INFLORA, threshold=1))
    method.end_task()
    assert method.notes()["protected_share"] > 0.9
    method.begin_task()
    assert not any(value.any() for key, value in adapters.parameters(model, "fast").items() if "lora_A" in key)

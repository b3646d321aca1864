"""What GEM and A-GEM bound: the gradient, or the step that AdamW makes of it; and which of the two a run has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from ilora import resume, run
from ilora.errors import IloraError
from ilora.methods.agem import AGEM
from ilora.methods.gem import GEM
from ilora.methods.projection import GradientProjection
from ilora.training import session as session_module
from tests.helpers import FEW_SCORES, MakeConfig, begin, difference, run_killed, sealed, train, trained, weights

# A model that has learnt something: at its beginning, gradients of all tasks agree.
LONG = ("training.epochs=6", "training.learning_rate=0.03")


def flat(method: GradientProjection[Any]) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in method.trainable])


@pytest.mark.parametrize("project", ["gradient", "update"])
@pytest.mark.parametrize("kind", [GEM, AGEM])
def test_only_the_projected_step_holds_the_bound(
    kind: type[GradientProjection[Any]],
    project: str,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step may raise no remembered task's loss to first order: step · g_k ≤ 0, g_k at the weights before it."""
    found: list[tuple[Tensor, Tensor]] = []
    cosines: list[float] = []
    references, step = kind.references, session_module.optimizer_step

    def noting(self: GradientProjection[Any], tasks: list[str]) -> Tensor:
        found.append((references(self, tasks), flat(self)))
        return found[-1][0]

    def stepping(method: Any, *args: Any) -> Any:
        found.clear()
        report = step(method, *args)
        for bounds, before in found:
            moved = flat(method) - before
            cosines.extend((bounds @ moved / (bounds.norm(dim=1) * moved.norm())).tolist())
        return report

    monkeypatch.setattr(kind, "references", noting)
    monkeypatch.setattr(session_module, "optimizer_step", stepping)
    method = {"name": "gem" if kind is GEM else "agem", "memory_size": 30, "memory_batch": 30, "project": project}
    config = make_config(*LONG, "adapter.dropout=0", method=method)
    for _ in train(begin(config, tmp_path / "run")):
        pass
    assert len(cosines) == (18 + 36 if kind is GEM else 36)
    if project == "update":
        assert max(cosines) < 1e-4
    else:
        assert sum(cosine > 0.01 for cosine in cosines) >= 5  # AdamW has carried these back
    assert min(cosines) < -0.01


def test_steps_within_the_bound_are_adamw_s_own(make_config: MakeConfig, tmp_path: Path) -> None:
    """In the first task nothing is bounded, and the two are one."""
    first = [
        trained(make_config("data.tasks=[one]", method={"name": "gem", "project": project}), tmp_path / project)
        for project in ("gradient", "update")
    ]
    assert difference(*first) == 0.0


def test_a_new_run_projects_the_step(make_config: MakeConfig, tmp_path: Path) -> None:
    """Unless told otherwise; in its contrast runs too, and what holds is written down."""
    config = make_config(
        *FEW_SCORES,
        *("data.tasks=[one]", "training.epochs=1"),
        method="gem",
        contrast=["agem", {"name": "er"}],
    )
    assert config.method.project is None
    folder = run(config, tmp_path / "run", quiet=True).path
    written = [yaml.safe_load((folder / part / "config.yaml").read_text()) for part in (".", "contrast/agem")]
    assert [values["method"]["project"] for values in written] == ["update", "update"]
    told = make_config(
        *FEW_SCORES, "data.tasks=[one]", "training.epochs=1", method={"name": "gem", "project": "gradient"}
    )
    folder = run(told, tmp_path / "told", quiet=True).path
    assert yaml.safe_load((folder / "config.yaml").read_text())["method"]["project"] == "gradient"


def test_a_run_that_began_before_the_choice_goes_on_as_it_was(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files do not have the setting: it projects the gradient to its end."""
    method = {"name": "gem", "memory_size": 20, "project": "gradient"}
    short = (*FEW_SCORES, *LONG, "data.tasks=[one, two]")
    config = make_config(*short, method=method)
    whole = run(config, tmp_path / "whole", quiet=True)
    folder = tmp_path / "old"
    run_killed(config, folder, monkeypatch, at="step", count=22)
    values = yaml.safe_load((folder / "config.yaml").read_text())
    del values["method"]["project"]
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    for file in folder.glob("checkpoints/*/state.json"):
        state = json.loads(file.read_text())
        del state["values"]["config"]["method"]["project"]
        file.write_text(sealed(state))
    resumed = resume(folder, quiet=True)
    assert difference(weights(whole.path), weights(resumed.path)) == 0.0
    other = trained(make_config(*short, method=method | {"project": "update"}), tmp_path / "update")
    assert difference(weights(whole.path), other) > 1e-5


@pytest.mark.parametrize("project", ["gradient", "update"])
def test_a_reference_that_is_not_finite_moves_nothing(
    project: str, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = begin(make_config(method={"name": "agem", "memory_size": 20, "project": project}), tmp_path / "run")
    stream = train(session)
    next(stream)
    before = flat(session.method)
    monkeypatch.setattr(AGEM, "references", lambda self, _: torch.full_like(flat(self), torch.nan)[None])
    with pytest.raises(IloraError, match="gradient is not finite"):
        next(stream)
    assert torch.equal(flat(session.method), before)

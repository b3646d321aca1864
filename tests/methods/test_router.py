"""The router: prototypes, the nearest one, and that every row is answered by the adapter it was sent to."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from ilora import run
from ilora.config import Config
from ilora.data.examples import Batch, Example, collate
from ilora.evaluation.scoring import evaluate
from ilora.methods.router import Router
from ilora.model import adapters
from ilora.results.scores import read_records
from ilora.training.session import Session
from tests.helpers import LABELS, MakeConfig, begin, plain, train

ROUTER = {"name": "router"}
NAMES = ("one", "two", "three")


@torch.no_grad()
def feature(base: LlamaForCausalLM, row: Example) -> Tensor:
    """The mean last hidden state of a prompt alone, by plain transformers."""
    return base(input_ids=torch.tensor([row.prompt]), output_hidden_states=True).hidden_states[-1][0].mean(0)


def trained(config: Config, folder: Path) -> tuple[Session, Router]:
    """After all tasks, with adapters made so different that every row tells which one computed it."""
    session = begin(config, folder)
    for _ in train(session):
        pass
    assert isinstance(session.method, Router)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in adapters.names(session.method.engine.model):
            for parameter in adapters.parameters(session.method.engine.model, name).values():
                parameter.copy_(torch.randn(parameter.shape, generator=source))
    session.method.engine.model.eval()
    return session, session.method


@pytest.fixture(scope="module")
def whole(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, Router]:
    """After all tasks; tests only compute with it."""
    return trained(make_config(method=ROUTER), tmp_path_factory.mktemp("router") / "run")


def mixed(session: Session) -> list[Example]:
    """Rows of all tasks, in turn, of several lengths."""
    columns = (session.stream.scored[name].examples[:3] for name in NAMES)
    return [row for group in zip(*columns, strict=True) for row in group]


# -- the choice ----------------------------------------------------------------------------------------------------


def test_the_nearest_prototype_is_by_cosine(make_config: MakeConfig, tmp_path: Path) -> None:
    method = begin(make_config(method=ROUTER), tmp_path / "run").method
    assert isinstance(method, Router)
    vectors = {"task-0001": [10.0, 0.0], "task-0002": [0.0, 0.1], "task-0003": [3.0, 3.0]}
    method.prototypes = {name: torch.tensor(vector) for name, vector in vectors.items()}
    features = torch.tensor([[9.0, 1.0], [0.1, 9.0], [1.0, 0.9], [-5.0, -1.0], [0.02, 0.001]])
    # By product the second one would be task-0003's, by distance the third one task-0002's and the last one too.
    assert method.nearest(features) == ["task-0001", "task-0002", "task-0003", "task-0002", "task-0001"]


def test_a_prototype_is_the_mean_base_feature_of_the_training_rows(
    tiny_model: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    session = begin(make_config(method=ROUTER), tmp_path / "run")
    base, method = plain(tiny_model), session.method
    assert isinstance(method, Router)
    kept: dict[str, Tensor] = {}
    for number, phase in enumerate(train(session), 1):
        expected = torch.stack([feature(base, row) for row in session.stream.train[phase.name]]).mean(0)
        torch.testing.assert_close(method.prototypes[f"task-{number:04d}"].cpu(), expected)
        assert all(torch.equal(method.prototypes[name], value) for name, value in kept.items())  # earlier ones stay
        kept = {name: value.clone() for name, value in method.prototypes.items()}
    assert list(kept) == ["task-0001", "task-0002", "task-0003"]


def test_a_prototype_is_of_so_many_rows_at_most(
    tiny_model: Path, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = begin(make_config(method=ROUTER | {"prototype_rows": 5}), tmp_path / "run")
    used: list[Example] = []
    features = session.method.engine.features

    def watching(batch: Batch) -> Tensor:
        used.extend(batch.examples)
        return features(batch)

    monkeypatch.setattr(session.method.engine, "features", watching)
    next(train(session))
    assert len({row.id for row in used}) == len(used) == 5
    assert {row.id for row in used} < {row.id for row in session.stream.train["one"]}
    expected = torch.stack([feature(plain(tiny_model), row) for row in used]).mean(0)
    assert isinstance(session.method, Router)
    torch.testing.assert_close(session.method.prototypes["task-0001"].cpu(), expected)


# -- the answer ----------------------------------------------------------------------------------------------------


def test_every_row_of_a_batch_is_computed_with_its_own_adapter(whole: tuple[Session, Router]) -> None:
    session, method = whole
    rows = mixed(session)
    batch, model = (
        collate(rows, pad=session.method.engine.pad, device=session.method.engine.device),
        session.method.engine.model,
    )
    with torch.no_grad(), method.inference("one", "fast"):
        found = session.method.engine.forward(batch).logits
    chosen = [session.method.run.notes[row.id]["adapter"] for row in rows]
    assert set(chosen) == {"task-0001", "task-0002", "task-0003"}
    for number, name in enumerate(chosen):
        for other in ("task-0001", "task-0002", "task-0003", "fast"):
            with torch.no_grad(), adapters.active(model, other):
                alone = session.method.engine.forward(batch).logits[number]
            gap = float((alone - found[number]).abs().max())
            assert gap < 1e-4 if other == name else gap > 1e-2
    assert not torch.equal(session.method.engine.forward(batch).logits, found)  # outside the block no row is routed


def test_the_choice_does_not_depend_on_the_answer_or_on_the_batch(whole: tuple[Session, Router]) -> None:
    session, method = whole
    rows = mixed(session)
    notes, engine = session.method.run.notes, session.method.engine
    found = []
    for batches in ([rows], [[row] for row in rows], [[Example(r.task, r.id, r.prompt, []) for r in rows]]):
        notes.clear()
        with torch.no_grad(), method.inference("two", "fast"):
            for examples in batches:
                engine.forward(collate(examples, pad=engine.pad, device=engine.device))
        found.append({key: dict(value) for key, value in notes.items()})
    assert found[0] == found[1] == found[2]
    assert all(note["routed_right"] == float(note["adapter"] == "task-0002") for note in found[0].values())


def test_state_round_trip(whole: tuple[Session, Router], make_config: MakeConfig, tmp_path: Path) -> None:
    _, method = whole
    other = begin(make_config("seed=5", method=ROUTER), tmp_path / "other").method
    assert isinstance(other, Router)
    other.load_state_dict(method.state_dict())
    assert other.adapter_of == {"one": "task-0001", "two": "task-0002", "three": "task-0003"}
    assert list(other.prototypes) == list(method.prototypes)
    assert all(torch.equal(value, method.prototypes[name]) for name, value in other.prototypes.items())


def stream(make_config: MakeConfig, scoring: str) -> dict[str, Any]:
    """The `data` section, every task scored like this."""
    return make_config().data.model_dump(mode="json") | {
        "tasks": [{"name": name, "scoring": scoring} for name in NAMES]
    }


# -- over a run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scoring", ["generate", "rank"])
def test_records_say_which_adapter_answered(scoring: str, make_config: MakeConfig, tmp_path: Path) -> None:
    """Prompts that name their task are sent to it; a task not yet trained is sent somewhere, never right or wrong."""
    config = make_config(method=ROUTER, data=stream(make_config, scoring))
    result = run(config, tmp_path / "run", quiet=True)
    matrix = result.results["variants"]["fast"]["routed_right"]
    assert len(matrix) == 3
    for number, label in enumerate(LABELS):
        for column, name in enumerate(NAMES):
            file = result.path / "predictions" / f"after-{label}" / f"{name}.jsonl"
            cell = matrix[number][column]
            if column > number:
                assert cell is None
                assert all("routed_right" not in record for record in (read_records(file) if file.exists() else []))
                continue
            records = read_records(file)
            own = f"task-{column + 1:04d}"
            assert {record["adapter"] for record in records} <= {f"task-{n + 1:04d}" for n in range(number + 1)}
            assert all(record["routed_right"] == float(record["adapter"] == own) for record in records)
            assert cell == fmean(record["routed_right"] for record in records)
            assert cell >= 0.9
    base = read_records(result.path / "predictions" / "after-00-base" / "one.jsonl")
    assert not any("adapter" in record for record in base)


def test_routed_right_is_the_mean_also_where_rows_go_wrong(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_turn(self: Router, features: Tensor) -> list[str]:
        names = list(self.prototypes)
        return [names[number % len(names)] for number in range(len(features))]

    monkeypatch.setattr(Router, "nearest", in_turn)
    result = run(make_config(method=ROUTER), tmp_path / "run", quiet=True)
    # The test splits have 8 rows, dealt to 1, 2, then 3 adapters.
    expected = [[1.0, None, None], [4 / 8, 4 / 8, None], [3 / 8, 3 / 8, 2 / 8]]
    assert result.results["variants"]["fast"]["routed_right"] == expected


def records(session: Session) -> list[dict[str, Any]]:
    """Task two, scored with what is active, in batches of five."""
    data, encoder = session.stream.scored["two"], session.stream.encoder
    return evaluate(data, session.method.engine, encoder, batch_size=5, notes=session.method.run.notes)


@pytest.mark.parametrize("scoring", ["generate", "rank"])
def test_predictions_are_those_of_the_chosen_adapters(scoring: str, make_config: MakeConfig, tmp_path: Path) -> None:
    """Also with `evaluation.merge`, which has no effect here."""
    session, method = trained(make_config(method=ROUTER, data=stream(make_config, scoring)), tmp_path / "run")
    texts = {}
    for name in method.prototypes:
        with adapters.active(session.method.engine.model, name):
            texts[name] = [record["prediction"] for record in records(session)]
    assert len({tuple(column) for column in texts.values()}) == 3  # the adapters can be told apart
    rows = session.stream.scored["two"].examples
    features = session.method.engine.features(
        collate(rows[:3], pad=session.method.engine.pad, device=session.method.engine.device)
    )
    method.prototypes = dict(zip(method.prototypes, features, strict=True))  # so that this task's rows go to all three
    found = {}
    for merge in (False, True):
        session.method.engine.merge = merge
        with method.inference("two", "fast"):
            found[merge] = records(session)
    chosen = [record["adapter"] for record in found[False]]
    assert chosen[:3] == ["task-0001", "task-0002", "task-0003"]
    assert [record["prediction"] for record in found[False]] == [texts[name][n] for n, name in enumerate(chosen)]
    assert found[True] == found[False]


def test_merging_at_evaluation_changes_nothing_in_a_run(make_config: MakeConfig, tmp_path: Path) -> None:
    plainly, merging = (
        run(make_config(f"evaluation.merge={merge}", "training.epochs=1", method=ROUTER), tmp_path / merge, quiet=True)
        for merge in ("false", "true")
    )
    assert merging.results["variants"] == plainly.results["variants"]

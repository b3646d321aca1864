"""One reading against plain generation and a plain forward pass; many points against one at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ilora.connectivity.landscape import Landscape, RowScores, average, contrast, gain, limited, open_landscape
from ilora.connectivity.paths import grid, make_path
from ilora.connectivity.reading import Reading, SharedPrefix, batches, shared_length
from ilora.connectivity.space import Adapter
from ilora.data.examples import Batch, collate
from ilora.errors import InputError
from ilora.evaluation.scoring import evaluate, questions
from ilora.model.adapters import LowRank
from ilora.model.engine import Engine
from tests.connectivity.conftest import random_adapter

POINTS = [make_path("linear", (random_adapter("a", 1), random_adapter("b", 2)), space="delta").at(t) for t in grid(4)]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("drafts", ["answers", "none", "right", "long"])
def test_greedy_answers_equal_generation(landscape: Landscape, number: int, drafts: str) -> None:
    data = landscape.sets[0]
    landscape.use(POINTS[number])
    asked = questions(data, range(len(data.examples)), landscape.encoder)
    shared = shared_length([example.prompt for example in asked])
    assert shared > 0
    engine, end = landscape.engine, landscape.encoder.end
    whole = collate(asked, pad=landscape.encoder.pad, device=landscape.engine.device)
    own = collate(
        [type(e)(e.task, e.id, e.prompt[shared:], []) for e in asked],
        pad=landscape.encoder.pad,
        device=landscape.engine.device,
    )
    from transformers import GenerationConfig

    settings = GenerationConfig(do_sample=False, max_new_tokens=9, eos_token_id=end, pad_token_id=landscape.encoder.pad)
    made = [row[: row.index(end) + 1] if end in row else row for row in engine.generate(whole, settings).tolist()]
    answers = [example.answer for example in data.examples]
    guesses = {"answers": answers, "none": [[] for _ in answers], "right": made, "long": [row * 5 for row in made]}
    with torch.inference_mode():
        reading = Reading(engine, own, SharedPrefix(engine, asked[0].prompt[:shared]), answers)
        assert reading.greedy(guesses[drafts], limit=9, ends=[end]) == made


def test_losses_equal_those_of_a_plain_pass(landscape: Landscape) -> None:
    for number, scores in enumerate(landscape.evaluate(POINTS)):
        landscape.use(POINTS[number])
        for data in landscape.sets:
            for example, loss in zip(data.examples, scores[data.task.label].losses, strict=True):
                ids = torch.tensor([example.prompt + example.answer])
                labels = ids.clone()
                labels[:, : len(example.prompt)] = -100
                with torch.no_grad():
                    expected = landscape.engine.model(input_ids=ids, labels=labels).loss.item()
                assert loss == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("exact", [(), (0, 3), (0, 1, 2, 3)])
def test_many_points_at_once_score_as_one_at_a_time(landscape: Landscape, exact: tuple[int, ...]) -> None:
    together = landscape.evaluate(POINTS, exact=exact)
    for point, scores in zip(POINTS, together, strict=True):
        landscape.use(point)
        for data in landscape.sets:
            records = evaluate(data, landscape.engine, landscape.encoder, batch_size=3)
            assert scores[data.task.label].scores == [line["score"] for line in records]


def test_losses_alone_are_the_same_without_answers(landscape: Landscape, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = landscape.evaluate(POINTS, exact=(0,))
    monkeypatch.setattr(Reading, "greedy", None)
    monkeypatch.setattr("ilora.connectivity.landscape.evaluate", None)
    for one, other in zip(landscape.evaluate(POINTS, exact=(0,), scored=False), whole, strict=True):
        for task, scores in one.items():
            assert scores.scores == []
            assert scores.losses == other[task].losses


def test_out_of_memory_fewer_rows_are_read_at_once(landscape: Landscape, monkeypatch: pytest.MonkeyPatch) -> None:
    class Short(Reading):
        def __init__(self, engine: Engine, batch: Batch, *rest: Any) -> None:
            super().__init__(engine, batch, *rest)
            if len(batch.examples) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")

    expected, done = landscape.evaluate(POINTS[:2]), list[int]()
    monkeypatch.setattr("ilora.connectivity.landscape.Reading", Short)
    found = landscape.evaluate(POINTS[:2], advance=done.append)
    assert set(done) == {2}  # two points of one row each time
    for one, other in zip(found, expected, strict=True):
        for task, scores in other.items():
            assert one[task].scores == scores.scores
            assert one[task].losses == pytest.approx(scores.losses, abs=1e-5)


def test_progress_counts_every_row_at_every_point(landscape: Landscape) -> None:
    done: list[int] = []
    landscape.evaluate(POINTS[:2], exact=(0,), advance=done.append)
    assert sum(done) == 2 * sum(len(data.examples) for data in landscape.sets)


def test_batches_hold_rows_of_like_length() -> None:
    lengths = [5, 100, 90, 4, 79, 5, 88]
    made = list(batches(lengths, size=2))
    assert made == [[1, 2], [6, 4], [0, 5], [3]]
    assert sorted(row for rows in batches(lengths, size=3) for row in rows) == list(range(7))


def test_stem_leaves_each_row_a_token() -> None:
    assert shared_length([[1, 2, 3], [1, 2, 4], [1, 2, 3, 5]]) == 2
    assert shared_length([[1, 2], [1, 2]]) == 1
    assert shared_length([[1], [2]]) == 0
    assert shared_length([[1], [1, 2]]) == 0


def test_averages_and_gains_by_hand() -> None:
    one = {"x": RowScores([1.0, 3.0], [1.0, 0.0]), "y": RowScores([2.0, 2.0], [1.0, 1.0])}
    two = {"x": RowScores([1.0, 1.0], [0.0, 0.0]), "y": RowScores([1.0, 1.0], [1.0, 0.0])}
    assert average(one, ["x", "y"]) == {"n": 4, "loss": 2.0, "loss_se": 0.5, "score": 0.75, "score_se": 0.25}
    found = gain(one, two, ["x", "y"])
    assert found["score"] == 0.5
    assert found["score_se"] == pytest.approx((0.5**2 + 0.5**2) ** 0.5 / 2)
    # The middle against the ends' line, row by row: x gives 1 − ½ − 0, 0; y gives 1 − ½ − ½, 1 − ½ − 0.
    mean, error = contrast([one, one, two], [1.0, -0.5, -0.5], ["x", "y"], key="scores")
    assert (mean, error) == (0.25, pytest.approx((0.25**2 + 0.25**2) ** 0.5 / 2))


def test_an_adapter_of_another_width_is_refused(landscape: Landscape) -> None:
    wide = random_adapter("wide", 1)
    updates = {layer: LowRank(torch.ones(4, 48), torch.ones(48, 4), 1.0) for layer in wide.updates}
    with pytest.raises(
        InputError, match=r"wide belongs to another base model: layer .*q_proj is 48 x 48 .* 32 x 32 in"
    ):
        open_landscape(landscape.config, [], [random_adapter("a", 1), Adapter("wide", updates)], split="test")


def test_limited_rows_are_the_same_each_time(landscape: Landscape) -> None:
    task = landscape.sets[0].task
    few = limited(task, "test", 3)
    assert few.rows["test"] == limited(task, "test", 3).rows["test"]
    assert len(few.rows["test"]) == 3
    assert limited(task, "test", 99) is task
    with pytest.raises(InputError, match="no dev split"):
        limited(task, "dev", 3)


def test_a_layer_that_an_adapter_does_not_change_is_the_base_models(landscape: Landscape) -> None:
    whole = POINTS[0]
    part = Adapter("part", dict(list(whole.updates.items())[:2]))
    zero = {layer: LowRank(one.down, torch.zeros_like(one.up), one.scale) for layer, one in whole.updates.items()}
    filled = Adapter("filled", zero | dict(part.updates))
    one, two = landscape.evaluate([part, filled], exact=(0,))
    for task, scores in one.items():
        assert scores.losses == pytest.approx(two[task].losses, abs=1e-6)
        assert scores.scores == two[task].scores

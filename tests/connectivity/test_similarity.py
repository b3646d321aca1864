"""CKA against published values and its invariances; principal angles against scipy; distances by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from ilora.connectivity import similarity
from ilora.connectivity.landscape import Landscape
from ilora.connectivity.reading import shared_length
from ilora.connectivity.similarity import linear_cka, principal_angles, subspaces
from ilora.connectivity.space import Adapter
from ilora.errors import InputError
from ilora.model.adapters import LowRank
from tests.connectivity.conftest import LAYERS, random_adapter, update

A, B = random_adapter("a", 1), random_adapter("b", 2)


def reference_features() -> tuple[torch.Tensor, torch.Tensor]:
    source = np.random.RandomState(1337)
    first = source.randn(100, 10)
    return torch.tensor(first), torch.tensor(source.randn(100, 10) + first)


def test_cka_equals_the_published_values() -> None:
    """What Kornblith et al.'s own notebook gives for these features, as kept in Captum's test of its CKA."""
    first, second = reference_features()
    assert linear_cka(first, second) == pytest.approx(0.5576132566117589, abs=1e-12)
    assert linear_cka(first, second, debiased=True) == pytest.approx(0.5134564895055259, abs=1e-12)


@pytest.mark.parametrize("debiased", [False, True])
def test_cka_is_invariant_to_rotation_scale_and_shift(debiased: bool) -> None:
    first, second = reference_features()
    rotation, _ = torch.linalg.qr(torch.randn(10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    plain = linear_cka(first, second, debiased=debiased)
    assert linear_cka(3.7 * first @ rotation + 5.0, -0.2 * second, debiased=debiased) == pytest.approx(plain, abs=1e-10)
    assert linear_cka(first, 2.0 * first @ rotation, debiased=debiased) == pytest.approx(1.0)
    assert linear_cka(second, first, debiased=debiased) == pytest.approx(plain)
    skew = torch.diag(torch.arange(1.0, 11.0, dtype=torch.float64))
    assert linear_cka(first @ skew, second, debiased=debiased) != pytest.approx(plain, abs=1e-3)


def test_cka_of_bad_input() -> None:
    first, second = reference_features()
    with pytest.raises(InputError, match="there are 100 and 99"):
        linear_cka(first, second[:99])
    with pytest.raises(InputError, match="at least 4 rows"):
        linear_cka(first[:3], second[:3])
    assert linear_cka(first, torch.ones(100, 3)) is None


def test_features_are_means_over_the_prompt(landscape: Landscape) -> None:
    examples = landscape.sets[0].examples
    found = similarity.features(landscape, A, examples)
    assert [tuple(layer.shape) for layer in found] == [(len(examples), 32)] * 2
    with torch.no_grad():
        hidden = landscape.engine.model(input_ids=torch.tensor([examples[2].prompt]), output_hidden_states=True)
    prefix = shared_length([example.prompt for example in examples])
    assert prefix > 0  # of every row alike, so it is no part of the row's features
    for layer, expected in zip(found, hidden.hidden_states[1:], strict=True):
        assert torch.allclose(layer[2], expected[0, prefix:].mean(0), atol=1e-5)


def test_every_task_has_a_cka_of_its_own(landscape: Landscape) -> None:
    """Of pooled rows the difference between the tasks alone would make the features alike."""
    texts = {data.task.label: data.examples for data in landscape.sets}
    same = similarity.cka_by_layer(landscape, A, A, texts)
    assert [row["layer"] for row in same] == [1, 2]
    assert all(row["cka"] == pytest.approx(1.0) for row in same)
    for row in similarity.cka_by_layer(landscape, A, B, texts):
        alone = [
            linear_cka(*(similarity.features(landscape, one, rows)[row["layer"] - 1] for one in (A, B)))
            for rows in texts.values()
        ]
        assert [values["cka"] for values in row["tasks"].values()] == pytest.approx(alone)
        assert row["cka"] == pytest.approx(np.mean(alone))
        assert 0.0 < row["cka"] < 1.0
        assert 0.0 < row["cka_se"] < 0.5


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.RandomState(0).randn(10)
    error = similarity.jackknife(lambda rows: float(values[rows].mean()), 10)
    assert error == pytest.approx(values.std(ddof=1) / 10**0.5)
    assert similarity.jackknife(lambda rows: 0.0, 4) is None
    assert similarity.jackknife(lambda rows: None if 0 in rows else 1.0, 10) is None


def test_rows_are_sampled_and_always_the_same(landscape: Landscape) -> None:
    examples = landscape.sets[0].examples
    kept = similarity.sampled(examples, 4, task="one")
    assert kept == similarity.sampled(examples, 4, task="one")
    assert len(kept) == 4
    assert kept != examples[:4]
    assert similarity.sampled(examples, 99, task="one") == examples


def test_principal_angles_equal_scipy() -> None:
    for layer in LAYERS:
        bases = [subspaces(adapter.updates[layer]) for adapter in (A, B)]
        for side, matrices in enumerate(zip(*bases, strict=True)):
            formed = [update(adapter, layer) if side == 0 else update(adapter, layer).T for adapter in (A, B)]
            spans = [np.linalg.svd(matrix.numpy())[0][:, :4] for matrix in formed]
            expected = np.rad2deg(np.sort(subspace_angles(*spans)))
            assert principal_angles(*matrices) == pytest.approx(expected, abs=1e-6)


def test_small_angles_keep_their_digits() -> None:
    one = torch.eye(3, 1, dtype=torch.float64)
    tilted = torch.tensor([[np.cos(1e-9)], [np.sin(1e-9)], [0.0]])
    assert principal_angles(one, tilted) == pytest.approx([np.rad2deg(1e-9)], rel=1e-6)
    assert principal_angles(one, torch.eye(3, 2, dtype=torch.float64)[:, [1, 0]]) == pytest.approx([0.0], abs=1e-9)
    assert principal_angles(one, torch.eye(3, 0, dtype=torch.float64)) == []


def test_angles_of_a_hand_made_pair() -> None:
    def one(up: list[list[float]], down: list[list[float]]) -> Adapter:
        return Adapter("x", {"layer": LowRank(torch.tensor(down), torch.tensor(up), 1.0)})

    first = one([[1.0], [0.0]], [[1.0, 0.0]])
    second = one([[1.0], [1.0]], [[0.0, 2.0]])
    found = similarity.update_angles(first, second)
    assert found["layers"][0]["out"]["angles"] == pytest.approx([45.0], abs=1e-3)
    assert found["layers"][0]["in"]["angles"] == pytest.approx([90.0], abs=1e-3)
    assert found["total"]["out"]["overlap"] == pytest.approx(0.5)
    assert found["cosine"] == pytest.approx(0.0)
    zero = one([[0.0], [0.0]], [[1.0, 0.0]])
    assert similarity.update_angles(first, zero)["total"]["out"] == {"angles": [], "mean": None, "overlap": None}
    assert similarity.cosine(first, zero) is None


def test_angles_in_total_are_those_of_the_whole_subspaces() -> None:
    """Where ranks differ from layer to layer, and where a layer is changed by one adapter only."""

    def low_rank(rank: int, seed: int) -> LowRank:
        source = torch.Generator().manual_seed(seed)
        return LowRank(torch.randn(rank, 16, generator=source), torch.randn(16, rank, generator=source), 1.0)

    first = Adapter("a", {"1": low_rank(4, 1), "2": low_rank(2, 2), "3": low_rank(3, 3)})
    second = Adapter("b", {"1": low_rank(2, 4), "2": low_rank(4, 5), "4": low_rank(1, 6)})
    found = similarity.update_angles(first, second)
    assert [row["layer"] for row in found["layers"]] == ["1", "2"]
    for side, name in enumerate(("out", "in")):
        whole = []
        for adapter in (first, second):
            parts = [
                subspaces(adapter.updates[layer])[side] if layer in adapter.updates else torch.zeros(16, 0)
                for layer in "1234"
            ]
            whole.append(torch.block_diag(*(part.double() for part in parts)))
        expected = principal_angles(*whole)
        assert sorted(found["total"][name]["angles"]) == pytest.approx(expected, abs=1e-3)
        assert len(expected) == 7


def test_distances_equal_those_of_formed_updates() -> None:
    def formed(one: Adapter, two: Adapter) -> float:
        return sum(float((update(one, layer) - update(two, layer)).square().sum()) for layer in LAYERS) ** 0.5

    third = random_adapter("c", 3)
    assert similarity.distance(A, B, space="delta") == pytest.approx(formed(A, B))
    found = similarity.along(iter([A, B, third]))["delta"]
    assert found["from_first"] == pytest.approx([0.0, formed(A, B), formed(A, third)])
    assert found["step"] == pytest.approx([0.0, formed(A, B), formed(B, third)])
    assert list(similarity.along([A, B])) == ["factors", "delta"]
    assert list(similarity.along([A, B, random_adapter("wide", 4, rank=6)])) == ["delta"]

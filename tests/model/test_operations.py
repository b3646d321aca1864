"""The arithmetic of a step against a count by hand, and the rate of products by a clock of the test's own."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch

from ilora.model.operations import operations, product_rate
from ilora.model.sizes import LayerSizes, Sizes

LAYER = LayerSizes(matrices=300, norms=8, inputs=4, copies=8, ranks=2, mixed=False)
SIZES = Sizes(
    layers=(LAYER,) * 3, first=0, hidden=4, vocabulary=20, queries=6, keys=4, heads=2, element=2, dropout=False
)
PRODUCTS, ATTENTION, ADAPTER, HEAD = 2 * 300, 2 * 10 * 6, 2 * 10, 2 * 4 * 20 * 2 / 10  # of one pass, for a token


def of(sizes: Sizes, *, checkpointing: bool = False) -> float:
    return operations(sizes, trained=10, tokens=10.0, answer=2.0, checkpointing=checkpointing)


def test_a_token_goes_forward_once_and_back_to_the_inputs() -> None:
    """Attention's backward pass is twice its forward one, and so is the adapter's; frozen matrices get no gradient."""
    assert of(SIZES) == 2 * 3 * PRODUCTS + 3 * 3 * ATTENTION + 3 * ADAPTER + 2 * HEAD


def test_below_the_first_adapter_there_is_no_way_back() -> None:
    upper = replace(SIZES, first=2)
    assert of(upper) == 4 * PRODUCTS + (3 + 2) * ATTENTION + 3 * ADAPTER + 2 * HEAD


def test_what_is_computed_again_is_a_forward_pass_more() -> None:
    assert of(SIZES, checkpointing=True) - of(SIZES) == 3 * PRODUCTS + 3 * ATTENTION + ADAPTER


@pytest.mark.parametrize(("seconds", "products"), [(40.0, 1), (0.02, 3), (1e-4, 16)])
def test_the_rate_is_the_mean_of_a_few_products(seconds: float, products: int) -> None:
    """A slow machine multiplies once, beside the product that is not counted; what is quick is done a few times."""
    moments = itertools.count(0.0, seconds)
    found = product_rate(torch.device("cpu"), torch.float32, rows=4, inner=8, outer=6, clock=partial(next, moments))
    assert next(moments) == pytest.approx(seconds * (products + 1))
    assert found == pytest.approx(2 * 4 * 8 * 6 / seconds)

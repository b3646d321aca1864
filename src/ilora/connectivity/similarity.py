"""How alike two adapters are: in what the layers compute (CKA), in distance, in the directions they change.

Linear CKA (Kornblith et al. 2019, eq. 4) of centred features X, Y over the same n rows is
‖YᵀX‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F): 1 for features that are equal up to rotation and scale. With fewer rows than features it
is biased upwards; the debiased form (Székely and Rizzo 2014; Song et al. 2012) is given beside it.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ilora.connectivity import space as spaces
from ilora.connectivity.landscape import Landscape, of_mean
from ilora.connectivity.reading import batches, shared_length
from ilora.connectivity.space import Adapter
from ilora.data.examples import Example, collate
from ilora.errors import InputError
from ilora.model.adapters import LowRank
from ilora.model.fitting import in_batches

LEAST_ROWS = 4  # the debiased form divides by n − 3
_GROUPS = 10  # of rows, left out in turn for the standard error
_NEGLIGIBLE = 1e-6  # singular values below this share of the largest are no direction of the update


def linear_cka(first: Tensor, second: Tensor, *, debiased: bool = False) -> float | None:
    """CKA of two feature matrices (rows, features), from their (rows, rows) products; None where one is constant.

    In [0, 1]; debiased also a little below 0. Raises InputError for different rows or fewer than 4 of them.
    """
    if len(first) != len(second):
        raise InputError(f"CKA compares features of the same rows; there are {len(first)} and {len(second)}")
    if len(first) < LEAST_ROWS:
        raise InputError(f"CKA needs at least {LEAST_ROWS} rows; there are {len(first)}")
    tables = [_centred(features.double(), debiased=debiased) for features in (first, second)]
    norms = float(tables[0].norm() * tables[1].norm())
    return float((tables[0] * tables[1]).sum()) / norms if norms else None


def _centred(features: Tensor, *, debiased: bool) -> Tensor:
    """The centred Gram matrix; debiased: U-centred, its diagonal zero."""
    features = features - features.mean(0)  # the same matrix as without, with less rounding
    table = features @ features.T
    n = len(table)
    if not debiased:
        return table - table.mean(0) - table.mean(1, keepdim=True) + table.mean()
    table.fill_diagonal_(0.0)
    means = table.sum(0) / (n - 2)
    means = means - means.sum() / (2 * (n - 1))
    table = table - means - means[:, None]
    return table.fill_diagonal_(0.0)


def jackknife(value: Callable[[list[int]], float | None], rows: int) -> float | None:
    """The standard error of a statistic of rows, by leaving out a tenth of them (every tenth row) at a time.

    value: the statistic of the rows with these numbers. None where it is not known for one of the parts, or the rows
    are too few.
    """
    groups = min(_GROUPS, rows)
    if rows - math.ceil(rows / groups) < LEAST_ROWS:
        return None
    parts = [value([row for row in range(rows) if row % groups != left]) for left in range(groups)]
    known = [part for part in parts if part is not None]
    return math.sqrt((groups - 1) * statistics.pvariance(known)) if len(known) == groups else None


@torch.no_grad()
def features(landscape: Landscape, adapter: Adapter, examples: Sequence[Example]) -> list[Tensor]:
    """For every layer (rows, features): the mean of the layer's output over each prompt's own tokens, float32.

    The tokens with which all prompts begin are left out: they say the same of every row.
    """
    landscape.use(adapter)
    engine, size = landscape.engine, landscape.config.evaluation.batch_size
    asked = [Example(example.task, example.id, example.prompt, []) for example in examples]
    prefix = shared_length([example.prompt for example in asked])
    made: list[tuple[Sequence[int], Tensor]] = []

    def means(rows: Sequence[int]) -> Tensor:
        batch = collate([asked[row] for row in rows], pad=engine.pad, device=engine.device)
        mask = (batch.attention_mask.cumsum(1) > prefix)[..., None].float()  # padding stands before the prefix
        hidden = engine.states(batch, layers="all")
        return torch.stack([(layer.float() * mask).sum(1) / mask.sum(1) for layer in hidden]).cpu()

    for like in engine.share(list(batches([len(example) for example in asked], size=size))):
        made += in_batches(engine, like, means, size=len(like), what="similarity")
    made = engine.gather(made)
    found = [torch.empty(len(asked), layer.shape[-1]) for layer in made[0][1]]
    for rows, values in made:
        for layer, part in zip(found, values, strict=True):
            layer[list(rows)] = part
    return found


def cka_by_layer(
    landscape: Landscape, first: Adapter, second: Adapter, texts: Mapping[str, Sequence[Example]]
) -> list[dict[str, Any]]:
    """CKA of the two adapters' features after every layer of the model, layers counted from 1.

    texts: rows by task. Every task has a CKA of its own, since the difference between tasks would hide all others in
    features of several; `cka` of a layer is the mean over them.
    """
    found = {
        label: list(zip(features(landscape, first, rows), features(landscape, second, rows), strict=True))
        for label, rows in texts.items()
    }
    made = []
    for number in range(len(next(iter(found.values())))):
        tasks = {label: _cka_summary(*pairs[number]) for label, pairs in found.items()}
        made.append({"layer": number + 1, **_mean_cka(list(tasks.values())), "tasks": tasks})
    return made


def _cka_summary(first: Tensor, second: Tensor) -> dict[str, float | None]:
    made: dict[str, float | None] = {}
    for key, debiased in (("cka", False), ("cka_debiased", True)):

        def value(rows: list[int], debiased: bool = debiased) -> float | None:
            return linear_cka(first[rows], second[rows], debiased=debiased)

        made[key] = linear_cka(first, second, debiased=debiased)
        made[f"{key}_se"] = jackknife(value, len(first))
    return made


def _mean_cka(tasks: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    made: dict[str, float | None] = {}
    for key in ("cka", "cka_debiased"):
        known = [value for task in tasks if (value := task[key]) is not None]
        made[key] = statistics.fmean(known) if known else None
        made[f"{key}_se"] = of_mean([task[f"{key}_se"] for task in tasks])
    return made


def sampled(examples: Sequence[Example], most: int, *, task: str) -> list[Example]:
    """At most `most` of the rows, a random choice that depends on the task only."""
    if len(examples) <= most:
        return list(examples)
    kept = sorted(random.Random(f"similarity/{task}").sample(range(len(examples)), most))
    return [examples[index] for index in kept]


def distance(first: Adapter, second: Adapter, *, space: str) -> float:
    """Euclidean."""
    own = spaces.inner(first, first, space=space) + spaces.inner(second, second, space=space)
    return math.sqrt(max(0.0, own - 2.0 * spaces.inner(first, second, space=space)))


def along(adapters: Iterable[Adapter]) -> dict[str, dict[str, list[float]]]:
    """Of adapters in the order of training, in every space that all are points of: the distance of each from the first
    one, and its step from the one before. No more than three are held at a time.
    """
    made = {space: {"from_first": list[float](), "step": list[float]()} for space in spaces.SPACES}
    first = before = None
    for one in adapters:
        first, before = first or one, before or one
        common = spaces.common_spaces([first, one])
        made = {space: found for space, found in made.items() if space in common}
        for space, found in made.items():
            found["from_first"].append(distance(first, one, space=space))
            found["step"].append(distance(before, one, space=space))
        before = one
    return made


def subspaces(update: LowRank) -> tuple[Tensor, Tensor]:
    """Orthonormal bases (out, k) and (in, k) of what ΔW writes to and reads from; k its numerical rank."""
    left, upper = torch.linalg.qr(update.up.double())
    right, lower = torch.linalg.qr(update.down.double().T)
    u, values, vt = torch.linalg.svd(upper @ lower.T)
    kept = int((values > _NEGLIGIBLE * values[0]).sum()) if float(values[0]) else 0
    return left @ u[:, :kept], right @ vt[:kept].T


def principal_angles(first: Tensor, second: Tensor) -> list[float]:
    """Angles between two subspaces given by orthonormal columns, in degrees, rising (Björck and Golub 1973).

    Small angles come from sines, since a cosine near 1 has lost them.
    """
    if not first.shape[1] or not second.shape[1]:
        return []
    if first.shape[1] < second.shape[1]:
        first, second = second, first
    cosines = torch.linalg.svdvals(first.T @ second).clamp(max=1.0)
    sines = torch.linalg.svdvals(second - first @ (first.T @ second)).flip(0).clamp(max=1.0)
    angles = torch.where(cosines.square() < 0.5, cosines.acos(), sines.asin())
    made: list[float] = torch.rad2deg(angles).tolist()
    return made


def update_angles(first: Adapter, second: Adapter) -> dict[str, Any]:
    """Principal angles between the two updates, per layer and over all of them.

    overlap: mean cos² of the angles, 1 for the same subspace, 0 at right angles. In total the layers' subspaces are
    parts of one big one: its angles are all of theirs, and where the two differ in rank from layer to layer, right
    angles up to the smaller one's dimensions. cosine: of the whole updates as vectors.
    """
    rows, totals, sizes = [], {"out": list[float](), "in": list[float]()}, [0, 0]
    for layer in spaces.layers([first, second]):
        bases = [subspaces(one.updates[layer]) if layer in one.updates else None for one in (first, second)]
        sizes = [size + (base[0].shape[1] if base else 0) for size, base in zip(sizes, bases, strict=True)]
        if bases[0] is None or bases[1] is None:
            continue
        sides = zip(("out", "in"), bases[0], bases[1], strict=True)
        angles = {side: principal_angles(one, two) for side, one, two in sides}
        for side, values in angles.items():
            totals[side] += values
        rows.append({"layer": layer, **{side: _angle_summary(values) for side, values in angles.items()}})
    for side, values in totals.items():
        totals[side] = values + [90.0] * (min(sizes) - len(values))
    return {
        "layers": rows,
        "total": {side: _angle_summary(values) for side, values in totals.items()},
        "cosine": cosine(first, second),
    }


def cosine(first: Adapter, second: Adapter) -> float | None:
    """Of the angle between the two updates ΔW as vectors; None where one changes nothing."""
    table = spaces.gram((first, second), space="delta").tolist()
    norms = math.sqrt(table[0][0] * table[1][1])
    return table[0][1] / norms if norms else None


def _angle_summary(degrees: Sequence[float]) -> dict[str, Any]:
    overlap = [math.cos(math.radians(angle)) ** 2 for angle in degrees]
    return {
        "angles": [round(angle, 4) for angle in degrees],
        "mean": sum(degrees) / len(degrees) if degrees else None,
        "overlap": sum(overlap) / len(overlap) if overlap else None,
    }

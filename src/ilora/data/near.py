"""Near duplicates: texts that share most of their words and pairs of neighbouring words.

One word replaced leaves a text of 14 words or more near; another order of the same words does not.

MinHash signatures in bands find the candidates (Broder 1997; Indyk and Motwani 1998), the exact Jaccard similarity of
the sets decides. Seeded, so that the same texts always give the same pairs.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

THRESHOLD = 0.8
_WORDS = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\\W\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")
_LONGEST = 2000  # words of a text that are compared
_BANDS, _BAND = 8, 4  # of similarity 0.8 pairs 98.5 % become candidates, of 0.9 pairs all but 1e-4
_MOST_COMPARED = 20  # earlier texts of one bucket

_ODD = np.uint64(0x9E3779B97F4A7C15)

Hashes = NDArray[np.uint64]


def near_duplicates(texts: Sequence[str], *, threshold: float = THRESHOLD) -> list[tuple[int, int]]:
    """Pairs (earlier, later) of indices of texts whose similarity is at least `threshold`; equal texts included.

    A text that resembles many earlier ones is paired with the first few of them only.
    """
    sets = [_shingles(text) for text in texts]
    signatures = _signatures(sets)
    buckets: dict[bytes, list[int]] = {}
    pairs = []
    for later in range(len(texts)):
        candidates: set[int] = set()
        for band in range(_BANDS):
            values = signatures[later, band * _BAND : (band + 1) * _BAND]
            bucket = buckets.setdefault(bytes([band]) + values.tobytes(), [])
            candidates.update(bucket[:_MOST_COMPARED])
            bucket.append(later)
        pairs += [(one, later) for one in sorted(candidates) if similarity(sets[one], sets[later]) >= threshold]
    return pairs


def similarity(left: Hashes, right: Hashes) -> float:
    """Jaccard: the size of the intersection over that of the union. Both sorted and distinct."""
    common = np.intersect1d(left, right, assume_unique=True).size
    return float(common / (len(left) + len(right) - common))


def _shingles(text: str) -> Hashes:
    """The distinct words (characters in Chinese and Japanese) and pairs of neighbours, as numbers."""
    words = _WORDS.findall(text.casefold())[:_LONGEST] or [""]
    numbers = np.array([zlib.crc32(word.encode()) for word in words], dtype=np.uint64)
    return np.unique(np.concatenate([numbers, numbers[:-1] * _ODD + numbers[1:]]))  # modulo 2^64


def _signatures(sets: Sequence[Hashes]) -> Hashes:
    """(texts, hashes): the least value of each text's numbers under every hash function."""
    draw = np.random.default_rng(0)
    count = _BANDS * _BAND
    factors = draw.integers(1, 2**63, size=count, dtype=np.uint64) | np.uint64(1)
    offsets = draw.integers(0, 2**63, size=count, dtype=np.uint64)
    signatures = np.empty((len(sets), count), dtype=np.uint64)
    for index, numbers in enumerate(sets):
        signatures[index] = (numbers[:, None] * factors + offsets).min(axis=0)  # modulo 2^64
    return signatures

"""Rules that a few arbitrary rows cannot move at will, as pure functions on g rows of d numbers.

None of them is a gate: a row with NaN or infinity must be refused before.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.core.vector import Vector, blocks

Rows = NDArray[np.float32]

_BLOCK = 1 << 16
"""Columns sorted at a time, so that they stay in a core's cache."""


def median(rows: Rows) -> Vector:
    """Column by column, of an even number of rows the mean of the two in the middle (Yin et al. 2018, arXiv
    1803.01498, definition 1). Fewer than half of the rows cannot move it beyond the others."""
    out = np.empty(rows.shape[1], np.float32)
    for start, stop in blocks(rows.shape[1], _BLOCK):
        ordered = np.sort(rows[:, start:stop], axis=0)
        middle = ordered[(len(rows) - 1) // 2 : len(rows) // 2 + 1]
        out[start:stop] = middle.mean(axis=0, dtype=np.float64)
    return out


def trimmed_mean(rows: Rows, trim: int) -> Vector:
    """Column by column, the mean of what is left without the ``trim`` largest and the ``trim`` smallest (Yin et al.
    2018, definition 2). As many arbitrary rows cannot move it beyond the others. Needs more than 2 ``trim`` rows."""
    _enough(rows, num_needed("trimmed_mean", trim), "trimmed_mean")
    out = np.empty(rows.shape[1], np.float32)
    for start, stop in blocks(rows.shape[1], _BLOCK):
        ordered = np.sort(rows[:, start:stop], axis=0)
        out[start:stop] = ordered[trim : len(rows) - trim].mean(axis=0, dtype=np.float64)
    return out


def krum_order(rows: Rows, trim: int) -> list[int]:
    """Indices of the rows, the best first: by the sum of squared distances to its g - f - 2 nearest others, f =
    ``trim`` (Blanchard et al. 2017, arXiv 1703.02757, section 4); of equal ones the first. Needs 2 f + 3 rows."""
    _enough(rows, num_needed("krum", trim), "krum")
    squared = _squared_distances(rows)
    nearest = np.sort(squared, axis=1)[:, 1 : len(rows) - trim - 1]  # column 0 is the row itself
    return [int(i) for i in np.argsort(nearest.sum(axis=1), kind="stable")]


def krum(rows: Rows, trim: int) -> Vector:
    """The row in the midst of the others."""
    best: Vector = rows[krum_order(rows, trim)[0]]
    return best.copy()


def multi_krum(rows: Rows, trim: int) -> Vector:
    """The mean of the g - f best rows, in the order in which they stand."""
    best = sorted(krum_order(rows, trim)[: len(rows) - trim])
    out = np.empty(rows.shape[1], np.float32)
    for start, stop in blocks(rows.shape[1], _BLOCK):
        out[start:stop] = rows[best, start:stop].mean(axis=0, dtype=np.float64)
    return out


def num_needed(rule: str, trim: int) -> int:
    """Rows without which a rule says nothing."""
    return {"median": 3, "trimmed_mean": 2 * trim + 1, "krum": 2 * trim + 3, "multi_krum": 2 * trim + 3}[rule]


def drawn(names: Sequence[str], size: int, rng: np.random.Generator) -> tuple[tuple[str, ...], ...]:
    """All names in random groups of at least ``size``, as many groups as there can be; their lengths differ by one at
    most, unless there is but one. Names within a group, and groups, are in alphabetical order."""
    shuffled = [sorted(names)[i] for i in rng.permutation(len(names))]
    count = max(1, len(names) // size)
    return tuple(sorted(tuple(sorted(shuffled[i::count])) for i in range(count)))


def _squared_distances(rows: Rows) -> NDArray[np.float64]:
    """Of each to each. Of differences in float64, not from dot products, in which close rows would lose their
    digits."""
    out = np.zeros((len(rows), len(rows)))
    for start, stop in blocks(rows.shape[1], _BLOCK):
        for i, row in enumerate(rows[:, start:stop].astype(np.float64)):
            for j in range(i):
                apart = row - rows[j, start:stop]
                out[i, j] += apart @ apart
    return out + out.T


def _enough(rows: Rows, needed: int, rule: str) -> None:
    if len(rows) < needed:
        raise ValueError(f"{rule} of {len(rows)} rows: it needs {needed}")

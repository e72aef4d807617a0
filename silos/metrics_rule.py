"""Figures on private rows, as the organisation's policy lets them out: as they are, with noise, or not at all.

With noise they are (epsilon, delta)-differentially private for each test row. Only counts to which a row adds a bounded
amount can have it: how many were right, the histogram behind the area under the ROC curve. A row's loss has no bound,
and stays where it is. A training row has a part in a figure only by way of the model, and is protected there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from orchestrator.core.metrics import MetricSums, Sums
from orchestrator.privacy.accountant import Query
from orchestrator.privacy.noise import Normals, fresh_key
from silos.spending import Spend

COUNTS = frozenset({"accuracy"})
"""Means of rows that count 0 or 1. A task of the user's own that gives one of these names to something else is code
that the organisation has allowed."""

COARSE = 64
"""Bins of a noised histogram: fewer hold more rows each, and the noise is per bin."""


@dataclass(frozen=True, slots=True)
class MetricsRule:
    """``policy.metrics`` in ``silo.yaml``."""

    mode: Literal["open", "summed", "noised", "none"] = "open"
    noise_multiplier: float = 0.0

    @property
    def spend(self) -> tuple[Spend, ...]:
        """What one release of figures costs, where any is accounted for."""
        return (Spend(Query(1.0, self.noise_multiplier, 1), part="test"),) if self.mode == "noised" else ()

    def of_test(self, metrics: MetricSums) -> MetricSums:
        """With fresh noise where that is the rule."""
        return noised(metrics, self.noise_multiplier) if self.mode == "noised" else metrics

    def of_training(self, metrics: MetricSums) -> MetricSums:
        """A training's losses have no bound: they leave openly or not at all."""
        return metrics if self.mode == "open" else {}


def bounded(metrics: MetricSums) -> dict[str, Sums]:
    """The figures that can be noised."""
    return {name: sums for name, sums in metrics.items() if sums.kind == "auc" or name in COUNTS}


def noised(metrics: MetricSums, noise_multiplier: float, key: bytes | None = None) -> dict[str, Sums]:
    """All that can be, in one release of the Gaussian mechanism: a row more or less moves the counts together by at
    most `sensitivity`. They are whole numbers again. Left out is what the noise has made meaningless. ``key``: for
    tests; one is drawn."""
    counts, normals = bounded(metrics), Normals(key or fresh_key())
    std = noise_multiplier * sensitivity(counts)
    found = {
        name: _mean(sums, std, normals) if sums.kind == "mean" else _histogram(sums, std, normals)
        for name, sums in counts.items()
    }
    return {name: sums for name, sums in found.items() if sums is not None}


def sensitivity(counts: MetricSums) -> float:
    """Euclidean: a row adds up to 1 to a mean's sum and 1 to its count, and 1 to one bin of a histogram."""
    return math.sqrt(sum(2 if sums.kind == "mean" else 1 for sums in counts.values()))


def _mean(sums: Sums, std: float, normals: Normals) -> Sums | None:
    right, count = _whole(sums.values, std, normals)
    return Sums("mean", (float(min(max(right, 0), count)), float(count))) if count > 0 else None


def _histogram(sums: Sums, std: float, normals: Normals) -> Sums | None:
    """Of each class in coarse bins, which are then spread evenly over the fine ones."""
    half = len(sums.values) // 2
    classes = [_coarse(each, std, normals) for each in (sums.values[:half], sums.values[half:])]
    if min(sum(counts) for counts in classes) <= 0:
        return None
    found = Sums("auc", tuple(count for counts in classes for count in counts))
    return found if found.value is not None and 0 <= found.value <= 1 else None


def _coarse(counts: Sequence[float], std: float, normals: Normals) -> list[float]:
    width = max(1, len(counts) // COARSE)
    bins = [counts[low : low + width] for low in range(0, len(counts), width)]
    totals = _whole([sum(fine) for fine in bins], std, normals)
    return [
        float(total) / len(fine) for total, fine in zip(totals, bins, strict=True) for _ in range(len(fine))
    ]


def _whole(
    counts: Sequence[float], std: float, normals: Normals
) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """Rounded, so that the last bits of a sum tell nothing."""
    return np.rint(np.array(counts) + std * normals.take(len(counts)))

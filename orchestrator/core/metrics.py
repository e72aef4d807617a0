"""Metrics that add up: silos send sums, so that the federation's figure equals the pooled one.

Averaging silos' own figures is wrong for silos of unequal size and for ranking metrics. Accuracy and loss
travel as (sum, count); the area under the ROC curve travels as a histogram of scores by class.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

AUC_BINS = 512


@dataclass(frozen=True, slots=True)
class Sums:
    """What one silo contributes to a metric.

    ``mean``: ``(sum, count)``. ``auc``: counts of negatives per score bin, then of positives.
    """

    kind: Literal["mean", "auc"]
    values: tuple[float, ...]

    def __add__(self, other: "Sums") -> "Sums":
        if self.kind != other.kind or len(self.values) != len(other.values):
            raise ValueError(f"cannot add {other.kind} sums of {len(other.values)} to {self.kind} sums")
        return Sums(self.kind, tuple(a + b for a, b in zip(self.values, other.values, strict=True)))

    @property
    def count(self) -> float:
        """How many examples stand behind the figure."""
        return self.values[1] if self.kind == "mean" else sum(self.values)

    @property
    def value(self) -> float | None:
        """The figure itself; None where it is undefined (no examples, or one class only)."""
        figure = _mean(self.values) if self.kind == "mean" else _auc(self.values)
        return figure if figure is not None and math.isfinite(figure) else None

    @property
    def shape(self) -> tuple[str, int]:
        """Sums add up with those of the same shape."""
        return self.kind, len(self.values)

    @property
    def sound(self) -> bool:
        """Whether they are sums of their kind at all."""
        size = len(self.values)
        fits = size == 2 if self.kind == "mean" else self.kind == "auc" and size > 0 and size % 2 == 0
        return fits and all(isinstance(value, int | float) for value in self.values)


MetricSums = Mapping[str, Sums]


def pooled(reports: Iterable[MetricSums]) -> dict[str, Sums]:
    """Add the silos' sums, metric by metric."""
    total: dict[str, Sums] = {}
    for report in reports:
        for name, sums in report.items():
            total[name] = total[name] + sums if name in total else sums
    return total


def usual_shapes(reports: Iterable[MetricSums]) -> dict[str, tuple[str, int]]:
    """The shape of each metric in most reports; of those as frequent, the first."""
    seen: dict[str, Counter[tuple[str, int]]] = {}
    for report in reports:
        for name, sums in report.items():
            seen.setdefault(name, Counter())[sums.shape] += 1
    return {name: shapes.most_common(1)[0][0] for name, shapes in seen.items()}


def odd_metric(report: MetricSums, usual: Mapping[str, tuple[str, int]]) -> str | None:
    """A metric of this report that does not add up with the usual shape."""
    return next((name for name, sums in report.items() if sums.shape != usual.get(name, sums.shape)), None)


def values(sums: MetricSums) -> dict[str, float]:
    """The defined figures by name."""
    return {name: value for name, each in sums.items() if (value := each.value) is not None}


def larger_is_better(metric: str) -> bool:
    """Losses and errors fall; everything else rises."""
    return not metric.endswith(("loss", "error", "rmse", "mae"))


def _mean(sums: tuple[float, ...]) -> float | None:
    return sums[0] / sums[1] if sums[1] > 0 else None


def _auc(counts: tuple[float, ...]) -> float | None:
    """Mann-Whitney statistic over bins; scores within one bin count as ties."""
    half = len(counts) // 2
    negatives, positives = counts[:half], counts[half:]
    pairs, below, wins = sum(negatives) * sum(positives), 0.0, 0.0
    for negative, positive in zip(negatives, positives, strict=True):
        wins += positive * (below + negative / 2)
        below += negative
    return wins / pairs if pairs else None

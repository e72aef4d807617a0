"""What an attack's scores come to, with bounds that hold for few rows. Pure NumPy and SciPy.

All scores rise with suspicion: a member's should be above those of others.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

Scores = NDArray[np.float64]

ONE_SIDED = 0.95
"""Confidence of the lower bounds."""


MOST_DB = 200.0
"""Of a record that came out without any error."""


def auc(members: Scores, others: Scores) -> float:
    """Probability that a member scores above somebody else, ties counting one half (Mann-Whitney)."""
    ranks = stats.rankdata(np.concatenate([members, others]))
    m, n = len(members), len(others)
    return float((ranks[:m].sum() - m * (m + 1) / 2) / (m * n))


def auc_at_least(value: float, m: int, n: int, confidence: float = ONE_SIDED) -> float:
    """Lower bound of an AUC that ``m`` members and ``n`` others gave.

    Newcombe's method 5 (Statistics in Medicine 25, 2006): the least figure from which the observed one lies no further
    than its own standard error allows. Unlike the usual interval it is not empty at 1.
    """
    z = float(stats.norm.ppf(confidence))
    if value <= 0:
        return 0.0

    def beyond(theta: float) -> float:
        return value - theta - z * math.sqrt(_variance(theta, m, n))

    return float(optimize.brentq(beyond, 0.0, value)) if beyond(0.0) > 0 > beyond(value) else 0.0


def _variance(theta: float, m: int, n: int) -> float:
    """Of an AUC (Hanley and McNeil 1982, with Newcombe's mean of the group sizes)."""
    most = (m + n) / 2 - 1
    inner = 1 + most * (1 - theta) / (2 - theta) + most * theta / (1 + theta)
    return max(theta * (1 - theta), 1e-12) * inner / (m * n)


def tpr_at(fpr: float, members: Scores, others: Scores) -> tuple[float, float] | None:
    """Share of the members above all but a share ``fpr`` of the others, and its lower bound (Clopper and Pearson).

    None where the others are too few for one of them to be a share of ``fpr``.
    """
    allowed = math.floor(fpr * len(others) + 1e-9)
    if allowed < 1:
        return None
    threshold = np.sort(others)[-allowed - 1]
    hits = int((members > threshold).sum())
    return hits / len(members), share_at_least(hits, len(members))


def share_at_least(hits: int, trials: int, confidence: float = ONE_SIDED) -> float:
    """Clopper and Pearson's lower bound of a share."""
    return 0.0 if hits == 0 else float(stats.beta.ppf(1 - confidence, hits, trials - hits + 1))


def exposures(losses: Scores, held_back: Scores) -> Scores:
    """Of each canary, in bits: ``log2(M + 1) - log2(rank)`` of its loss among those of ``M`` held back (Carlini et al.
    2019). One that the model never saw has ``1 / ln 2`` = 1.44 on average, and never more than ``log2(M + 1)``."""
    ordered, m = np.sort(held_back), len(held_back)
    ranks = 1 + (np.searchsorted(ordered, losses, "left") + np.searchsorted(ordered, losses, "right")) / 2
    exposed: Scores = math.log2(m + 1) - np.log2(ranks)
    return exposed


def mean_at_least(values: Scores, confidence: float = ONE_SIDED) -> float:
    """Lower bound of the mean (Student)."""
    if len(values) < 2:
        return -math.inf
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()) - float(stats.t.ppf(confidence, len(values) - 1)) * error


def psnr(found: NDArray[Any], record: NDArray[Any], peak: float) -> float:
    """Peak signal-to-noise ratio in dB, at most `MOST_DB`; ``peak`` is the range of the records' values."""
    mse = float(np.mean((found.astype(np.float64) - record) ** 2))
    return min(MOST_DB, 10 * math.log10(peak**2 / mse)) if mse else MOST_DB


def cosine(found: NDArray[Any], record: NDArray[Any]) -> float:
    """Of the angle between the two as vectors; 0 where one is zero."""
    a, b = found.ravel().astype(np.float64), record.ravel().astype(np.float64)
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length else 0.0

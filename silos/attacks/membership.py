"""Membership inference: was this row trained on? Pure NumPy, on losses.

``threshold`` (Yeom et al. 2018) calls rows with a small loss members. ``calibrated`` (Watson et al. 2022) compares the
loss with that of models that did not see the row, so that easy rows are not taken for members. ``likelihood`` is LiRA
(Carlini et al. 2022) with few shadows: a Gaussian of each row's logit in models with and without it, its variance
shared by all rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from silos.attacks.statistics import Scores, auc, auc_at_least, tpr_at

FPR = 0.01
FEWEST = 10
"""Members, and others: of fewer, an attack says nothing."""


@dataclass(frozen=True, slots=True)
class Found:
    """How well one attack tells members from others."""

    attack: str
    auc: float
    auc_low: float
    """Lower bound, 95 %."""
    tpr: float | None
    """Share of members found while one in a hundred others is mistaken for one; None for fewer than a hundred."""
    tpr_low: float | None


def judged(attack: str, members: Scores, others: Scores) -> Found:
    """Of scores that rise with suspicion."""
    value, tpr = auc(members, others), tpr_at(FPR, members, others)
    low = auc_at_least(value, len(members), len(others))
    return Found(attack, value, low, *(tpr if tpr is not None else (None, None)))


@dataclass(frozen=True, slots=True)
class Shadow:
    """A model of which it is known whether it saw each row."""

    losses: Scores
    """Of the members, then of the others."""
    saw: NDArray[np.bool_]


def attacked(members: Scores, others: Scores, shadows: Sequence[Shadow] = ()) -> list[Found]:
    """All attacks that the shadows allow, on the model's losses."""
    m, losses = len(members), np.concatenate([members, others])
    scores = {"threshold": -losses}
    saw = np.array([each.saw for each in shadows])
    if len(shadows) and (~saw).any(axis=0).all():
        scores["calibrated"] = calibrated(losses, shadows)
        if saw.any(axis=0).all():
            scores["likelihood"] = likelihood(losses, shadows)
    return [judged(name, score[:m], score[m:]) for name, score in scores.items()]


def calibrated(losses: Scores, shadows: Sequence[Shadow]) -> Scores:
    """Mean loss in models without the row, minus the model's."""
    without = np.array([np.where(each.saw, np.nan, each.losses) for each in shadows])
    score: Scores = np.nanmean(without, axis=0) - losses
    return score


def likelihood(losses: Scores, shadows: Sequence[Shadow]) -> Scores:
    """Log ratio of the model's logit being that of a model with and of one without the row."""
    logits = np.array([logit(each.losses) for each in shadows])
    saw = np.array([each.saw for each in shadows])
    ours, score = logit(losses), np.zeros_like(losses)
    for with_row, sign in ((True, 1.0), (False, -1.0)):
        known = np.where(saw == with_row, logits, np.nan)
        mean = np.nanmean(known, axis=0)
        spread = max(float(np.sqrt(np.nanmean((known - mean) ** 2))), 1e-3)
        score += sign * stats.norm.logpdf(ours, mean, spread)
    return score


def logit(losses: Scores) -> Scores:
    """``log(p / (1 - p))`` of the probability that the loss stands for, within ±30."""
    losses = np.maximum(losses, 1e-12)
    scaled: Scores = -losses - np.log(-np.expm1(-losses))
    return np.clip(scaled, -30.0, 30.0)

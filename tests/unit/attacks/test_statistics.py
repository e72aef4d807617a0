"""Figures of attacks against hand arithmetic, published intervals and draws."""

import math

import numpy as np
import pytest
from scipy import stats

from silos.attacks.statistics import (
    auc,
    auc_at_least,
    cosine,
    exposures,
    mean_at_least,
    psnr,
    share_at_least,
    tpr_at,
)


def test_auc_counts_pairs_and_ties_one_half() -> None:
    members, others = np.array([3.0, 2.0, 2.0]), np.array([1.0, 2.0])
    assert auc(members, others) == pytest.approx((1 + 1 + 1 + 0.5 + 1 + 0.5) / 6)
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.5, 1, 200), rng.normal(0, 1, 150)
    pairs = (a[:, None] > b[None]).mean()
    assert auc(a, b) == pytest.approx(pairs) and auc(-a, -b) == pytest.approx(1 - pairs)


def test_the_bound_of_an_auc_covers_as_it_says() -> None:
    """Binormal scores of true AUC .75: the bound is above it in about 5 % of draws; also where groups are small."""
    rng, shift = np.random.default_rng(1), math.sqrt(2) * stats.norm.ppf(0.75)
    for m, n in ((15, 25), (100, 60)):
        above = 0
        for _ in range(400):
            value = auc(rng.normal(shift, 1, m), rng.normal(0, 1, n))
            above += auc_at_least(value, m, n) > 0.75
        assert 0.015 <= above / 400 <= 0.09


def test_a_perfect_auc_of_few_rows_is_not_believed() -> None:
    assert auc_at_least(1.0, 10, 10) < 0.93 < auc_at_least(1.0, 200, 200) < 1.0
    assert auc_at_least(0.5, 10, 10) < 0.35 and auc_at_least(0.0, 10, 10) == 0.0


def test_true_positives_at_a_small_rate_of_false_ones() -> None:
    others = np.arange(200.0)
    found = tpr_at(0.01, np.array([197.5, 198.5, 500.0, 10.0]), others)
    assert found is not None and found[0] == 0.75  # two of 200 lie above 197
    assert found[1] == pytest.approx(stats.binomtest(3, 4).proportion_ci(0.90, "exact").low)
    assert tpr_at(0.01, np.ones(5), np.arange(99.0)) is None
    assert share_at_least(0, 9) == 0.0


def test_exposure_is_that_of_the_paper() -> None:
    held_back = np.arange(1.0, 64.0)
    bits = exposures(np.array([0.5, 1.5, 63.5]), held_back)
    assert bits == pytest.approx([6.0, 5.0, 0.0])
    rng = np.random.default_rng(2)
    unseen = [exposures(rng.random(16), rng.random(255)).mean() for _ in range(400)]
    assert np.mean(unseen) == pytest.approx(1 / math.log(2), abs=0.05)


def test_the_bound_of_a_mean_is_students() -> None:
    values = np.array([1.0, 2.0, 4.0, 5.0])
    assert mean_at_least(values) == pytest.approx(
        stats.t.interval(0.90, 3, values.mean(), stats.sem(values))[0]
    )
    assert mean_at_least(values[:1]) == -math.inf


def test_psnr_and_cosine() -> None:
    record = np.array([0.0, 1.0, 0.5, 0.5])
    assert psnr(record, record, 1.0) == 200
    assert psnr(record + 0.1, record, 1.0) == pytest.approx(20.0)
    assert cosine(3 * record, record) == pytest.approx(1.0) and cosine(np.zeros(4), record) == 0.0

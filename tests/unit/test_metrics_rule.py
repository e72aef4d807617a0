"""Figures on private rows leave as the organisation says; with noise, each release costs."""

import math
from typing import Any

import numpy as np
import pytest

from orchestrator.core.metrics import AUC_BINS, Sums, pooled
from orchestrator.privacy.accountant import Query, epsilon
from silos.config import SiloConfig
from silos.metrics_rule import MetricsRule, noised, sensitivity
from silos.spending import Spend

NORMALS = np.random.default_rng(5)
MEANS = {"loss": Sums("mean", (40.0, 90.0)), "accuracy": Sums("mean", (60.0, 90.0))}


def histogram(rows: int, shift: float = 20.0) -> Sums:
    """Scores of two classes, one standard deviation apart or so."""
    bins = [np.clip(NORMALS.normal(256 + by, 20, rows), 0, AUC_BINS - 1).astype(int) for by in (0, shift)]
    counts = [np.bincount(each, minlength=AUC_BINS) for each in bins]
    return Sums("auc", tuple(np.concatenate(counts).astype(float).tolist()))


def row(right: bool, positive: bool, score: int) -> dict[str, Sums]:
    """What one row adds."""
    counts = [0.0] * (2 * AUC_BINS)
    counts[score + (AUC_BINS if positive else 0)] = 1.0
    return {"accuracy": Sums("mean", (float(right), 1.0)), "auc": Sums("auc", tuple(counts))}


@pytest.mark.parametrize("names", [("accuracy",), ("auc",), ("accuracy", "auc")])
def test_no_row_moves_the_counts_further_than_the_declared_sensitivity(names: tuple[str, ...]) -> None:
    """Measured: the counts with and without a row, all of them together."""
    before = {"accuracy": Sums("mean", (5.0, 9.0)), "auc": histogram(5)}
    moved = []
    for right in (True, False):
        for positive in (True, False):
            for score in (0, 100, AUC_BINS - 1):
                after = pooled([before, row(right, positive, score)])
                off = [np.subtract(after[name].values, before[name].values) for name in names]
                moved.append(float(np.linalg.norm(np.concatenate(off))))
    assert max(moved) == pytest.approx(sensitivity({name: before[name] for name in names}))


def test_the_noise_is_as_large_as_it_says() -> None:
    """4,000 releases of one figure, and one release of many bins."""
    many = {"accuracy": Sums("mean", (6000.0, 9000.0))}
    draws = [noised(many, 20.0)["accuracy"].values for _ in range(4000)]
    std = 20.0 * math.sqrt(2)
    counts = np.array([count for _, count in draws])
    assert counts.std() == pytest.approx(std, rel=0.05) and counts.mean() == pytest.approx(9000, abs=2)
    assert all(float(each).is_integer() for pair in draws for each in pair)
    flat = Sums("auc", (1e6,) * (2 * AUC_BINS))
    bins = np.array(noised({"auc": flat}, 300.0)["auc"].values)
    totals = bins.reshape(-1, 8).sum(axis=1)
    assert totals.size == 128 and (totals - 8e6).std() == pytest.approx(300.0, rel=0.25)


def test_every_release_has_noise_of_its_own() -> None:
    """A driver that asks twice must not get two views of one draw, nor one draw for two figures."""
    assert noised(MEANS, 20.0) != noised(MEANS, 20.0)
    key = bytes(32)
    assert noised(MEANS, 20.0, key) == noised(MEANS, 20.0, key)


def test_what_has_no_bound_does_not_leave() -> None:
    own = {"risk": Sums("mean", (5.0, 9.0)), **MEANS}
    assert noised(own, 0.001).keys() == {"accuracy"}


def test_figures_of_many_rows_survive_the_noise() -> None:
    auc = histogram(20_000)
    found = noised({**MEANS, "auc": auc, "accuracy": Sums("mean", (30_000.0, 40_000.0))}, 10.0)
    assert found["accuracy"].value == pytest.approx(0.75, abs=0.01)
    assert auc.value is not None and found["auc"].value == pytest.approx(auc.value, abs=0.02)
    assert found["auc"].shape == auc.shape, "it adds up with that of a silo that adds no noise"


def test_what_the_noise_has_made_meaningless_is_left_out() -> None:
    few = {"accuracy": Sums("mean", (1.0, 2.0)), "auc": histogram(1)}
    seen = [noised(few, 1000.0) for _ in range(40)]
    assert {"accuracy" in each for each in seen} == {True, False}
    for each in seen:
        for sums in each.values():
            assert sums.sound and sums.value is not None and 0 <= sums.value <= 1


def test_what_a_release_costs() -> None:
    rule = MetricsRule("noised", 5.0)
    assert rule.spend == (Spend(Query(1.0, 5.0, 1), "record", "test"),)
    assert epsilon([rule.spend[0].query], 1e-5) == pytest.approx(0.725522, abs=1e-4)
    assert MetricsRule("open").spend == MetricsRule("none").spend == MetricsRule("summed").spend == ()


@pytest.mark.parametrize("mode", ["summed", "noised", "none"])
def test_training_losses_leave_openly_or_not_at_all(mode: Any) -> None:
    assert MetricsRule(mode, 5.0).of_training(MEANS) == {} and MetricsRule().of_training(MEANS) == MEANS
    assert MetricsRule("noised", 5.0).of_test(MEANS).keys() == {"accuracy"}


@pytest.mark.parametrize(
    ("policy", "budget", "said"),
    [
        ({"metrics": "noised"}, None, "noised goes with metrics_noise_multiplier"),
        ({"metrics_noise_multiplier": 2.0}, None, "noised goes with metrics_noise_multiplier"),
        (
            {"metrics": "noised", "metrics_noise_multiplier": 2.0},
            {"epsilon": 1.0, "delta": 1e-5, "unit": "patient", "column": "person"},
            "noised metrics protect single records: give policy.metrics: summed, or none",
        ),
        ({}, {"epsilon": 1.0, "delta": 1e-5, "unit": "patient"}, "give 'column', where the files name"),
        ({}, {"epsilon": 1.0, "delta": 1e-5, "column": "person"}, "and only then"),
        ({"metrics": "open"}, {"epsilon": 1.0, "delta": 1.0}, "less than 1"),
        ({"metrics": "open"}, {"epsilon": math.inf, "delta": 1e-5}, "finite"),
        ({"metrics": "open"}, {"epsilon": 1.0, "delta": 1e-5, "new_rows": ["abc"]}, "match pattern"),
    ],
)
def test_a_document_that_cannot_be_meant(policy: Any, budget: Any, said: str) -> None:
    document = {"name": "a", "datasets": {"heart": {"path": "x.csv", "budget": budget}}, "policy": policy}
    with pytest.raises(ValueError, match=said):
        SiloConfig.model_validate(document)

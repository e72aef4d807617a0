"""Metrics from sums equal those of the pooled rows (oracle 44), and scikit-learn's."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from orchestrator.core.metrics import AUC_BINS, Sums, larger_is_better, pooled, values


def histogram(scores: np.ndarray, labels: np.ndarray) -> Sums:
    """Scores in [0, 1], in `AUC_BINS` bins."""
    bins = np.minimum((scores * AUC_BINS).astype(int), AUC_BINS - 1)
    counts = [np.bincount(bins[labels == label], minlength=AUC_BINS) for label in (0, 1)]
    return Sums("auc", tuple(np.concatenate(counts).astype(float).tolist()))


def silo(rng: np.random.Generator, num_rows: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    labels = (rng.random(num_rows) < share).astype(int)
    return np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0.001, 0.999), labels


def test_pooled_figures_are_those_of_the_pooled_rows() -> None:
    rng = np.random.default_rng(0)
    silos = [silo(rng, rows, share) for rows, share in ((400, 0.5), (30, 0.9), (7, 0.1), (0, 0.0))]
    reports = [
        {
            "accuracy": Sums("mean", (float(((s > 0.5) == y).sum()), float(len(y)))),
            "loss": Sums("mean", (float(-np.log(np.where(y == 1, s, 1 - s)).sum()), float(len(y)))),
            "auc": histogram(s, y),
        }
        for s, y in silos
    ]
    scores, labels = np.concatenate([s for s, _ in silos]), np.concatenate([y for _, y in silos])
    figures = values(pooled(reports))
    assert figures["accuracy"] == pytest.approx(accuracy_score(labels, scores > 0.5), abs=1e-12)
    assert figures["loss"] == pytest.approx(log_loss(labels, scores), abs=1e-9)
    binned = np.minimum((scores * AUC_BINS).astype(int), AUC_BINS - 1)
    assert figures["auc"] == pytest.approx(roc_auc_score(labels, binned), abs=1e-12)
    assert figures["auc"] == pytest.approx(roc_auc_score(labels, scores), abs=2 / AUC_BINS)
    mean_of_silos = np.mean([values(report)["accuracy"] for report in reports[:3]])
    assert abs(figures["accuracy"] - mean_of_silos) > 0.01, "the test must tell pooling from averaging"


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=2, max_size=60))
def test_auc_counts_ties_as_half(rows: list[tuple[int, bool]]) -> None:
    scores, labels = np.array([s for s, _ in rows]), np.array([int(y) for _, y in rows])
    counts = [np.bincount(scores[labels == label], minlength=21) for label in (0, 1)]
    auc = Sums("auc", tuple(np.concatenate(counts).astype(float).tolist())).value
    if len(set(labels.tolist())) < 2:
        assert auc is None
    else:
        assert auc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_what_is_not_defined_is_left_out() -> None:
    sums = {
        "empty": Sums("mean", (0.0, 0.0)),
        "nan": Sums("mean", (math.nan, 3.0)),
        "one": Sums("mean", (2.0, 4.0)),
    }
    assert values(sums) == {"one": 0.5}
    assert Sums("auc", (0.0, 3.0, 0.0, 0.0)).value is None, "one class only"


def test_sums_of_different_kinds_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="cannot add"):
        pooled([{"m": Sums("mean", (1.0, 2.0))}, {"m": Sums("auc", (1.0, 2.0))}])
    with pytest.raises(ValueError, match="cannot add"):
        pooled([{"m": Sums("auc", (1.0, 2.0))}, {"m": Sums("auc", (1.0, 2.0, 0.0, 0.0))}])


def test_counts() -> None:
    assert Sums("mean", (1.0, 8.0)).count == 8
    assert Sums("auc", (1.0, 2.0, 3.0, 4.0)).count == 10
    assert pooled([]) == {}


def test_which_way_is_up() -> None:
    assert all(larger_is_better(name) for name in ("accuracy", "auc", "f1"))
    assert not any(larger_is_better(name) for name in ("loss", "val_loss", "error", "rmse", "mae"))

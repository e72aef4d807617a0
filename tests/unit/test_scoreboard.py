"""Figures per version, the best one, and when to stop: against hand-made histories."""

import math
from typing import Any

import pytest

from orchestrator.core.errors import BadInput
from orchestrator.core.events import Figures, Rewound, RoundClosed, RunOpened, VersionEvaluated
from orchestrator.core.metrics import Sums
from orchestrator.job import Stop
from orchestrator.scoreboard import Scoreboard


def board(max_staleness: int = 0, **stop: Any) -> Scoreboard:
    return Scoreboard(Stop(**{"metric": "accuracy", **stop}), ("a", "b", "c"), max_staleness)


def right(correct: float, count: float) -> dict[str, Sums]:
    return {"accuracy": Sums("mean", (correct, count))}


def with_history(*values: float, **stop: Any) -> Scoreboard:
    made = board(**stop)
    made.history = dict(enumerate(values))
    return made


def closed(version: int, value: float) -> RoundClosed:
    figures = Figures(version=version - 1, overall={"accuracy": value})
    known = {
        "contributors": [],
        "seconds": {},
        "bytes_up": 0,
        "bytes_down": 0,
        "update_norm": 0,
        "checkpoint": "",
    }
    return RoundClosed(version=version, evaluated=figures, lineage="", **known)


def opened(resumed_from: int) -> RunOpened:
    return RunOpened(
        run_id="", name="", job={}, job_digest="", epoch=1, versions={}, resumed_from=resumed_from
    )


def test_figures_are_pooled_over_the_silos_that_reported() -> None:
    made = board()
    made.report("a", 0, right(9, 10))
    made.report("b", 0, right(10, 90))
    figures = made.figures(0)
    assert figures.overall == {"accuracy": 0.19} and figures.silos == {
        "a": {"accuracy": 0.9},
        "b": {"accuracy": 10 / 90},
    }
    assert figures.missing == ["c"] and made.history == {0: 0.19}


def test_in_a_synchronous_run_only_this_version_counts() -> None:
    made = board()
    made.report("a", 0, right(1, 1))
    made.figures(0)
    made.report("b", 1, right(0, 1))
    assert made.figures(1).silos.keys() == {"b"}


def test_otherwise_the_freshest_that_is_not_too_stale() -> None:
    made = board(max_staleness=2)
    made.report("a", 0, right(1, 1))
    made.report("b", 3, right(0, 1))
    made.report("b", 1, right(1, 1))
    assert made.figures(2).overall == {"accuracy": 1.0}, "b's report of version 3 is of the future"
    assert made.figures(3).silos == {"b": {"accuracy": 0.0}}, (
        "a's is three versions old, b's old one was replaced"
    )


def test_a_metric_that_no_silo_reports_is_an_error() -> None:
    made = board(metric="f1")
    made.report("a", 0, {"loss": Sums("mean", (1.0, 2.0)), **right(1, 1)})
    with pytest.raises(BadInput, match="no silo reports 'f1'; they report: accuracy, loss"):
        made.figures(0)


def test_silos_that_let_nothing_out() -> None:
    made = board()
    made.figures(0)  # nobody was heard yet
    for silo in "abc":
        made.freshest[silo] = 1, {}
    with pytest.raises(BadInput, match="lets 'accuracy' out"):
        made.figures(1)


@pytest.mark.parametrize("sums", [Sums("mean", (math.nan, 5.0)), Sums("mean", (0.0, 0.0))])
def test_an_undefined_figure_ends_no_run(sums: Sums) -> None:
    made = board()
    for silo in "abc":
        made.report(silo, 0, {"accuracy": sums})
    assert made.figures(0).overall == {} and made.best is None and made.reason_to_stop() is None


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_odd_one_is_the_minority_wherever_it_stands(place: int) -> None:
    reports = [right(1, 2), right(1, 2), right(1, 2)]
    reports[place] = {"accuracy": Sums("auc", (1.0, 2.0))}
    assert board().odd(reports) == (place, "accuracy")
    assert board().odd(reports[:place] + reports[place + 1 :]) is None


def test_what_silos_reported_before_decides_between_two() -> None:
    made = board()
    made.report("a", 0, right(1, 2))
    made.report("b", 0, right(1, 2))
    assert made.odd([{"accuracy": Sums("auc", (1.0, 2.0))}, right(1, 2)]) == (0, "accuracy")


def test_silos_may_report_different_metrics() -> None:
    reports = [right(1, 2), {"loss": Sums("mean", (1.0, 2.0))}, {}]
    assert board().odd(reports) is None


def test_an_odd_report_never_breaks_the_figures() -> None:
    made = board(max_staleness=5)
    made.report("a", 0, {"accuracy": Sums("auc", (1.0, 2.0))})
    made.report("b", 1, right(1, 2))
    made.report("c", 1, right(1, 2))
    figures = made.figures(1)
    assert figures.overall == {"accuracy": 0.5} and figures.missing == ["a"]


@pytest.mark.parametrize("metric, best", [("accuracy", (1, 0.9)), ("loss", (3, 0.1))])
def test_the_best_version_is_the_earliest_of_the_best(metric: str, best: tuple[int, float]) -> None:
    assert with_history(0.5, 0.9, 0.9, 0.1, 0.1, metric=metric).best == best


@pytest.mark.parametrize(
    "metric, values, reached",
    [
        ("accuracy", (0.5, 0.8), True),
        ("accuracy", (0.9, 0.7), False),
        ("loss", (0.5, 0.7), True),
        ("loss", (0.5, 0.9), False),
    ],
)
def test_the_target_is_for_the_newest_version(metric: str, values: tuple[float, ...], reached: bool) -> None:
    reason = with_history(*values, metric=metric, target=0.75).reason_to_stop()
    assert (reason is not None) == reached
    assert not reached or f"{metric} reached {values[-1]}" in str(reason)


@pytest.mark.parametrize(
    "values, min_delta, stops",
    [
        ((0.1, 0.2, 0.3), 0.0, False),
        ((0.3, 0.2, 0.25), 0.0, True),
        ((0.1, 0.11, 0.12), 0.05, True),
        ((0.1, 0.12, 0.16), 0.05, False),
        ((0.3, 0.2), 0.0, False),
    ],
)
def test_patience(values: tuple[float, ...], min_delta: float, stops: bool) -> None:
    assert (with_history(*values, patience=2, min_delta=min_delta).reason_to_stop() is not None) == stops
    falling = [1 - value for value in values]
    mirrored = with_history(*falling, metric="loss", patience=2, min_delta=min_delta)
    assert (mirrored.reason_to_stop() is not None) == stops


def test_replaying_a_journal_restores_the_history() -> None:
    made = board()
    made.replay(
        [
            closed(1, 0.1),
            closed(2, 0.2),
            closed(3, 0.3),
            VersionEvaluated(evaluated=Figures(version=3, overall={"accuracy": 0.4})),
        ]
    )
    assert made.history == {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4}
    made = board()
    made.replay(
        [closed(1, 0.1), closed(2, 0.2), opened(2), closed(3, 0.3), Rewound(version=1), closed(2, 0.25)]
    )
    assert made.history == {0: 0.1, 1: 0.25}

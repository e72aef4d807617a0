"""What updates count for where silos deliver at their own pace (notes/algorithms.md sections 3.4 and 9, oracle 23)."""

from typing import Any

import numpy as np
import pytest

from orchestrator.core.rounds import RoundPolicy
from orchestrator.weighing import MOST, Balance, cohort_of
from tests.support.arrivals import Arrivals, closed, contributor
from tests.support.quadratic import job_of, optimum, problems, shares
from tests.support.updates import update

SPEEDS = {"s0": 1.0, "s1": 2.0, "s2": 4.0, "s3": 8.0}
"""Seconds per step: the silo with most rows is the slowest."""


def asynchronous(
    made: Any, rounds: int, weights: Any = "examples", buffer: int = 3, **given: Any
) -> Arrivals:
    job = job_of(
        made,
        total=rounds,
        rounds={"mode": "async", "buffer": buffer, "max_staleness": 100, "staleness_exponent": 0, **given},
        combine={"weights": weights},
    )
    return Arrivals(job, made, SPEEDS).run(rounds)


SMALL: dict[str, Any] = {"lr": 0.016, "steps": 1}
"""Local training of which the error that comes with the step's length is small."""


def mean_end(run: Arrivals) -> np.ndarray:
    """Of the last quarter of the iterates."""
    return np.mean(run.path[-len(run.path) // 4 :], axis=0)


@pytest.mark.parametrize("buffer", [1, 3])
def test_23_fedbuff_goes_where_most_updates_come_from(buffer: int) -> None:
    """FedBuff as published: equal weights. It ends at the optimum weighted by arrivals, far from the federation's."""
    made = problems(**SMALL)
    run = asynchronous(made, 1500, "uniform", buffer)
    total = sum(run.counts().values())
    arrivals = {silo: count / total for silo, count in run.counts().items()}
    assert arrivals["s0"] > 2.5 * arrivals["s3"]
    assert np.linalg.norm(mean_end(run) - optimum(made, arrivals)) < 0.02
    assert np.linalg.norm(mean_end(run) - optimum(made, dict.fromkeys(made, 0.25))) > 1.0


@pytest.mark.parametrize("buffer, within", [(1, 0.25), (3, 0.05)])
def test_23_corrected_it_goes_to_the_optimum(buffer: int, within: float) -> None:
    """The slowest silo has most rows. In rounds of one update it counts for eight times its share at once, so that the
    length of the steps shows."""
    made = problems(steps=1, lr=0.048 / buffer)
    run = asynchronous(made, 1500, buffer=buffer, rate_correction=True)
    assert np.linalg.norm(mean_end(run) - optimum(made)) < within


def test_23_with_weights_alone_it_does_not() -> None:
    made = problems(**SMALL)
    assert np.linalg.norm(mean_end(asynchronous(made, 1500)) - optimum(made)) > 1.0


def test_the_guard_over_any_stretch_the_weights_add_up_to_the_shares() -> None:
    made = problems(lr=0.002)
    run = asynchronous(made, 400, rate_correction=True)
    for begin in (100, 250, 379):
        window = [each for one in run.rounds[begin : begin + 20] for each in one.contributors]
        for silo, share in shares(made).items():
            got = sum(each.weight for each in window if each.silo == silo) / 20
            assert got == pytest.approx(0.75 * share, abs=share / 3), (silo, begin)
        whole = [each for one in run.rounds[20:] for each in one.contributors]
        for silo, share in shares(made).items():
            got = sum(each.weight for each in whole if each.silo == silo) / len(run.rounds[20:])
            assert got == pytest.approx(0.75 * share, rel=0.02)


def test_rounds_of_all_silos_are_not_changed_by_a_bit() -> None:
    job = job_of(("a", "b", "c"), rounds={"rate_correction": True})
    balance = Balance(job)
    for version in (1, 2, 3):
        updates = [
            update(silo, version - 1, weight=w) for silo, w in zip("abc", (0.1, 0.2, 0.4), strict=True)
        ]
        assert cohort_of(balance, updates, version, job.policy).factors == (1.0, 1.0, 1.0)
        balance.take(closed(version, *(contributor(silo) for silo in "abc")))


def test_by_hand() -> None:
    """Four silos of equal weight, rounds of two: an update counts for the versions since its silo counted last."""
    job = job_of(tuple("abcd"), rounds={"mode": "async", "rate_correction": True})
    balance, policy = Balance(job), job.policy
    for version, silos in enumerate(("ab", "ac", "ad"), 1):
        balance.take(closed(version, *map(contributor, silos)))
    updates = [update("a", 3), update("b", 1)]
    cohort = cohort_of(balance, updates, 4, policy)
    assert cohort.staleness == (0, 2)
    assert job.strategy.weigh(cohort) == [0.125 * 1, 0.125 * 3], "and half a step"
    twice = [update("a", 2), update("a", 3)]
    assert job.strategy.weigh(cohort_of(balance, twice, 4, policy)) == [0.0625, 0.0625]


def test_a_silo_that_comes_back_counts_for_so_much_and_no_more() -> None:
    job = job_of(("a", "b"), rounds={"mode": "async", "rate_correction": True})
    balance, policy = Balance(job), RoundPolicy(cohort_size=2, buffer_size=1, staleness_exponent=0)
    balance.take(closed(1, contributor("a"), contributor("b")))
    for version in range(2, 101):
        balance.take(closed(version, contributor("a")))
    alone = job.strategy.weigh(cohort_of(balance, [update("a", 100)], 101, policy))
    assert alone == [1.0], "who has been away for long is not waited for with steps kept short"
    assert job.strategy.weigh(cohort_of(balance, [update("b", 100)], 101, policy)) == [0.5 * 2 * MOST]


def test_the_mass_of_a_round() -> None:
    """Absolute where the job gives the weights; by numbers of silos where they follow from rows."""
    updates = [update("a", 0, weight=1.0), update("b", 0, weight=2.0)]
    given = job_of(tuple("abcd"), combine={"weights": {"a": 1, "b": 2, "c": 3, "d": 4}})
    assert cohort_of(Balance(given), updates, 1, given.policy).mass == pytest.approx(0.3)
    plain = job_of(tuple("abcd"))
    assert cohort_of(Balance(plain), updates, 1, plain.policy).mass == 0.5

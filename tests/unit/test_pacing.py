"""Rounds of equal time, and the choice of ``mode: auto`` (notes/algorithms.md sections 3.6 and 9, oracle 26)."""

import math
from typing import Any

import numpy as np
import pytest

from orchestrator.job import Job
from orchestrator.pacing import MEASURED, Pace, Paces, steps_of
from tests.support.arrivals import Arrivals, closed, contributor
from tests.support.quadratic import job_of, optimum, problems

ABCD = tuple("abcd")


def paces(
    step_s: tuple[float, ...], other_s: float = 0.0, own: int = 20, weights: Any = None
) -> dict[str, Pace]:
    weights = weights or (1.0,) * len(step_s)
    return {
        silo: Pace(s, other_s, own, weight)
        for silo, s, weight in zip("abcdefgh", step_s, weights, strict=False)
    }


@pytest.mark.parametrize(
    "step_s, ratio", [((0.58, 0.75, 1.51, 3.33), 3.35), ((1, 2, 4, 8), 3.75)], ids=["measured", "doubling"]
)
def test_26_equal_time(step_s: tuple[float, ...], ratio: float) -> None:
    """Steps are as many as fit into the time; the silos together make so many times the steps of rounds that wait for
    the slowest: ``sum of speeds / (N * the slowest)``, but for rounding down."""
    steps = steps_of(paces(step_s, own=200))
    took = [steps[silo] * s for silo, s in zip(ABCD, step_s, strict=True)]
    time_s = 200 * math.exp(np.mean(np.log(step_s)))
    assert all(time_s - s < each <= time_s * (1 + 1e-8) for each, s in zip(took, step_s, strict=True))
    throughput = (sum(steps.values()) / time_s) / (4 * 200 / (200 * max(step_s)))
    assert throughput == pytest.approx(ratio, rel=0.01)


def test_equally_fast_silos_make_the_job_s_own_steps() -> None:
    assert set(steps_of(paces((0.3,) * 4, other_s=0.1)).values()) == {20}


def test_the_way_there_and_back_counts() -> None:
    made = paces((0.1, 0.1))
    made["b"] = Pace(0.1, 1.0, 20, 1.0)
    assert steps_of(made) == {"a": 25, "b": 15}, "2.5 s for both"


def test_the_middle_is_weighted() -> None:
    """A silo with nearly all of the rows sets the time."""
    steps = steps_of(paces((1.0, 4.0), weights=(1.0, 999.0)))
    assert steps["b"] in (19, 20) and steps["a"] in (79, 80)


def test_steps_stay_within_a_quarter_and_four_times() -> None:
    steps = steps_of(paces((0.001, 1.0, 1.0, 100.0)))
    assert steps["a"] == 80 and steps["d"] == 5
    assert set(steps_of(paces((0.001, 1.0, 1.0, 100.0), own=1)).values()) <= {1, 2, 3, 4}


def test_silos_of_unequal_size_make_as_many_steps_in_equal_time() -> None:
    """Epochs over unequal numbers of rows take unequal time; speed alone decides."""
    made = {"a": Pace(0.1, 0.0, 10, 1.0), "b": Pace(0.1, 0.0, 90, 1.0)}
    assert steps_of(made) == {"a": 30, "b": 30}


def fednova(**rounds: Any) -> Job:
    return job_of(ABCD, rounds=rounds, strategy={"name": "fednova"}, local={"steps": 20})


def measured(silo: str, train_s: float, num_steps: int = 20, **seconds: float) -> Any:
    return contributor(silo, num_steps=num_steps, seconds={"train": train_s, **seconds})


def test_measurements_are_averaged_and_only_what_was_measured_is_asked_for() -> None:
    made = Paces(fednova(equal_time=True))
    assert made.steps("a") is None
    made.take(closed(1, measured("a", 2.0, evaluate=1.0, transfer=0.5), measured("b", 2.0)))
    made.take(closed(2, measured("a", 4.0)))
    assert made.by_silo["a"].step_s == pytest.approx(0.15) and made.by_silo["a"].other_s == pytest.approx(
        0.75
    )
    assert made.steps("a") is not None and made.steps("c") is None, "it has not delivered yet"
    assert Paces(fednova()).steps("a") is None


def test_a_silo_that_says_nothing_of_its_steps_is_not_paced() -> None:
    made = Paces(fednova(equal_time=True))
    made.take(closed(1, measured("a", 2.0), measured("b", 2.0, num_steps=0), measured("c", -5.0)))
    assert made.by_silo.keys() == {"a"}


def test_a_resumed_driver_asks_for_the_same() -> None:
    history = [
        closed(version, *(measured(silo, version * (1 + i), transfer=0.1) for i, silo in enumerate("abcd")))
        for version in range(1, 8)
    ]
    whole, again = Paces(fednova(mode="auto")), Paces(fednova(mode="auto"))
    for one in history:
        whole.take(one)
    for one in history:
        again.take(type(one).model_validate_json(one.model_dump_json()))
    assert [whole.steps(silo) for silo in "abcd"] == [again.steps(silo) for silo in "abcd"]
    assert whole.choice == again.choice and whole.choice is not None


@pytest.mark.parametrize("slowest, mode", [(1.25, "sync"), (1.35, "semi_sync"), (8.0, "semi_sync")])
def test_auto_chooses_by_what_it_measured_and_says_why(slowest: float, mode: str) -> None:
    made = Paces(fednova(mode="auto"))
    for version in range(1, MEASURED + 1):
        assert made.choice is None and made.steps("a") is None
        made.take(closed(version, *(measured(silo, 2.0) for silo in "abc"), measured("d", 2.0 * slowest)))
    assert made.choice is not None and made.choice.mode == mode and made.choice.version == MEASURED
    assert "2 s (a)" in made.choice.reason and f"{slowest:.2f} times as long" in made.choice.reason
    assert (made.steps("d") is None) == (mode == "sync")
    made.take(closed(MEASURED + 1, *(measured(silo, 1.0) for silo in "abcd")))
    assert made.choice.mode == mode, "it stays"


def test_auto_with_nothing_to_compare_waits_for_all() -> None:
    made = Paces(fednova(mode="auto"))
    for version in range(1, MEASURED + 1):
        made.take(closed(version, measured("a", 2.0), measured("b", 2.0, num_steps=0)))
    assert (
        made.choice is not None and made.choice.mode == "sync" and "nothing to compare" in made.choice.reason
    )


@pytest.mark.parametrize("strategy", ["fednova", pytest.param("scaffold", marks=pytest.mark.slow)])
def test_equal_time_goes_to_the_optimum(strategy: str) -> None:
    """However unequal the numbers of steps; FedNova but for the length of its steps."""
    made = problems(steps=8, lr=0.002)
    job = job_of(made, rounds={"equal_time": True}, strategy={"name": strategy}, local={"steps": 8})
    run = Arrivals(job, made, {"s0": 1.0, "s1": 2.0, "s2": 4.0, "s3": 8.0}).run(1200)
    steps = {each.silo: each.num_steps for each in run.rounds[-1].contributors}
    assert steps == {"s0": 32, "s1": 16, "s2": 8, "s3": 4}, "of 8 * 2 ** 2.05 = 33.1 s"
    assert max(np.diff(run.times)) <= 33.2
    assert np.abs(run.path[-1] - optimum(made)).max() < (0.05 if strategy == "fednova" else 1e-3)


def test_auto_in_time() -> None:
    """Equal time, a quorum with grace, corrected rates: more rounds in the same time, and the same optimum."""
    made, speeds = problems(steps=8, lr=0.002), {"s0": 1.0, "s1": 2.0, "s2": 4.0, "s3": 8.0}
    runs = {}
    for mode in ("sync", "auto"):
        job = job_of(made, rounds={"mode": mode}, strategy={"name": "fednova"}, local={"steps": 8})
        runs[mode] = Arrivals(job, made, speeds).run(900)
    assert runs["auto"].machine.policy == job.loosest_policy
    assert runs["auto"].times[-1] < 0.7 * runs["sync"].times[-1]
    assert np.abs(runs["auto"].path[-1] - optimum(made)).max() < 0.05

"""The real driver among silos of unequal speed: equal time, work handed in at the deadline, and the mode that ``auto``
chooses; and the same again after a resumption."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.core import events
from orchestrator.core.faults import FaultInjected, arm
from orchestrator.core.messages import Train
from orchestrator.driver import Driver
from orchestrator.pacing import MEASURED
from orchestrator.transport.local import LocalChannel
from orchestrator.weighing import Balance, cohort_of
from tests.support.federation import Ended, double_counts, federate, journal, run_quadratic
from tests.support.quadratic import Quadratic, job_of, optimum, problems, silo_makers, sites
from tests.support.updates import update


def unequal(**slow: float) -> dict[str, Quadratic]:
    """Silos that sleep for 1 ms a step, or so much."""
    made = problems(steps=8, lr=0.02)
    return {silo: replace(problem, sleep_s=slow.get(silo, 0.001)) for silo, problem in made.items()}


def steps(ended: Ended, version: int) -> dict[str, int]:
    closed = next(each for each in ended.rounds if each.version == version)
    return {each.silo: each.num_steps for each in closed.contributors}


def stop_after(version: int) -> Any:
    def during(driver: Driver, silos: LocalChannel, event: events.Event) -> None:
        if isinstance(event, events.RoundClosed) and event.version == version:
            driver.request_stop()

    return during


@pytest.mark.parametrize("strategy", ["fednova", "scaffold", "feddyn"])
def test_equal_time(tmp_path: Path, strategy: str) -> None:
    made = unequal(s1=0.012)
    job = job_of(made, total=4, rounds={"equal_time": True}, strategy={"name": strategy}, local={"steps": 8})
    ended = run_quadratic(job, made, tmp_path)
    assert set(steps(ended, 1).values()) == {8}, "nothing is measured yet"
    assert steps(ended, 4)["s1"] < 8 < steps(ended, 4)["s3"]
    assert ended.rounds[0].seconds["wait"] > 1.3 * ended.rounds[3].seconds["wait"]
    assert np.abs(ended.params - optimum(made)).max() < np.abs(optimum(made)).max()


def test_a_resumed_driver_knows_how_fast_its_silos_are(tmp_path: Path) -> None:
    made = unequal(s1=0.012)
    job = job_of(made, total=5, rounds={"equal_time": True}, strategy={"name": "fednova"}, local={"steps": 8})
    makers = silo_makers(sites(made, tmp_path / "silos"))
    asked: list[Train] = []

    class Noting(LocalChannel):
        async def call(self, silo: str, request: Any) -> Any:
            asked.extend([request] if isinstance(request, Train) and silo == "s1" else [])
            return await super().call(silo, request)

    first = federate(job, makers, tmp_path, during=stop_after(3), channel=Noting)
    assert first.outcome.status == "stopped"
    would_ask = first.driver.attempt.paces.steps("s1")
    asked.clear()
    again = federate(job, makers, tmp_path, channel=Noting)
    assert again.outcome.status == "done" and not double_counts(journal(tmp_path))
    assert asked[0].num_steps == would_ask != 8


def test_work_is_handed_in_at_the_deadline(tmp_path: Path) -> None:
    """A silo that would take 4 s for a round of 0.4 s is in every one, with the steps that it has made."""
    made = {silo: replace(each, steps=40) for silo, each in unequal(s1=0.1).items()}
    rounds = {"mode": "quorum", "deadline_s": 0.4, "partial": True, "min_updates": 3}
    ended = run_quadratic(
        job_of(made, total=3, rounds=rounds, strategy={"name": "fednova"}, local={"steps": 40}),
        made,
        tmp_path,
    )
    assert ended.outcome.status == "done" and ended.seconds < 4
    for closed in ended.rounds:
        done = {each.silo: each.num_steps for each in closed.contributors}
        assert done.keys() == set(made) and 1 <= done.pop("s1") < 15 and set(done.values()) == {40}


def test_without_it_a_slow_silo_is_in_none(tmp_path: Path) -> None:
    made = {silo: replace(each, steps=40) for silo, each in unequal(s1=0.1).items()}
    rounds = {"mode": "quorum", "deadline_s": 0.4, "min_updates": 3}
    ended = run_quadratic(job_of(made, total=2, rounds=rounds, strategy={"name": "fednova"}), made, tmp_path)
    assert {len(closed.contributors) for closed in ended.rounds} == {3}


def auto(made: dict[str, Quadratic], total: int) -> Any:
    return job_of(
        made, total=total, rounds={"mode": "auto"}, strategy={"name": "fednova"}, local={"steps": 8}
    )


def test_auto_among_equally_fast_silos_is_sync_to_the_bit(tmp_path: Path) -> None:
    made = {silo: replace(each, sleep_s=0.02, steps=3) for silo, each in problems().items()}
    ended = run_quadratic(auto(made, MEASURED + 2), made, tmp_path / "auto")
    (chosen,) = ended.of(events.ModeChosen)
    assert chosen.mode == "sync" and chosen.version == MEASURED, chosen.reason
    job = job_of(made, total=MEASURED + 2, strategy={"name": "fednova"})
    assert run_quadratic(job, made, tmp_path / "sync").bits == ended.bits


def test_auto_among_unequal_silos_and_a_resumed_run_keeps_the_choice(tmp_path: Path) -> None:
    made = unequal(s1=0.012)
    makers = silo_makers(sites(made, tmp_path / "silos"))
    federate(auto(made, 8), makers, tmp_path, during=stop_after(MEASURED + 1))
    ended = federate(auto(made, 8), makers, tmp_path)
    assert ended.outcome.status == "done"
    (chosen,) = [event for event in journal(tmp_path) if isinstance(event, events.ModeChosen)]
    assert chosen.mode == "semi_sync" and "(s1)" in chosen.reason and chosen.seconds.keys() == set(made)
    assert ended.driver.rounds.policy.grace == 0.25 and ended.driver.rounds.policy.buffer_size == 3
    assert max(steps(ended, 8).values()) > 8


def test_what_was_told_of_a_version_that_is_made_again_is_told_again(tmp_path: Path) -> None:
    """The choice may be in the journal when the version that it was measured up to is not yet durable."""
    made = unequal(s1=0.012)
    makers = silo_makers(sites(made, tmp_path / "silos"))
    arm(f"round.opened:{MEASURED + 1}:raise")
    try:
        with pytest.raises(FaultInjected):
            federate(auto(made, 6), makers, tmp_path)
    finally:
        arm(None)
    ended = federate(auto(made, 6), makers, tmp_path)
    assert ended.outcome.status == "done"
    told = [event for event in journal(tmp_path) if isinstance(event, events.ModeChosen)]
    resumed = [event for event in journal(tmp_path) if isinstance(event, events.RunOpened)][-1].resumed_from
    assert len(told) == (2 if resumed is not None and resumed < MEASURED else 1)
    assert {event.mode for event in told} == {"semi_sync"}


def test_area_and_fedasync_over_the_real_driver(tmp_path: Path) -> None:
    made = unequal(s1=0.004)
    uniform = {"combine": {"weights": "uniform"}}
    area = job_of(made, total=25, rounds={"mode": "async"}, strategy={"name": "area"}, **uniform)
    mixed = job_of(made, total=50, rounds={"mode": "fedasync"}, strategy={"name": "fedasync"})
    for job in (area, mixed):
        ended = run_quadratic(job, made, tmp_path / job.strategy.name)
        assert ended.outcome.status == "done" and not ended.of(events.SiloDown)
        best = optimum(made, dict.fromkeys(made, 0.25))
        least, before, loss = (
            sum(problem.loss(point) for problem in made.values())
            for point in (best, np.zeros(5), ended.params)
        )
        assert loss - least < 0.3 * (before - least), job.strategy.name
        assert all(closed.update_norm > 0 for closed in ended.rounds)
    weights = [each.weight for closed in ended.rounds for each in closed.contributors]
    assert max(weights) == pytest.approx(0.6) and min(weights) < 0.6


def test_what_went_into_the_sum_stands_in_the_journal_and_follows_from_it(tmp_path: Path) -> None:
    made = unequal(s1=0.006)
    job = job_of(
        made, total=20, rounds={"mode": "async", "rate_correction": True}, strategy={"name": "fednova"}
    )
    run_quadratic(job, made, tmp_path)
    balance = Balance(job)
    rounds = [event for event in journal(tmp_path) if isinstance(event, events.RoundClosed)]
    for closed in rounds:
        given = [
            update(each.silo, each.base_version, weight=float(each.num_examples))
            for each in closed.contributors
        ]
        cohort = cohort_of(balance, given, closed.version, job.policy)
        assert job.strategy.weigh(cohort) == [each.weight for each in closed.contributors]
        assert all(each.seconds["transfer"] >= 0 for each in closed.contributors)
        balance.take(closed)
    gaps = [each.weight / (each.num_examples / 1000) for closed in rounds for each in closed.contributors]
    assert max(gaps) > 0.95, "a slow silo counts for the versions that it missed"

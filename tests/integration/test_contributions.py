"""Contributions and drift in whole runs on quadratic silos."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.core import events
from orchestrator.core.faults import FaultInjected, arm
from orchestrator.core.messages import Evaluate
from silos.site import Order, Trained
from tests.support.federation import LossyChannel, federate, journal, run_quadratic
from tests.support.quadratic import QuadraticTrainer, job_of, problems, shares, silo_makers, sites


def valued(ended: Any) -> events.ContributionsFound:
    return ended.of(events.ContributionsFound)[0]


def test_values_add_up_and_all_together_are_the_final_model(tmp_path: Path) -> None:
    silos = problems()
    job = job_of(silos, total=6, report={"contribution": "shapley"})
    ended = run_quadratic(job, silos, tmp_path)
    found, weights = valued(ended), shares(silos)
    worths = {each.silo: each.value for each in found.worths}
    assert (found.method, found.metric, found.num_evaluations, found.why_not) == ("shapley", "loss", 16, "")
    assert found.initial is not None and found.final is not None and found.unexplained < 1e-5
    assert sum(worths.values()) == pytest.approx(found.initial - found.final, rel=1e-5)
    assert found.final == pytest.approx(
        sum(weights[s] * silos[s].loss(ended.params) for s in silos), rel=1e-4
    )
    types = [event.type for event in ended.events]
    assert types.index("contributions_found") < types.index("run_assessed") < types.index("run_closed")


def test_they_change_nothing_else(tmp_path: Path) -> None:
    silos = problems()
    plain = run_quadratic(job_of(silos, total=3), silos, tmp_path / "plain")
    found = run_quadratic(
        job_of(silos, total=3, report={"contribution": "leave_one_out"}), silos, tmp_path / "b"
    )
    assert found.bits == plain.bits
    assert valued(found).method == "leave_one_out" and valued(found).num_evaluations == 5


@pytest.mark.parametrize(
    "point", ["round.folded:3", "checkpoint.renamed:3", "round.closed:2", "silo.assessed:1"]
)
def test_a_driver_that_died_finds_the_same_values(tmp_path: Path, point: str) -> None:
    silos = problems()
    job = job_of(silos, total=4, report={"contribution": "shapley"}, strategy={"name": "scaffold"})
    whole = valued(run_quadratic(job, silos, tmp_path / "whole"))
    arm(f"{point}:raise")
    try:
        with pytest.raises(FaultInjected):
            run_quadratic(job, silos, tmp_path / "killed")
    finally:
        arm(None)
    run_quadratic(job, silos, tmp_path / "killed")
    found = [event for event in journal(tmp_path / "killed") if isinstance(event, events.ContributionsFound)]
    assert len(found) == 1 and found[0].worths == whole.worths
    assert found[0].unexplained == pytest.approx(whole.unexplained) and whole.unexplained < 1e-5


def test_more_than_eight_silos_are_sampled(tmp_path: Path) -> None:
    silos = problems(9)
    job = job_of(silos, total=2, report={"contribution": "shapley", "permutations": 4})
    found = valued(run_quadratic(job, silos, tmp_path))
    assert found.method == "sampled_shapley" and len(found.worths) == 9
    assert all(each.error >= 0 for each in found.worths) and 2 < found.num_evaluations <= 2 + 4 * 9


def test_a_silo_that_is_lost_leaves_no_values_and_the_run_is_done(tmp_path: Path) -> None:
    silos = problems()
    job = job_of(silos, total=2, report={"contribution": "shapley"})
    losses = {("s1", Evaluate.__name__, 4): "before"}
    makers = silo_makers(sites(silos, tmp_path / "silos"))
    ended = federate(job, makers, tmp_path, channel=lambda makers: LossyChannel(makers, losses))
    assert ended.outcome.status == "done"
    assert not valued(ended).worths and "s1" in valued(ended).why_not


def test_cosines_are_those_of_the_updates_with_their_mean(tmp_path: Path) -> None:
    silos = problems()
    first = run_quadratic(job_of(silos, total=1), silos, tmp_path).rounds[0]
    deltas, weights = {}, shares(silos)
    for name, problem in silos.items():
        point = np.zeros(5)
        for _ in range(problem.steps):
            point = point - problem.lr * problem.a @ (point - problem.b)
        deltas[name] = point
    mean = sum(weights[name] * delta for name, delta in deltas.items())
    for each in first.contributors:
        delta = deltas[each.silo]
        expected = delta @ mean / np.linalg.norm(delta) / np.linalg.norm(mean)
        assert each.cosine == pytest.approx(expected, abs=1e-5)
    quiet = run_quadratic(job_of(silos, total=1, report={"drift": False}), silos, tmp_path / "b")
    assert all(each.cosine is None for each in quiet.rounds[0].contributors)


class Telling(QuadraticTrainer):
    """Says how large its loss was in training."""

    def train(self, order: Order) -> Trained:
        return replace(super().train(order), train_metrics=self.evaluate(order))


class Turning:
    """A silo whose problem is another one from some training on."""

    def __init__(self, silo: Any, problem: Any, at: int) -> None:
        self.silo, self.problem, self.at = silo, problem, at

    def handle(self, request: Any) -> Any:
        if getattr(request, "version", -1) >= self.at:
            self.problem.b[:] = -60.0
        return self.silo.handle(request)


def test_a_silo_that_turns_is_alarmed_of_once_also_after_a_death(tmp_path: Path) -> None:
    def drive(folder: Path) -> Any:
        silos = problems(8, lr=0.02)
        places = sites(silos, folder / "silos")
        for place in places.values():
            place.make = Telling
        makers = dict(silo_makers(places))
        honest = makers["s2"]
        makers["s2"] = lambda: Turning(honest(), silos["s2"], 12)  # type: ignore[assignment, return-value]
        return federate(job_of(silos, total=18), makers, folder)

    whole = drive(tmp_path / "whole")
    alarms = [(alarm.silo, alarm.version) for alarm in whole.of(events.DriftAlarm)]
    assert alarms[0] == ("s2", 15)
    told = [alarm for alarm in journal(tmp_path / "whole") if isinstance(alarm, events.DriftAlarm)]
    arm("round.closed:15:raise")
    try:
        with pytest.raises(FaultInjected):
            drive(tmp_path / "killed")
    finally:
        arm(None)
    drive(tmp_path / "killed")
    again = [alarm for alarm in journal(tmp_path / "killed") if isinstance(alarm, events.DriftAlarm)]
    assert [each.model_copy(update={"seq": 0, "time": 0}) for each in again] == [
        each.model_copy(update={"seq": 0, "time": 0}) for each in told
    ]

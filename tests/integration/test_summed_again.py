"""An update that was opened in a sum which did not count: the run goes on with another training from its version."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator import driver
from orchestrator.core.events import UpdateRefused
from orchestrator.core.messages import MOST_DRAWS, Refused, Train, Update
from orchestrator.job import Job
from orchestrator.transport.local import Handles, LocalChannel
from tests.support.asked_sums import AskedSums
from tests.support.federation import Ended, LossyChannel, federate
from tests.support.quadratic import Drawing, PlainSite, QuadraticTrainer, job_of, problems, silo_makers

NAMES = ("s0", "s1", "s2", "s3")
SUMS: list[dict[str, Any]] = [
    {"name": "secure_sum"},
    {"name": "two_aggregator_sum", "second": "s1"},
]
ASYNC = {"mode": "async", "buffer": 3, "max_staleness": 2}


def silos(folder: Path, make: type[QuadraticTrainer] = Drawing) -> Mapping[str, Any]:
    return silo_makers({name: PlainSite(name, each, folder, make) for name, each in problems().items()})


def job(combine: dict[str, Any], rounds: dict[str, Any] | None = None, total: int = 5) -> Job:
    rounds = {"min_updates": 3, "patience_s": 10, **(rounds or {})}
    return job_of(NAMES, total, report={"silos": False}, combine=combine, rounds=rounds)


def without(silo: str, version: int) -> Any:
    """A channel on which this silo's packet is lost in the sum that makes this version."""

    def made(makers: Mapping[str, Any]) -> LocalChannel:
        return LossyChannel(makers, {(silo, "Fetch", version): "before"})

    return made


class Crash(Exception):
    pass


def crashed(job: Job, makers: Mapping[str, Handles], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum without s3 is opened, and the driver ends before its version is durable."""
    fault, folded = driver.fault, []

    def crash(point: str) -> None:
        folded.append(point == "round.folded")
        if sum(folded) == 2:
            raise Crash
        fault(point)

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(driver, "fault", crash)
        federate(job, makers, folder, channel=without("s3", 2))


def bound(ended: Ended) -> set[str]:
    return {event.silo for event in ended.of(UpdateRefused) if event.code == "bound"}


@pytest.mark.parametrize("rounds", [{}, ASYNC], ids=["sync", "async"])
@pytest.mark.parametrize("combine", SUMS, ids=lambda combine: combine["name"])
def test_a_driver_that_dies_after_a_sum_without_one_silo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, combine: dict[str, Any], rounds: dict[str, Any]
) -> None:
    wanted = job(combine, rounds)
    crashed(wanted, silos(tmp_path), tmp_path, monkeypatch)
    ended = federate(wanted, silos(tmp_path), tmp_path)
    assert ended.outcome.exit_code == 0, ended.outcome
    assert rounds or ended.contributors == [list(NAMES)] * 4
    assert rounds or bound(ended)


def test_the_same_job_anew_with_another_set_of_silos(tmp_path: Path) -> None:
    first = federate(job(SUMS[0], total=2), silos(tmp_path), tmp_path, channel=without("s3", 1))
    assert first.contributors[0] == ["s0", "s1", "s2"]
    again = federate(job(SUMS[0], total=2), silos(tmp_path), tmp_path, run_id="again")
    assert (again.outcome.exit_code, bound(again)) == (0, {"s0", "s1", "s2"})
    assert again.contributors == [list(NAMES)] * 2
    assert again.digest != first.digest


def test_a_training_that_is_always_the_same_is_not_summed_without_a_silo(tmp_path: Path) -> None:
    makers = silos(tmp_path, QuadraticTrainer)
    federate(job(SUMS[0], total=1), makers, tmp_path, channel=without("s3", 1))
    again = federate(job(SUMS[0], total=1), makers, tmp_path, run_id="again")
    assert again.outcome.exit_code == 4
    assert "opened in another sum" in again.outcome.reason and "another seed" in again.outcome.reason
    asked = [event for event in again.of(UpdateRefused) if event.silo == "s0"]
    assert len(asked) == MOST_DRAWS + 1


def test_figures_that_only_a_sum_tells_are_in_the_first_one_alone(tmp_path: Path) -> None:
    asked = AskedSums(tmp_path, {"name": "secure_sum"}, summed=["s0", "s1", "s2", "s3", "s4", "s5"])
    asked.train()
    assert all(update.summed and update.hidden for update in asked.updates.values())
    asked.train(draw=1)
    assert not any(update.summed or update.hidden for update in asked.updates.values())


@pytest.mark.parametrize(
    ("combine", "draw"), [("secure_sum", MOST_DRAWS + 1), ("secure_sum", -1), ("mean", 1)]
)
def test_draws_that_no_job_foresees(tmp_path: Path, combine: str, draw: int) -> None:
    asked = AskedSums(tmp_path, {"name": combine})

    def trained(draw: int) -> Any:
        request = Train(
            run_id="run", epoch=1, version=0, attempt=1, model={"params": np.zeros(5, np.float32)}, model_digest="m",
            counted=-1, inline=0, draw=draw,
        )  # fmt: skip
        return asked.silos["s0"].handle(request)

    reply = trained(draw)
    assert isinstance(reply, Refused) and f"asks for training {draw} of version 0" in reply.reason
    assert isinstance(trained(0), Update)

"""Whole runs with sums that nobody can look into, while a driver starts anew, a silo's memory is damaged, what a silo
says is absurd, or updates come late."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import driver
from orchestrator.core.events import Event, ModeChosen, RoundClosed, SiloDown
from orchestrator.core.messages import Evaluated, Reply, Request, Train
from orchestrator.transport.local import LocalChannel
from silos.sum_memory import FILE
from tests.integration.test_sealed_sums import KINDS, SEALED, SUM, run
from tests.support.federation import Makers, federate
from tests.support.quadratic import job_of, problems, silo_makers, sites


class Crash(Exception):
    pass


@pytest.mark.parametrize("kind", SEALED)
def test_a_driver_that_starts_anew_finds_silos_that_live_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """They have keys, and sums, of its predecessor, which counted from one as well."""
    names = [f"s{i}" for i in range(4)]
    makers = silo_makers(sites(problems(4), tmp_path / "silos"))
    living: dict[str, Any] = {}
    start: Makers = {
        silo: lambda silo=silo: living[silo] if silo in living else living.setdefault(silo, makers[silo]())
        for silo in names
    }
    job = job_of(
        names,
        3,
        report={"silos": False},
        rounds={"min_updates": 3},
        combine={"name": kind, **SUM, **KINDS[kind]},
    )
    fault = driver.fault

    def crash(point: str) -> None:
        if point == "round.folded":
            raise Crash
        fault(point)

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(driver, "fault", crash)
        federate(job, start, tmp_path)
    ended = federate(job, start, tmp_path)
    assert ended.outcome.exit_code == 0, ended.outcome
    assert ended.contributors == [names] * 3 and not ended.refusals
    assert ended.digest == run(tmp_path / "plain", "fixed_point_sum", total=3).digest


@pytest.mark.parametrize("kind", SEALED)
def test_a_silo_that_cannot_remember_is_in_no_sum(tmp_path: Path, kind: str) -> None:
    """Also where the others alone could open it."""
    memory = tmp_path / kind / "silos" / "s3" / FILE
    memory.parent.mkdir(parents=True)
    memory.write_text("nothing that siloray wrote\n")
    ended = run(tmp_path / kind, kind, 5, 2, rounds={"min_updates": 4})
    assert ended.outcome.exit_code == 0
    assert ended.contributors == [["s0", "s1", "s2", "s4"]] * 2
    assert ended.refusals == {("s3", version, "data") for version in range(2)}


class OddFigures(LocalChannel):
    """One silo says that it has more figures than a machine has memory."""

    async def call(self, silo: str, request: Request) -> Reply:
        reply = await super().call(silo, request)
        odd = silo == "s3" and isinstance(reply, Evaluated)
        return replace(reply, summed=(("loss", "mean", 1 << 40),)) if odd else reply


def test_a_silo_with_absurd_figures_is_not_in_their_sum(tmp_path: Path) -> None:
    names = [f"s{i}" for i in range(4)]
    job = job_of(names, 1, rounds={"min_updates": 3}, combine={"name": "secure_sum", **SUM})
    makers = silo_makers(sites(problems(4), tmp_path / "silos"))
    ended = federate(job, makers, tmp_path, channel=OddFigures)
    assert ended.outcome.exit_code == 0 and ended.refusals == {("s3", 1, "metrics")}
    assert not ended.of(SiloDown), "the others' figures were summed"


class OneIsLate(LocalChannel):
    """What s3 made of version 3 is held back until that round is over."""

    def __init__(self, start: Makers) -> None:
        super().__init__(start)
        self.over = asyncio.Event()

    async def call(self, silo: str, request: Request) -> Reply:
        reply = await super().call(silo, request)
        if silo == "s3" and isinstance(request, Train) and request.version == 3:
            await self.over.wait()
        return reply


@pytest.mark.parametrize("kind", ["fixed_point_sum", "secure_sum"])
def test_a_sum_has_room_for_updates_that_auto_lets_come_late(tmp_path: Path, kind: str) -> None:
    """Of one silo two updates, in a ring that is narrow."""
    made = problems(4)
    made["s3"].sleep_s = 0.02
    job = job_of(
        made,
        total=5,
        strategy={"name": "scaffold"},
        report={"silos": False},
        rounds={"mode": "auto", "min_updates": 3, "grace": 10.0},
        combine={"name": kind, "ring": "uint16", "weights": dict.fromkeys(made, 1.0), "weight_levels": 10},
    )

    def during(_: object, silos: LocalChannel, event: Event) -> None:
        if isinstance(event, RoundClosed) and event.version == 4:
            assert isinstance(silos, OneIsLate)
            silos.over.set()

    makers = silo_makers(sites(made, tmp_path / "silos"))
    ended = federate(job, makers, tmp_path, channel=OneIsLate, during=during)
    assert ended.outcome.exit_code == 0, ended.outcome.reason
    assert [chosen.mode for chosen in ended.of(ModeChosen)] == ["semi_sync"]
    last = [(each.silo, each.base_version) for each in ended.rounds[-1].contributors]
    assert not ended.refusals and last == [("s0", 4), ("s1", 4), ("s2", 4), ("s3", 3), ("s3", 4)]

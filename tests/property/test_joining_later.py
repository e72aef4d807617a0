"""Silos that are closed at this hour, or work for another run: waited for where they are needed, and always told."""

import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.attempt import GIVE_UP, Attempt
from orchestrator.core import events
from orchestrator.core.errors import CannotGoOn
from orchestrator.core.messages import Join, Refused, Reply, Request, Train
from orchestrator.store import Store
from orchestrator.summary import read_summary
from orchestrator.transport.local import LocalChannel
from tests.support.federation import Ended, federate, journal
from tests.support.quadratic import job_of, problems, silo_makers, sites

CLOSED = "s1 is closed until Mon 20:00 (Europe/Zurich)"


class Closes:
    """A silo that is closed for some seconds from the first time that it is asked to ``kind``."""

    def __init__(self, silo: Any, kind: type, seconds: float, version: int) -> None:
        self.silo, self.kind, self.seconds, self.version = silo, kind, seconds, version
        self.until: float | None = None

    def handle(self, request: Request) -> Reply:
        now = time.monotonic()
        asked = isinstance(request, self.kind) and getattr(request, "version", self.version) == self.version
        if self.until is None and asked:
            self.until = now + self.seconds
        if isinstance(request, Join | Train) and self.until is not None and now < self.until:
            return Refused(silo="s1", code="busy", reason=CLOSED)
        return self.silo.handle(request)


def run_closed(folder: Path, kind: type, seconds: float, version: int = 0, **rounds: Any) -> Ended:
    """A run of four silos, of which s1 closes for so long."""
    makers: dict[str, Any] = dict(silo_makers(sites(problems(), folder / "silos")))
    closes = Closes(makers["s1"](), kind, seconds, version)
    makers["s1"] = lambda: closes
    return federate(job_of(makers, total=3, rounds=rounds), makers, folder)


def test_a_run_that_needs_a_closed_silo_waits_until_it_opens(tmp_path: Path) -> None:
    """Much longer than it waits for silos of which it hears nothing."""
    patience_s, closed_s = 0.05, 1.5
    ended = run_closed(tmp_path, Join, closed_s, patience_s=patience_s)
    assert closed_s > 2 * GIVE_UP * patience_s
    assert ended.outcome.status == "done" and ended.contributors == [list(problems())] * 3
    (told,) = ended.of(events.SiloBusy)
    assert (told.silo, told.reason) == ("s1", CLOSED)
    waiting = ended.of(events.Waiting)[-1]
    assert "s1" in waiting.silos and CLOSED in waiting.why and waiting.until_s is None


def test_a_silo_that_closes_in_the_run_is_waited_for(tmp_path: Path) -> None:
    ended = run_closed(tmp_path, Train, 1.5, version=1, patience_s=0.05)
    assert ended.outcome.status == "done" and ended.contributors == [list(problems())] * 3
    assert [(down.silo, down.version, down.why) for down in ended.of(events.SiloDown)] == [("s1", 1, CLOSED)]
    waiting = ended.of(events.Waiting)[-1]
    assert (waiting.silos, waiting.version, waiting.until_s) == (["s1"], 1, None) and CLOSED in waiting.why


def test_a_run_that_goes_on_without_a_closed_silo_says_why(tmp_path: Path) -> None:
    """Once, although it is asked again and again."""
    ended = run_closed(tmp_path, Join, 99.0, min_updates=3, patience_s=1.0)
    assert ended.outcome.status == "done" and ended.contributors == [["s0", "s2", "s3"]] * 3
    told = [event for event in journal(tmp_path) if isinstance(event, events.SiloBusy)]
    assert [(event.silo, event.reason) for event in told] == [("s1", CLOSED)]
    (busy,) = read_summary(tmp_path / "runs" / "run")["busy"]
    assert busy == {"silo": "s1", "reason": CLOSED, "time": told[0].time}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_only_time_without_a_promise_counts(tmp_path: Path) -> None:
    """The patience is one second, so ten are waited in vain."""
    clock, seen = Clock(), []
    channel = LocalChannel({})
    job = job_of(["s0", "s1", "s2"], rounds={"patience_s": 1.0})
    attempt = Attempt(job, channel, Store(tmp_path / "run"), "run", seen.append, clock, lambda: None)
    attempt.store.acquire("test")

    def wait(now: float) -> None:
        clock.now = now
        attempt.wait(3, ["s1", "s0"], "the round needs their updates")

    attempt.enrolment.busy["s2"] = "s2 is closed"
    wait(0.0)
    wait(9.0)
    attempt.enrolment.busy["s1"] = CLOSED
    wait(9.5)
    wait(5000.0)
    del attempt.enrolment.busy["s1"]
    wait(5001.0)
    wait(5010.0)
    with pytest.raises(CannotGoOn, match="waited 10 s in vain: s0: did not deliver; s1: did not deliver"):
        wait(5010.1)
    told = [(event.silos, event.why, event.until_s) for event in seen]
    plain, later = "the round needs their updates", f"the round needs their updates; {CLOSED}"
    silos = ["s0", "s1"]
    assert told == [(silos, plain, 10.0), (silos, later, None), (silos, plain, 10.0)], (
        "who is not awaited is no matter"
    )


class Broken(LocalChannel):
    """Fails in a way of its own where s1 is to join."""

    async def call(self, silo: str, request: Request) -> Reply:
        if silo == "s1" and isinstance(request, Join):
            raise RuntimeError("planted in the channel")
        return await super().call(silo, request)


def test_a_channel_that_fails_in_its_own_way_ends_the_run(tmp_path: Path) -> None:
    """It would be waited for without end: nobody would look for the silo any more."""
    job = job_of(problems(), total=3, required_silos=["s1"])
    with pytest.raises(RuntimeError, match="planted in the channel"):
        federate(job, silo_makers(sites(problems(), tmp_path / "silos")), tmp_path, channel=Broken)

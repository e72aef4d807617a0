"""Silos that describe another model, trickle, or talk without end: each costs itself its place, and nobody else."""

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import launching, pipeline
from orchestrator.core import events
from orchestrator.core.events import MAX_REASON
from orchestrator.core.messages import Fetch, Initial, Join, Joined, Refused, Reply, Request, Train
from orchestrator.transport.local import LocalChannel
from tests.support.federation import Ended, LossyChannel, federate, run_quadratic
from tests.support.quadratic import job_of, problems, silo_makers, sites


class Says:
    """Describes itself otherwise when it joins."""

    def __init__(self, silo: Any, **said: Any) -> None:
        self.silo, self.said = silo, said

    def handle(self, request: Request) -> Reply:
        reply = self.silo.handle(request)
        return replace(reply, **self.said) if isinstance(reply, Joined) else reply


def with_odd(folder: Path, names: tuple[str, ...], said: Mapping[str, Any], **sections: Any) -> Ended:
    makers: dict[str, Any] = dict(silo_makers(sites(problems(), folder / "silos")))
    for name in names:
        makers[name] = lambda honest=makers[name]: Says(honest(), **said)
    return federate(job_of(makers, total=3, **sections), makers, folder)


class Waits:
    """Trains its last version when something has happened: the run is not over before."""

    def __init__(self, silo: Any, happened: threading.Event) -> None:
        self.silo, self.happened = silo, happened

    def handle(self, request: Request) -> Reply:
        if isinstance(request, Train) and request.version == 2:
            assert self.happened.wait(20)
        reply: Reply = self.silo.handle(request)
        return reply


ODD = [{"schema_digest": "other"}, {"num_shared": 1 << 33}]


@pytest.mark.parametrize("said", ODD, ids=["digest", "size"])
@pytest.mark.parametrize("odd", ["s0", "s2"])
def test_one_silo_with_another_model_is_left_out(tmp_path: Path, said: dict[str, Any], odd: str) -> None:
    """Also where it comes first: the initial model is asked of one of the others."""
    ended = with_odd(tmp_path, (odd,), said, rounds={"min_updates": 3})
    rest = [name for name in problems() if name != odd]
    assert ended.outcome.status == "done" and ended.contributors == [rest] * 3
    (declined,) = ended.of(events.SiloDeclined)
    assert (declined.silo, declined.code) == (odd, "data")
    assert "builds another shared model than the others" in declined.reason
    if "num_shared" in said:
        assert "8589934592 against 5 shared numbers" in declined.reason


def test_a_required_silo_with_another_model_ends_the_run_with_its_name(tmp_path: Path) -> None:
    ended = with_odd(tmp_path, ("s2",), ODD[1], rounds={"min_updates": 3}, required_silos=["s2"])
    assert ended.outcome.exit_code == 2 and "s2: data: builds another shared model" in ended.outcome.reason
    assert not ended.rounds


def test_without_a_majority_nobody_is_right(tmp_path: Path) -> None:
    ended = with_odd(tmp_path, ("s0", "s3"), ODD[0], rounds={"min_updates": 2})
    assert ended.outcome.exit_code == 2 and "s1 builds another shared model than s0" in ended.outcome.reason
    assert not ended.of(events.SiloDeclined) and not ended.rounds


@pytest.mark.parametrize("said", ODD, ids=["digest", "size"])
@pytest.mark.parametrize("resumed", [False, True], ids=["same driver", "resumed"])
def test_a_silo_that_comes_later_builds_what_the_others_build(
    tmp_path: Path, said: dict[str, Any], resumed: bool
) -> None:
    makers: dict[str, Any] = dict(silo_makers(sites(problems(), tmp_path / "silos")))
    honest, starts = makers["s2"], []

    def start() -> Any:
        starts.append(1)
        return honest() if len(starts) == 1 else Says(honest(), **said)

    makers["s2"] = start
    job = job_of(makers, total=3, rounds={"min_updates": 3})
    if resumed:

        def during(driver: Any, channel: Any, event: Any) -> None:
            if isinstance(event, events.UpdateArrived):
                driver.request_stop()

        first = federate(job, makers, tmp_path, during=during)
        assert first.outcome.status == "stopped" and len(first.rounds) == 1
        ended = federate(job, makers, tmp_path)
    else:
        declined_once = threading.Event()

        def noticed(driver: Any, channel: Any, event: Any) -> None:
            if isinstance(event, events.SiloDeclined):
                declined_once.set()

        makers["s0"] = lambda made=makers["s0"]: Waits(made(), declined_once)
        lose = {("s2", "Train", 2): "before"}
        ended = federate(
            job, makers, tmp_path, during=noticed, channel=lambda start: LossyChannel(start, lose)
        )
    assert ended.outcome.status == "done" and ended.contributors[-2:] == [["s0", "s1", "s3"]] * 2
    (declined,) = ended.of(events.SiloDeclined)
    assert declined.silo == "s2" and "another shared model" in declined.reason


def test_a_silo_that_describes_itself_at_length_takes_no_part(tmp_path: Path) -> None:
    said = {"versions": {"x" * 40_000: "1"}}
    ended = with_odd(tmp_path, ("s1",), said, rounds={"min_updates": 3})
    assert ended.outcome.status == "done" and "s1" not in [each.silo for each in ended.of(events.SiloJoined)]
    (declined,) = ended.of(events.SiloDeclined)
    assert "more than 10000 characters" in declined.reason
    assert (tmp_path / "runs" / "run" / "journal.jsonl").stat().st_size < 40_000


class Talks:
    """Refuses with a very long reason: to join, or to train."""

    def __init__(self, silo: Any, kind: type, code: Any) -> None:
        self.silo, self.kind, self.code = silo, kind, code

    def handle(self, request: Request) -> Reply:
        if isinstance(request, self.kind):
            return Refused(silo="s1", code=self.code, reason="blah " * 100_000)
        return self.silo.handle(request)


@pytest.mark.parametrize(
    ("kind", "code", "needed"),
    [
        (Join, "policy", True),
        (Join, "policy", False),
        (Join, "busy", False),
        (Train, "failed", True),
        (Train, "failed", False),
        (Train, "job", True),
    ],
)
def test_the_journal_keeps_the_beginning_of_a_long_reason(
    tmp_path: Path, kind: type, code: str, needed: bool
) -> None:
    makers: dict[str, Any] = dict(silo_makers(sites(problems(), tmp_path / "silos")))
    makers["s1"] = lambda honest=makers["s1"]: Talks(honest(), kind, code)
    numbers = {"patience_s": 0.2, **({} if needed else {"min_updates": 3})}
    ended = federate(job_of(makers, total=2, rounds=numbers), makers, tmp_path)
    assert ended.outcome.status == ("failed" if needed else "done")
    told = [
        *(event.reason for kind in (events.SiloDeclined, events.SiloBusy) for event in ended.of(kind)),
        *(event.reason for event in ended.of(events.UpdateRefused)),
        *(event.why for event in ended.of(events.SiloDown)),
    ]
    assert any("blah blah" in each for each in told), "the beginning is told"
    assert max(len(each) for each in told) == MAX_REASON
    assert len(ended.outcome.reason) < 2 * MAX_REASON
    size = (tmp_path / "runs" / "run" / "journal.jsonl").stat().st_size
    assert size < 20_000 + 2 * MAX_REASON * len(told), "and nothing else has it in full"


class Trickling(LocalChannel):
    """Some answers come so slowly that they take seconds; their bytes do move all the time."""

    def __init__(self, start: Any, seconds: Callable[[str, Request], float]) -> None:
        super().__init__(start)
        self.seconds, self.bytes = seconds, 0

    async def call(self, silo: str, request: Request) -> Reply:
        await asyncio.sleep(self.seconds(silo, request))
        return await super().call(silo, request)

    def moved(self, silo: str) -> int:
        self.bytes += 1
        return self.bytes


def trickling(kind: type, seconds: float, silo: str = "s1") -> Callable[[Any], Trickling]:
    def slow(asked: str, request: Request) -> float:
        return seconds if asked == silo and isinstance(request, kind) else 0.0

    return lambda start: Trickling(start, slow)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates are fetched, element by element."""
    monkeypatch.setattr(launching, "INLINE", 0)
    monkeypatch.setattr(pipeline, "BLOCK", 1)


@pytest.mark.parametrize("seconds", [30.0, 0.5], ids=["one piece", "all pieces together"])
def test_a_silo_that_trickles_is_lost_at_the_deadline(tmp_path: Path, fetched: None, seconds: float) -> None:
    """Each of five pieces within the patience, the whole not: it counts as lost, and the round closes without."""
    job = job_of(problems(), total=1, rounds={"mode": "quorum", "deadline_s": 1.5, "patience_s": 1.0})
    ended = run_quadratic(job, problems(), tmp_path, channel=trickling(Fetch, seconds))
    assert ended.outcome.status == "done" and ended.contributors == [["s0", "s2", "s3"]]
    (down,) = ended.of(events.SiloDown)
    assert down.silo == "s1" and "did not come whole" in down.why and ended.seconds < 10


def test_a_slow_silo_takes_no_time_of_the_others(tmp_path: Path, fetched: None) -> None:
    """Between two pieces all wait for the slowest one: s1 is slow at first, s2 later, each within its time."""

    def slow(silo: str, request: Request) -> float:
        first = isinstance(request, Fetch) and request.start < 2
        return 0.35 if isinstance(request, Fetch) and silo == ("s1" if first else "s2") else 0.0

    job = job_of(problems(), total=1, rounds={"mode": "quorum", "deadline_s": 1.5, "patience_s": 0.5})
    ended = run_quadratic(job, problems(), tmp_path, channel=lambda start: Trickling(start, slow))
    assert ended.outcome.status == "done" and ended.contributors == [list(problems())]
    assert not ended.of(events.SiloDown)
    assert ended.seconds > 1.5, "together more than the round had"


def test_updates_that_arrive_at_the_deadline_have_a_patience_to_come(tmp_path: Path, fetched: None) -> None:
    """A round that closes at its deadline fetches afterwards."""
    made = {name: replace(p, sleep_s=0.3) for name, p in problems().items()}
    made["s3"] = replace(made["s3"], sleep_s=1.0)
    numbers = {"mode": "quorum", "deadline_s": 0.5, "patience_s": 2.0}
    job = job_of(made, total=1, rounds=numbers)
    ended = run_quadratic(job, made, tmp_path, channel=trickling(Fetch, 0.1))
    assert ended.outcome.status == "done" and ended.contributors == [["s0", "s1", "s2"]]
    assert not [down for down in ended.of(events.SiloDown) if down.silo != "s3"]


def test_without_a_deadline_a_slow_silo_is_waited_for(tmp_path: Path, fetched: None) -> None:
    job = job_of(problems(), total=1, rounds={"patience_s": 0.1})
    ended = run_quadratic(job, problems(), tmp_path, channel=trickling(Fetch, 0.25))
    assert ended.outcome.status == "done" and ended.contributors == [list(problems())]


def test_an_initial_model_that_trickles_is_asked_of_the_next_silo(tmp_path: Path) -> None:
    job = job_of(problems(), total=1, rounds={"patience_s": 0.1})
    channel = trickling(Initial, 60.0, silo="s0")
    ended = run_quadratic(job, problems(), tmp_path, channel=channel)
    assert ended.outcome.status == "done" and ended.contributors == [list(problems())]
    (down,) = ended.of(events.SiloDown)
    assert down.silo == "s0" and "Initial did not come whole in the 1 s" in down.why

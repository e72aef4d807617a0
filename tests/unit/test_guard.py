"""The policy at every request, behind the silo's one door; and what is on record of it."""

import json
import os
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from orchestrator.core.messages import Evaluate, Fetch, Join, Joined, Leave, Ping, Refused, Train, Update
from silos import audit as audit_module
from silos.audit import Audit
from silos.config import SiloConfig
from silos.guard import PolicyGuard
from silos.silo import Silo
from tests.support.quadratic import PlainSite, job_of, problems

RUN: dict[str, Any] = {"run_id": "run", "epoch": 1}
MODEL = {"params": np.ones(5, np.float32)}
JOB = job_of(["s0", "s1"], total=3)


class Clock:
    """Time that the test sets: in Zurich, in June 2026 (the 1st is a Monday)."""

    def __init__(self) -> None:
        self.set(1, 12)

    def set(self, day: int, hour: int) -> None:
        self.now = datetime(2026, 6, day, hour, tzinfo=ZoneInfo("Europe/Zurich")).timestamp()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def site(tmp_path: Path) -> PlainSite:
    return PlainSite("s0", problems()["s0"], tmp_path)


def guarded(site: PlainSite, clock: Clock, **policy: Any) -> Silo:
    """A new process of the silo, under this policy."""
    config = SiloConfig.model_validate(
        {"name": site.name, "datasets": {"none": {"path": "x"}}, "policy": policy}
    )
    site.guard = PolicyGuard(config, site.folder / "own", clock)
    return Silo(site)


def join(**header: Any) -> Join:
    return Join(**{**RUN, **header}, job=JOB.model_dump_json(), job_digest=JOB.digest)


def train(version: int = 0, **given: Any) -> Train:
    known = {"attempt": 1, "model": MODEL, "model_digest": "m", "counted": version - 1, "inline": 100}
    return Train(**{**RUN, **known, "version": version, **given})


def evaluate(version: int) -> Evaluate:
    return Evaluate(**RUN, version=version, model=MODEL, counted=version - 1)


def lines(site: PlainSite) -> list[dict[str, Any]]:
    path = site.folder / "own" / "audit.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def refusal(reply: Any) -> tuple[str, str]:
    assert isinstance(reply, Refused), reply
    assert "\n" not in reply.reason
    return reply.code, reply.reason


NIGHTS = {"opening_hours": ["Mon-Fri 20:00-06:00"], "timezone": "Europe/Zurich"}


def test_a_closed_silo_is_busy_and_says_until_when(site: PlainSite, clock: Clock) -> None:
    silo = guarded(site, clock, **NIGHTS)
    code, reason = refusal(silo.handle(join()))
    assert code == "busy" and reason == "s0 is closed until Mon 20:00 (Europe/Zurich)"
    assert not site.trainers, "no data was touched"
    clock.set(1, 20)
    assert isinstance(silo.handle(join()), Joined)
    assert isinstance(silo.handle(train()), Update)


def test_closing_time_in_the_middle_of_a_run(site: PlainSite, clock: Clock) -> None:
    silo = guarded(site, clock, **NIGHTS)
    clock.set(2, 5)
    silo.handle(join())
    silo.handle(train())
    clock.set(2, 6)
    for request in (train(1), evaluate(1), join()):
        assert refusal(silo.handle(request)) == ("busy", "s0 is closed until Tue 20:00 (Europe/Zurich)")
    assert site.trained == [0]
    assert not isinstance(silo.handle(Fetch(**RUN, version=0, start=0, stop=5)), Refused), "it left before"
    clock.set(2, 20)
    assert isinstance(silo.handle(join()), Joined) and isinstance(silo.handle(train(1)), Update)


def test_the_time_budget_outlives_the_process(site: PlainSite, clock: Clock) -> None:
    silo = guarded(site, clock, max_hours=2)
    silo.handle(join())
    clock.set(1, 13)
    silo.handle(Leave(**RUN, finished=True))
    silo = guarded(site, clock, max_hours=2)
    assert isinstance(silo.handle(join()), Joined)
    clock.set(1, 14)
    code, reason = refusal(silo.handle(train()))
    assert code == "policy" and "2 hours" in reason and "2026-06-01 10:00 UTC" in reason
    assert refusal(guarded(site, clock, max_hours=2).handle(join()))[0] == "policy"
    assert isinstance(guarded(site, clock, max_hours=2).handle(join(run_id="other")), Joined)
    assert not site.trained


def test_a_budget_file_that_is_broken_refuses(site: PlainSite, clock: Clock) -> None:
    (site.folder / "own").mkdir()
    (site.folder / "own" / "first_joins.json").write_text("[1]")
    assert refusal(guarded(site, clock, max_hours=2).handle(join()))[0] == "data"


def test_rounds_beyond_the_policy(site: PlainSite, clock: Clock) -> None:
    """A job within the limit does not let a driver go on beyond it."""
    silo = guarded(site, clock, max_rounds=3)
    silo.handle(join())
    assert isinstance(silo.handle(train(2)), Update)
    assert not isinstance(silo.handle(evaluate(3)), Refused)
    assert "asked for round 4" in refusal(silo.handle(train(3)))[1]
    assert "asked for round 4" in refusal(silo.handle(evaluate(4)))[1]


def test_a_long_update_does_not_leave(site: PlainSite, clock: Clock) -> None:
    silo = guarded(site, clock, max_update_norm=1e-3)
    silo.handle(join())
    code, reason = refusal(silo.handle(train()))
    assert code == "policy" and "0.001" in reason and "this one has" in reason
    assert refusal(silo.handle(Fetch(**RUN, version=0, start=0, stop=5)))[0] == "unknown"
    assert [each["event"] for each in lines(site)] == ["joined", "refused"]


def test_the_norm_is_that_of_what_leaves(site: PlainSite, clock: Clock) -> None:
    silo = guarded(site, clock)
    silo.handle(join())
    reply = silo.handle(train())
    sent = float(np.linalg.norm(reply.packet["values"]))
    assert lines(site)[-1]["norm"] == pytest.approx(sent, rel=1e-6)
    assert isinstance(_again(site, clock, sent * 1.01), Update)
    assert isinstance(_again(site, clock, sent * 0.99), Refused)


def _again(site: PlainSite, clock: Clock, most: float) -> Any:
    silo = guarded(site, clock, max_update_norm=most)
    silo.handle(join())
    return silo.handle(train())


def test_an_update_of_no_number_does_not_leave(site: PlainSite, clock: Clock) -> None:
    silo = guarded(site, clock, max_update_norm=1e9)
    silo.handle(join())
    bad = {"params": np.full(5, np.nan, np.float32)}
    assert "nan" in refusal(silo.handle(train(model=bad)))[1]


def test_what_is_on_record(site: PlainSite, clock: Clock) -> None:
    silo = guarded(site, clock)
    silo.handle(join())
    silo.handle(train())
    silo.handle(train(attempt=2))
    silo.handle(Ping(**RUN))
    silo.handle(Fetch(**RUN, version=0, start=0, stop=5))
    silo.handle(Fetch(**RUN, version=9, start=0, stop=5))
    joined, first, second = lines(site)
    assert (joined["event"], joined["run"], joined["job_digest"]) == ("joined", "run", JOB.digest)
    assert {**first, "at": 0, "attempt": 2} == {**second, "at": 0}
    assert set(first) == {"at", "event", "run", "version", "attempt", "model_digest", "norm", "bytes"}
    assert (first["event"], first["model_digest"], first["bytes"]) == ("update", "m", 20)
    assert (site.folder / "own" / "audit.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_refusal_that_repeats_is_one_line(site: PlainSite, clock: Clock) -> None:
    silo = guarded(site, clock, **NIGHTS)
    for _ in range(3):
        silo.handle(join())
    assert [(each["event"], each["code"]) for each in lines(site)] == [("refused", "busy")]


def test_a_driver_cannot_write_lines_of_its_own(site: PlainSite, clock: Clock) -> None:
    silo = guarded(site, clock)
    site.refusal = 'no\n{"event": "approved"}' + "x" * 10_000
    silo.handle(join())
    assert len(lines(site)) == 1 and len(lines(site)[0]["reason"]) == 500


def test_a_full_disk_before_training(site: PlainSite, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    silo = guarded(site, clock)
    silo.handle(join())
    monkeypatch.setattr(audit_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    code, reason = refusal(silo.handle(train()))
    assert code == "data" and "disk full" in reason and not site.trained
    monkeypatch.undo()
    assert isinstance(silo.handle(train()), Update), "the silo lives on"


def test_a_record_that_cannot_be_written_keeps_the_update_here(site: PlainSite, clock: Clock) -> None:
    """A folder in its place fails like a disk that is full or gone."""
    silo = guarded(site, clock)
    silo.handle(join())
    path = site.folder / "own" / "audit.jsonl"
    path.unlink()
    path.mkdir()
    code, reason = refusal(silo.handle(train()))
    assert code == "data" and "cannot record" in reason
    assert refusal(silo.handle(Fetch(**RUN, version=0, start=0, stop=5)))[0] == "unknown"
    path.rmdir()
    assert isinstance(silo.handle(train()), Update)


def test_a_torn_line_swallows_nothing(tmp_path: Path) -> None:
    audit = Audit(tmp_path)
    audit.write("joined", run="a")
    with audit.path.open("a") as file:
        file.write('{"event": "upd')
    audit.write("joined", run="b")
    first, _, last = audit.path.read_text().splitlines()
    assert json.loads(first)["run"] == "a" and json.loads(last)["run"] == "b"


def test_a_link_is_no_audit_file(tmp_path: Path) -> None:
    os.symlink(tmp_path / "elsewhere", tmp_path / "audit.jsonl")
    with pytest.raises(ValueError, match="cannot record"):
        Audit(tmp_path).write("joined")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("run_id", ["", ".", "..", "../x", "a/b", "/etc", "a\0", "x" * 300, "a\n"])
def test_run_ids_that_lead_elsewhere(site: PlainSite, clock: Clock, run_id: str) -> None:
    silo = guarded(site, clock)
    victim = site.folder / "precious"
    victim.mkdir()
    for request in (
        join(run_id=run_id),
        train(run_id=run_id),
        Leave(run_id=run_id, epoch=1, finished=True),
        Leave(run_id="../precious", epoch=1, finished=True),
    ):
        assert refusal(silo.handle(request))[0] == "unknown"
    assert victim.exists() and not site.trainers


@pytest.mark.parametrize("text", ["", "{}", "[]", "not json", '{"name": "../x"}'])
def test_a_job_that_is_none_is_a_refusal(site: PlainSite, clock: Clock, text: str) -> None:
    reply = guarded(site, clock).handle(Join(**RUN, job=text, job_digest="x"))
    assert refusal(reply)[0] == "job"

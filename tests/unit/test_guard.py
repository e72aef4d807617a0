"""The policy at every request, behind the silo's one door; and what is on record of it."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from orchestrator.core.messages import Fetch, Initial, Join, Joined, Leave, Ping, Refused, Stop, Update
from silos import audit as audit_module
from silos.audit import Audit
from silos.silo import Silo
from silos.site import Order, Trained
from tests.support.guarded import (
    JOB,
    NIGHTS,
    RUN,
    Clock,
    evaluate,
    guarded,
    join,
    lines,
    refusal,
    train,
)
from tests.support.quadratic import PlainSite, QuadraticTrainer, job_of, problems


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def site(tmp_path: Path) -> PlainSite:
    return PlainSite("s0", problems()["s0"], tmp_path)


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
    for request in (train(1), evaluate(1), join(), Initial(**RUN)):
        assert refusal(silo.handle(request)) == ("busy", "s0 is closed until Tue 20:00 (Europe/Zurich)")
    assert site.trained == [0]
    assert not isinstance(silo.handle(Fetch(**RUN, version=0, start=0, stop=5)), Refused), "it left before"
    clock.set(2, 20)
    assert isinstance(silo.handle(join()), Joined) and isinstance(silo.handle(train(1)), Update)


class Ticking(QuadraticTrainer):
    """Something happens to the silo (``meanwhile``) after the first step; then there are two more."""

    meanwhile: Any = None

    def train(self, order: Order) -> Trained:
        order.tick("training", 1, 3)
        type(self).meanwhile()
        order.tick("training", 2, 3)
        order.tick("training", 3, 3)
        return super().train(order)

    def evaluate(self, order: Order) -> Any:
        order.tick("evaluating", 1, 1)
        return super().evaluate(order)


def at_work(site: PlainSite, silo: Silo, meanwhile: Any) -> Any:
    """The reply to a training amid which something happens."""
    site.make, Ticking.meanwhile = Ticking, staticmethod(meanwhile)
    assert isinstance(silo.handle(join()), Joined)
    return silo.handle(train())


def test_closing_time_in_the_middle_of_a_training(site: PlainSite, clock: Clock) -> None:
    silo = guarded(site, clock, **NIGHTS)
    clock.set(2, 5)
    closed = "busy", "s0 is closed until Tue 20:00 (Europe/Zurich)"
    assert refusal(at_work(site, silo, lambda: clock.set(2, 6))) == closed
    assert site.trained == [] and not lines(site, "update")
    clock.set(2, 20)
    assert isinstance(at_work(site, silo, lambda: None), Update), "open again, the work is done"


def test_the_time_budget_in_the_middle_of_a_training(site: PlainSite, clock: Clock) -> None:
    silo = guarded(site, clock, max_hours=2)
    code, reason = refusal(at_work(site, silo, lambda: clock.set(1, 14)))
    assert code == "policy" and "2 hours" in reason and site.trained == []


def test_a_refusal_of_the_job_in_the_middle_of_a_training(site: PlainSite, clock: Clock) -> None:
    def withdrawn() -> None:
        site.refusal, clock.now = "not any more", clock.now + 11

    assert refusal(at_work(site, guarded(site, clock), withdrawn)) == ("policy", "not any more")


def test_closing_time_between_the_last_step_and_the_reply(site: PlainSite, clock: Clock) -> None:
    """Within the seconds for which the silo does not look at its watch."""
    silo = guarded(site, clock, **NIGHTS)
    clock.set(2, 6)
    clock.now -= 1

    def later() -> None:
        clock.now += 2

    assert refusal(at_work(site, silo, later))[0] == "busy"
    assert site.trained == [0], "it had been done"
    assert refusal(silo.handle(Fetch(**RUN, version=0, start=0, stop=5)))[0] == "unknown"
    assert not lines(site, "update")


def test_figures_do_not_leave_after_closing_time(site: PlainSite, clock: Clock) -> None:
    class Slow(QuadraticTrainer):
        def evaluate(self, order: Order) -> Any:
            figures = super().evaluate(order)
            clock.set(2, 6)
            return figures

    site.make = Slow
    silo = guarded(site, clock, **NIGHTS)
    clock.set(2, 5)
    silo.handle(join())
    assert refusal(silo.handle(evaluate(0)))[0] == "busy" and not lines(site, "evaluated")


@pytest.mark.parametrize("request_", [join(), train(), evaluate(0), Initial(**RUN)])
def test_a_run_in_hand_is_reviewed_again(site: PlainSite, clock: Clock, request_: Any) -> None:
    silo = guarded(site, clock)
    silo.handle(join())
    site.refusal = "not any more"
    assert refusal(silo.handle(request_)) == ("policy", "not any more") and not site.trained
    site.refusal = None
    assert not isinstance(silo.handle(request_), Refused)


def test_a_long_update_does_not_leave(site: PlainSite, clock: Clock) -> None:
    silo = guarded(site, clock, max_update_norm=1e-3)
    silo.handle(join())
    code, reason = refusal(silo.handle(train()))
    assert code == "policy" and "0.001" in reason and "this one has" in reason
    assert refusal(silo.handle(Fetch(**RUN, version=0, start=0, stop=5)))[0] == "unknown"
    assert [each["event"] for each in lines(site)] == ["joined", "refused", "refused"]


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


def test_of_an_update_that_only_a_sum_shows_the_norm_is_not_told_either(
    site: PlainSite, clock: Clock
) -> None:
    silo = guarded(site, clock, max_update_norm=1e-3)
    silo.handle(join(job_of(["s0", "s1", "s2"], rounds={"min_updates": 3}, combine={"name": "secure_sum"})))
    code, reason = refusal(silo.handle(train()))
    assert code == "policy" and reason.endswith("(policy.max_update_norm), and this one's is")
    assert "this one has " in lines(site, "error")[0]["reason"], "the owner knows"


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
    silo.handle(Initial(**RUN))
    silo.handle(evaluate(1))
    joined, first, second, initial, evaluated = lines(site)
    assert (joined["event"], joined["run"], joined["job_digest"]) == ("joined", "run", JOB.digest)
    assert first["receipt"] < second["receipt"]
    assert {**first, "at": 0, "attempt": 2, "receipt": 0} == {**second, "at": 0, "receipt": 0}
    work = {"at", "event", "run", "version", "attempt", "model_digest", "norm", "bytes"}
    assert set(first) == work | {"received", "sha256", "receipt", "journal_head", "journal_lines"}
    assert (first["event"], first["model_digest"], first["bytes"]) == ("update", "m", 20)
    assert (initial["event"], initial["run"]) == ("initial", "run")
    assert (evaluated["event"], evaluated["version"], evaluated["metrics"]) == ("evaluated", 1, "loss")
    assert (site.folder / "own" / "audit.jsonl").stat().st_mode & 0o777 == 0o600


def test_refusals_that_alternate_fill_no_disk(site: PlainSite, clock: Clock) -> None:
    silo = guarded(site, clock)
    silo.handle(join())
    for _ in range(100):
        silo.handle(Fetch(**RUN, version=8, start=0, stop=5))
        silo.handle(Fetch(**RUN, version=9, start=0, stop=5))
    assert [(line["reason"][-13:], line["times"]) for line in lines(site, "refused")] == [
        (f"{version} is kept here"[-13:], times) for times in (1, 10, 100) for version in (8, 9)
    ]


def test_refusals_that_are_all_different_fill_no_disk(site: PlainSite, clock: Clock) -> None:
    silo = guarded(site, clock)
    silo.handle(join())
    for version in range(3000):
        silo.handle(Fetch(**RUN, version=version, start=0, stop=5))
    assert len(lines(site, "refused")) < 1010


def test_every_refusal_is_on_record(site: PlainSite, clock: Clock) -> None:
    """Also of what is answered while the silo trains, and of what names no run at all."""
    silo = guarded(site, clock)
    silo.handle(join(epoch=2))
    old = {"run_id": "run", "epoch": 1}
    asked = [Ping(**old), Fetch(**old, version=0, start=0, stop=1), Stop(**old), Leave(**old, finished=True)]
    for request in asked:
        assert refusal(silo.handle(request))[0] == "fenced"
    silo.handle(Ping(run_id="../x", epoch=1))
    silo.handle(Fetch(run_id="other", epoch=1, version=0, start=0, stop=1))
    found = [(line["run"], line["code"], line["times"]) for line in lines(site, "refused")]
    assert found == [("run", "fenced", 1), ("../x", "unknown", 1), ("other", "job", 1)]


@pytest.mark.parametrize("foreign", [True, False])
def test_a_defect_is_answered_and_on_record(
    site: PlainSite, clock: Clock, caplog: pytest.LogCaptureFixture, foreign: bool
) -> None:
    """What the task's own code says in an exception may be private."""

    class Defect(QuadraticTrainer):
        def train(self, order: Order) -> Trained:
            raise KeyError("Patient1")

    site.make = Defect
    silo = guarded(site, clock, foreign_driver=foreign)
    silo.handle(join())
    code, reason = refusal(silo.handle(train()))
    assert code == "failed" and reason.startswith("KeyError") and ("Patient1" in reason) is not foreign
    assert any("Patient1" in line.get("reason", "") for line in lines(site)), (
        "the silo's own people can read all of it"
    )
    assert "Traceback" in caplog.text and "Patient1" in caplog.text
    assert not isinstance(silo.handle(evaluate(0)), Refused), "the silo lives on"


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

"""A silo behind its one door: idempotent, fenced, cancellable, answering while it trains."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.core.errors import BadInput
from orchestrator.core.messages import (
    Evaluate,
    Evaluated,
    Fetch,
    Initial,
    Join,
    Joined,
    Leave,
    Piece,
    Ping,
    Progress,
    Refused,
    Request,
    Stop,
    Train,
    Update,
)
from orchestrator.job import Job
from silos import silo as silo_module
from silos.silo import Silo
from silos.site import Order, Trained
from tests.support.quadratic import PlainSite, QuadraticTrainer, job_of, problems

RUN: dict[str, Any] = {"run_id": "run", "epoch": 1}
MODEL = {"params": np.ones(5, np.float32)}


class Gated(QuadraticTrainer):
    """Waits in the middle of the training until the test lets it go on."""

    started, go_on = threading.Event(), threading.Event()

    def train(self, order: Order) -> Trained:
        order.tick("training", 0, 2)
        self.started.set()
        assert self.go_on.wait(10)
        return super().train(order)


@pytest.fixture
def site(tmp_path: Path) -> PlainSite:
    return PlainSite("s0", problems()["s0"], tmp_path)


def joined(site: PlainSite, job: Job | None = None) -> Silo:
    silo = Silo(site)
    assert isinstance(silo.handle(join(job)), Joined)
    return silo


def join(job: Job | None = None, **header: Any) -> Join:
    job = job or job_of(["s0", "s1"])
    return Join(**{**RUN, **header}, job=job.model_dump_json(), job_digest=job.digest)


def train(version: int = 0, digest: str = "lineage", **given: Any) -> Train:
    known = {
        "attempt": 1,
        "model": MODEL,
        "model_digest": digest,
        "counted": version - 1,
        "inline": 100,
        **RUN,
    }
    return Train(**{"version": version, **known, **given})


def trained(silo: Silo, *args: Any, **given: Any) -> Update:
    reply = silo.handle(train(*args, **given))
    assert isinstance(reply, Update), reply
    return reply


def code(reply: Any) -> str:
    assert isinstance(reply, Refused), reply
    return reply.code


def test_joining_describes_the_silo(site: PlainSite) -> None:
    reply = Silo(site).handle(join())
    assert isinstance(reply, Joined)
    assert (reply.silo, reply.num_shared, reply.num_examples["train"], reply.fingerprint) == (
        "s0",
        5,
        100,
        "data of s0",
    )


def test_joining_twice_opens_the_data_once(site: PlainSite) -> None:
    silo = joined(site)
    first = silo.handle(join())
    assert silo.handle(join()) == first and len(site.trainers) == 1


def test_another_process_is_another_incarnation(site: PlainSite) -> None:
    assert Silo(site).incarnation != Silo(site).incarnation


def test_the_policy_has_the_last_word(site: PlainSite) -> None:
    site.refusal = "not with us"
    silo = Silo(site)
    reply = silo.handle(join())
    assert code(reply) == "policy" and "not with us" in reply.reason and not site.trainers
    assert code(silo.handle(train())) == "job"


def test_bad_data_is_a_refusal(site: PlainSite) -> None:
    def fails(*_: Any) -> Any:
        raise BadInput("data/x.parquet: no column 'age'")

    site.make = fails
    reply = Silo(site).handle(join())
    assert code(reply) == "data" and "no column 'age'" in reply.reason


def test_a_job_that_does_not_fit_its_digest(site: PlainSite) -> None:
    job = job_of(["s0", "s1"])
    reply = Silo(site).handle(Join(**RUN, job=job.model_dump_json(), job_digest="x"))
    assert code(reply) == "job"


@pytest.mark.parametrize(
    "request_",
    [
        train(),
        Evaluate(**RUN, version=0, model=MODEL, counted=-1),
        Fetch(**RUN, version=0, start=0, stop=1),
        Initial(**RUN),
    ],
)
def test_first_join(site: PlainSite, request_: Request) -> None:
    assert code(Silo(site).handle(request_)) == "job"


def test_asked_again_it_sends_the_stored_bytes_without_training(site: PlainSite) -> None:
    silo = joined(site)
    first = trained(silo)
    again = trained(silo, attempt=2, epoch=2)
    assert site.trained == [0]
    assert again.packet["values"].tobytes() == first.packet["values"].tobytes()
    assert (again.attempt, again.epoch) == (2, 2), "the answer is to this request"


def test_another_model_of_the_version_is_trained_anew(site: PlainSite) -> None:
    silo = joined(site)
    trained(silo)
    trained(silo, digest="another")
    assert site.trained == [0, 0]


def test_another_process_trains_the_same_bits(site: PlainSite) -> None:
    job = job_of(["s0", "s1"], strategy={"name": "scaffold"})
    model = {**MODEL, "control": np.full(5, 0.1, np.float32)}
    packets = []
    for _ in range(2):
        silo = joined(site, job)
        trained(silo, 0, model=model)
        packets.append(trained(silo, 1, model=model).packet["values"].tobytes())
    silo = joined(site, job)
    packets.append(trained(silo, 1, model=model).packet["values"].tobytes())
    assert packets[0] == packets[1] == packets[2]


def test_private_state_goes_on_from_what_counted(site: PlainSite) -> None:
    """Version 1's update never counted (late, refused, lost): version 2 is trained as if it had not been."""
    job = job_of(["s0", "s1"], strategy={"name": "scaffold"})
    model = {**MODEL, "control": np.full(5, 0.1, np.float32)}
    updates = []
    for strays in (True, False):
        site.folder = site.folder / str(strays)
        silo = joined(site, job)
        trained(silo, 0, model=model)
        if strays:
            trained(silo, 1, model=model)
        updates.append(trained(silo, 2, model=model, counted=0).packet["values"].tobytes())
    assert updates[0] == updates[1]


def test_large_updates_are_fetched_in_pieces(site: PlainSite) -> None:
    silo = joined(site)
    whole = trained(silo).packet["values"]
    silo = joined(site)
    assert trained(silo, inline=4).packet is None
    pieces = [silo.handle(Fetch(**RUN, version=0, start=start, stop=start + 2)) for start in (0, 2, 4)]
    assert all(isinstance(piece, Piece) for piece in pieces)
    assert np.concatenate([piece.packet["values"] for piece in pieces]).tobytes() == whole.tobytes()
    assert code(silo.handle(Fetch(**RUN, version=7, start=0, stop=1))) == "unknown"


def test_an_update_not_yet_fetched_survives_the_next_training(site: PlainSite) -> None:
    silo = joined(site)
    bits = trained(silo, 0).packet["values"].tobytes()
    trained(silo, 1, keep=(0,))
    assert silo.handle(Fetch(**RUN, version=0, start=0, stop=5)).packet["values"].tobytes() == bits
    trained(silo, 2)
    assert code(silo.handle(Fetch(**RUN, version=0, start=0, stop=5))) == "unknown"


def test_the_last_evaluation_frees_the_update(site: PlainSite) -> None:
    """What is evaluated is durable with the update in it; a driver that went back would have it trained again."""
    silo = joined(site)
    bits = trained(silo, 0).packet["values"].tobytes()
    reply = silo.handle(Evaluate(**RUN, version=1, model=MODEL, counted=0))
    assert isinstance(reply, Evaluated) and reply.metrics["loss"].value == pytest.approx(
        site.problem.loss(MODEL["params"])
    )
    assert code(silo.handle(Fetch(**RUN, version=0, start=0, stop=5))) == "unknown"
    assert trained(silo, 0).packet["values"].tobytes() == bits


def test_an_older_driver_is_fenced_off(site: PlainSite) -> None:
    silo = joined(site)
    trained(silo, epoch=3)
    for request in (
        join(epoch=2),
        train(epoch=2),
        Stop(run_id="run", epoch=2),
        Leave(run_id="run", epoch=1, finished=True),
    ):
        assert code(silo.handle(request)) == "fenced"
    trained(silo, 1, epoch=3)


def test_an_older_driver_is_fenced_off_by_a_new_process_too(site: PlainSite) -> None:
    """A driver may ask for a restart itself."""
    silo = joined(site)
    silo.handle(Ping(run_id="run", epoch=3))
    for request in (join(epoch=2), Ping(run_id="run", epoch=2), Leave(run_id="run", epoch=2, finished=True)):
        assert code(Silo(site).handle(request)) == "fenced"
    assert isinstance(Silo(site).handle(join(epoch=3)), Joined)


def test_requests_about_runs_that_never_joined_leave_nothing(site: PlainSite) -> None:
    silo = joined(site)
    for request in (
        Ping(run_id="other", epoch=9),
        Stop(run_id="other", epoch=9),
        join(run_id="other", epoch=9),
    ):
        silo.handle(request)
    silo.handle(Leave(run_id="other", epoch=9, finished=False))
    assert [path.name for path in site.state_folder("x").parent.iterdir()] == ["run"]
    assert isinstance(Silo(site).handle(Ping(run_id="other", epoch=1)), Progress)


def test_an_older_driver_that_joins_after_a_newer_one_has_asked(site: PlainSite) -> None:
    silo = Silo(site)
    silo.handle(Ping(run_id="run", epoch=2))
    assert code(silo.handle(join())) == "fenced" and not site.trainers


def test_a_newer_driver_that_asks_while_the_older_one_joins(site: PlainSite) -> None:
    """Opening the data may take minutes."""
    silo = Silo(site)

    def slowly(*args: Any) -> Any:
        silo.handle(Ping(run_id="run", epoch=2))
        return QuadraticTrainer(*args)

    site.make = slowly
    silo.handle(join())
    assert code(silo.handle(train())) == "fenced"
    assert code(Silo(site).handle(train())) == "fenced"


def test_leaving_removes_only_what_a_run_left_here(site: PlainSite) -> None:
    silo = joined(site)
    precious = site.state_folder("precious")
    precious.mkdir()
    silo.handle(Leave(run_id="precious", epoch=1, finished=True))
    assert precious.exists() and isinstance(silo.handle(train()), Update)
    silo = Silo(site)
    silo.handle(Leave(**RUN, finished=True))
    assert not site.state_folder("run").exists(), "an earlier process had joined it"


def test_another_run_stops_nothing(training: tuple[Silo, list[Any]], site: PlainSite) -> None:
    silo, replies = training
    silo.handle(Stop(run_id="other", epoch=9))
    Gated.go_on.set()
    for _ in range(1000):
        if replies:
            break
        threading.Event().wait(0.01)
    assert isinstance(replies[0], Update)


def test_one_run_at_a_time(site: PlainSite, monkeypatch: pytest.MonkeyPatch) -> None:
    silo = joined(site)
    reply = silo.handle(join(run_id="other"))
    assert code(reply) == "busy" and "run" in reply.reason
    silo.handle(Leave(**RUN, finished=False))
    assert isinstance(silo.handle(join(run_id="other")), Joined)
    assert code(silo.handle(train())) == "job", "the first run has to join again"
    monkeypatch.setattr(silo_module, "BUSY_S", 0.0)
    assert isinstance(silo.handle(join(run_id="third")), Joined), "a silent run may be replaced"


def test_leaving_keeps_the_state_of_a_run_that_may_go_on(site: PlainSite) -> None:
    job = job_of(["s0", "s1"], strategy={"name": "scaffold"})
    model = {**MODEL, "control": np.zeros(5, np.float32)}
    silo = joined(site, job)
    trained(silo, 0, model=model)
    silo.handle(Leave(**RUN, finished=False))
    assert list(site.state_folder("run").iterdir())
    silo.handle(join(job))
    silo.handle(Leave(**RUN, finished=True))
    assert not site.state_folder("run").exists()


@pytest.fixture
def training(site: PlainSite) -> Iterator[tuple[Silo, list[Any]]]:
    """A silo in the middle of a training, in another thread; the list gets its reply."""
    site.make, replies = Gated, []
    Gated.started.clear()
    Gated.go_on.clear()
    silo = joined(site)
    thread = threading.Thread(target=lambda: replies.append(silo.handle(train())))
    thread.start()
    assert Gated.started.wait(10)
    yield silo, replies
    Gated.go_on.set()
    thread.join(10)


def test_signs_of_life_while_it_trains(training: tuple[Silo, list[Any]]) -> None:
    silo, replies = training
    pong = silo.handle(Ping(**RUN))
    assert isinstance(pong, Progress) and (pong.phase, pong.version, pong.total_steps) == ("training", 0, 2)
    assert silo.handle(Ping(**RUN)).marks == pong.marks, "a question is no progress"
    assert not replies


def test_cancelling(training: tuple[Silo, list[Any]], site: PlainSite) -> None:
    silo, replies = training
    silo.handle(Stop(**RUN))
    Gated.go_on.set()
    for _ in range(1000):
        if replies:
            break
        threading.Event().wait(0.01)
    assert code(replies[0]) == "cancelled" and site.trained == []
    trained(silo)
    assert site.trained == [0], "a later training is not touched by it"


def test_what_is_done_can_be_handed_in(training: tuple[Silo, list[Any]], site: PlainSite) -> None:
    """It is an update like any other, of fewer steps; the silo keeps it for a driver that asks again."""
    silo, replies = training
    silo.handle(Stop(**RUN, hand_in=0))
    Gated.go_on.set()
    for _ in range(1000):
        if replies:
            break
        threading.Event().wait(0.01)
    assert isinstance(replies[0], Update) and replies[0].num_steps == 1 < site.problem.steps
    assert trained(silo).num_steps == 1 and site.trained == [0]
    assert trained(silo, 1).num_steps == site.problem.steps, "a later training is not touched by it"


def test_only_the_version_meant_is_handed_in(site: PlainSite) -> None:
    """A word that comes too late must not end the next training; one that comes before its training counts."""
    silo = joined(site)
    silo.handle(Stop(**RUN, hand_in=0))
    assert trained(silo, 1).num_steps == site.problem.steps
    silo.handle(Stop(**RUN, hand_in=2))
    assert trained(silo, 2).num_steps == 1
    silo.handle(join())
    assert trained(silo, 2, "again").num_steps == site.problem.steps, "that was another driver's word"


def test_the_driver_may_ask_for_a_number_of_steps(site: PlainSite) -> None:
    """Where the job foresees it."""
    paced = job_of(["s0", "s1"], rounds={"equal_time": True}, strategy={"name": "fednova"})
    model = {**MODEL, "path": np.zeros(1, np.float32)}
    assert trained(joined(site, paced), model=model, num_steps=7).num_steps == 7 != site.problem.steps
    assert code(joined(site, paced).handle(train(model=model, num_steps=0))) == "job"
    assert code(joined(site).handle(train(num_steps=7))) == "job"


def test_initial_parameters(site: PlainSite) -> None:
    reply = joined(site).handle(Initial(**RUN))
    assert isinstance(reply, Piece) and reply.packet["params"].tolist() == [0] * 5

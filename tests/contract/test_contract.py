"""What every channel must do alike: the same job gives the same bits, the same refusals, the same losses."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator import launching, starting
from orchestrator.core import events
from orchestrator.core.errors import SiloLost
from orchestrator.core.messages import (
    Assess,
    Assessed,
    Attack,
    Attacked,
    Fetch,
    Initial,
    Join,
    Joined,
    Piece,
    Ping,
    Progress,
    Refused,
    Stop,
    Train,
    Update,
)
from orchestrator.core.protocols import Channel
from orchestrator.driver import Driver
from orchestrator.job import Job
from orchestrator.starting import StartingWeights
from orchestrator.store import Store
from tests.contract.conftest import HOSPITALS, Documents, Open, local, vanish, write_documents
from tests.support.scratch import scratch

LIMIT_S = 180.0


def job_of(options: dict[str, Any] | None = None, total: int = 3, **sections: Any) -> Job:
    return Job.model_validate(
        {
            "name": "contract",
            "task": {"name": "tests.support.mischief:Mischief", "dataset": "heart", "options": options or {}},
            "silos": list(HOSPITALS),
            "rounds": {"total": total, "patience_s": 60, **sections.pop("rounds", {})},
            "local": {"steps": 10, "batch_size": 4, "optimizer": {"name": "sgd", "lr": 0.03}},
            "stop": {"metric": "accuracy"},
            "report": {"silos": False},
            **sections,
        }
    )


class Seen(list[Any]):
    """The events of a run."""

    def of(self, kind: type) -> list[Any]:
        return [event for event in self if isinstance(event, kind)]

    @property
    def digest(self) -> str:
        return self.of(events.RunClosed)[-1].parameters_digest

    @property
    def refusals(self) -> set[tuple[str, int, str]]:
        return {(event.silo, event.version, event.code) for event in self.of(events.UpdateRefused)}

    @property
    def losses(self) -> list[tuple[str, int]]:
        return sorted((event.silo, event.version) for event in self.of(events.SiloDown))

    @property
    def told(self) -> "Told":
        return self.digest, self.refusals, self.losses


Told = tuple[str, set[tuple[str, int, str]], list[tuple[str, int]]]
"""Digest, refusals and losses: what is the same over every channel."""
Meddle = Callable[[Channel, Any], Awaitable[None]]


def run(open_: Open, job: Job, documents: Documents, folder: Path, meddle: Meddle | None = None) -> Seen:
    """Run the job; ``meddle`` is started with every event."""
    seen, tasks = Seen(), []

    async def driven(silos: Channel) -> None:
        def observe(event: Any) -> None:
            seen.append(event)
            if meddle is not None:
                tasks.append(asyncio.create_task(meddle(silos, event)))

        driver = Driver(job, silos, Store(folder / "runs"), "contract", observe=observe)
        seen.outcome = await asyncio.wait_for(driver.run(), LIMIT_S)  # type: ignore[attr-defined]

    with open_("contract", documents, job.rounds.patience_s) as silos:
        asyncio.run(driven(silos))
    return seen


_known: dict[str, Told] = {}


def expected(job: Job, meddle: Meddle | None = None) -> Told:
    """What the job comes to over the in-process channel."""
    if job.digest not in _known:
        with scratch() as folder:
            _known[job.digest] = run(local, job, write_documents(folder / "silos"), folder, meddle).told
    return _known[job.digest]


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"strategy": {"name": "scaffold", "server": {"name": "adam"}}, "codec": {"name": "bf16"}},
        {"strategy": {"name": "fednova"}, "privacy": [{"name": "clip", "max_norm": 0.05}]},
        {"private": ["bias"], "combine": {"weights": "uniform"}},
        {"combine": {"name": "secure_sum", "mode": "active"}, "rounds": {"min_updates": 3}},
    ],
    ids=["fedavg", "scaffold-bf16", "fednova-clip", "private", "secure"],
)
def test_the_same_job_gives_the_same_bits(
    channel: Open, documents: Documents, tmp_path: Path, sections: Any
) -> None:
    seen = run(channel, job_of(**sections), documents, tmp_path)
    assert seen.outcome.status == "done" and seen.told == expected(job_of(**sections))
    assert not seen.losses


def test_fetched_in_pieces_gives_the_same_bits(
    channel: Open, documents: Documents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "INLINE", 0)
    assert run(channel, job_of(), documents, tmp_path).digest == expected(job_of())[0]


def test_the_same_updates_are_refused(channel: Open, documents: Documents, tmp_path: Path) -> None:
    """Numbers that are none, and code that fails: the same codes, and the same model without them."""
    options = {"nan": {"va": [0], "cleveland": [2]}, "fails": {"hungarian": [1]}}
    job = job_of(options, rounds={"min_updates": 2})
    seen = run(channel, job, documents, tmp_path)
    assert seen.outcome.status == "done"
    assert seen.refusals == {
        ("va", 0, "nonfinite"),
        ("cleveland", 2, "nonfinite"),
        ("hungarian", 1, "failed"),
    }
    assert seen.told == expected(job) and not seen.losses
    (failed,) = [event for event in seen.of(events.UpdateRefused) if event.code == "failed"]
    assert "a defect in the task's own code" in failed.reason


def test_what_a_job_starts_from_reaches_every_silo(
    channel: Open, documents: Documents, tmp_path: Path
) -> None:
    """Once; also one whose process starts anew. What is frozen is that, and never travels again."""
    weight = np.linspace(-1, 1, 13, dtype=np.float32).reshape(1, 13)
    source = events.Source(kind="file", name="w", sha256="0" * 64, contributors=["the test"])
    start = {"file": "w.safetensors", "sha256": "0" * 64, "origin": "the test"}
    job = job_of({"pause_s": 0.02}, start_from=start, frozen=["weight"])
    starting.save(StartingWeights({"weight": weight}, source), tmp_path / "runs")
    done: list[Any] = []

    async def meddle(silos: Channel, event: Any) -> None:
        if isinstance(event, events.SiloLaunched) and (event.silo, event.version) == ("va", 1) and not done:
            done.append(event)
            await asyncio.sleep(0.05)
            await silos.restart("va")

    seen = run(channel, job, documents, tmp_path, meddle)
    assert seen.outcome.status == "done", seen.outcome
    (ready,) = seen.of(events.ModelReady)
    assert (ready.started_from.loaded, ready.started_from.left) == (["weight"], ["bias"])
    assert ready.num_shared == 1 and [down.silo for down in seen.of(events.SiloDown)] == ["va"]
    with scratch() as folder:
        starting.save(StartingWeights({"weight": weight}, source), folder / "runs")
        alike = run(local, job, write_documents(folder / "silos"), folder)
    assert seen.digest == alike.digest
    assert alike.of(events.ModelReady)[0].schema_digest == ready.schema_digest, "of the frozen numbers, too"


def test_the_policy_refuses_alike(channel: Open, tmp_path: Path) -> None:
    documents = write_documents(tmp_path / "silos", allow_strategies=["fedprox"])
    seen = run(channel, job_of(), documents, tmp_path)
    assert seen.outcome.exit_code == 4 and "does not allow the strategy 'fedavg'" in seen.outcome.reason


def test_bad_data_is_bad_input(channel: Open, documents: Documents, tmp_path: Path) -> None:
    text = documents["va"].read_text().replace("va.parquet", "nowhere.parquet")
    documents["va"].write_text(text)
    seen = run(channel, job_of(), documents, tmp_path)
    assert seen.outcome.exit_code == 2 and "nowhere.parquet" in seen.outcome.reason


def test_a_silo_restarted_in_training_changes_no_bit(
    channel: Open, documents: Documents, tmp_path: Path
) -> None:
    """Its work in hand is lost, the driver hears of it, and asks it again."""
    job, done = job_of({"pause_s": 0.1}, total=2, strategy={"name": "scaffold"}), []

    async def meddle(silos: Channel, event: Any) -> None:
        if isinstance(event, events.SiloLaunched) and (event.silo, event.version) == ("va", 1) and not done:
            done.append(event)
            await asyncio.sleep(0.1)
            await silos.restart("va")

    seen = run(channel, job, documents, tmp_path, meddle)
    assert [(down.silo, down.version) for down in seen.of(events.SiloDown)] == [("va", 1)]
    assert seen.digest == expected(job_of(total=2, strategy={"name": "scaffold"}))[0]


@pytest.mark.slow
def test_a_silo_that_vanishes_for_good_is_lost_alike(
    channel: Open, documents: Documents, tmp_path: Path
) -> None:
    """In mid-training: the round waits until that is known, and it and the later ones close without it."""
    rounds = {"mode": "quorum", "min_updates": 3, "deadline_s": 120, "patience_s": 4}
    job = job_of({"pause_s": 0.05}, rounds=rounds)

    async def meddle(silos: Channel, event: Any) -> None:
        if isinstance(event, events.SiloLaunched) and (event.silo, event.version) == ("va", 1):
            await asyncio.sleep(0.1)
            vanish(silos, "va")

    seen = run(channel, job, documents, tmp_path, meddle)
    assert seen.outcome.status == "done"
    contributors = [{each.silo for each in closed.contributors} for closed in seen.of(events.RoundClosed)]
    assert contributors == [set(HOSPITALS), *[set(HOSPITALS) - {"va"}] * 2]
    assert seen.losses == [("va", 1)] and seen.told == expected(job, meddle)


# The channel by itself


HEADER: dict[str, Any] = {"run_id": "contract", "epoch": 1}


def train(version: int, model: Any, **given: Any) -> Train:
    known = {"attempt": 1, "model_digest": f"m{version}", "counted": version - 1, "inline": 1 << 18}
    return Train(**HEADER, version=version, model=model, **{**known, **given})


async def joined(silos: Channel, job: Job) -> dict[str, np.ndarray]:
    """The initial parameters, after va has joined."""
    reply = await silos.call("va", Join(**HEADER, job=job.model_dump_json(), job_digest=job.digest))
    assert isinstance(reply, Joined) and reply.silo == "va", reply
    initial = await silos.call("va", Initial(**HEADER))
    assert isinstance(initial, Piece)
    return {name: np.array(part) for name, part in initial.packet.items()}


def with_va(
    open_: Open,
    documents: Documents,
    job: Job,
    work: Callable[[Channel, Any], Awaitable[None]],
    patience_s: float = 60.0,
) -> None:
    async def whole(silos: Channel) -> None:
        await work(silos, await joined(silos, job))

    with open_("contract", documents, patience_s) as silos:
        asyncio.run(asyncio.wait_for(whole(silos), LIMIT_S))


def test_a_published_model_does_not_change(channel: Open, documents: Documents) -> None:
    """The driver reuses its memory as soon as ``publish`` has returned."""

    async def work(silos: Channel, model: Any) -> None:
        handle = await silos.publish(model)
        first = await silos.call("va", train(0, handle))
        model["params"][:] = 7
        second = await silos.call("va", train(0, handle, model_digest="again"))
        assert first.packet["values"].tobytes() == second.packet["values"].tobytes()

    with_va(channel, documents, job_of(), work)


def test_an_update_does_not_change_when_the_silo_trains_on(channel: Open, documents: Documents) -> None:
    async def work(silos: Channel, model: Any) -> None:
        handle = await silos.publish(model)
        update = await silos.call("va", train(0, handle))
        bits = update.packet["values"].tobytes()
        second = await silos.call("va", train(1, handle))
        assert isinstance(second, Update) and second.packet["values"].tobytes() != bits
        assert update.packet["values"].tobytes() == bits

    with_va(channel, documents, job_of(), work)


def test_pieces_make_up_the_update(channel: Open, documents: Documents) -> None:
    async def work(silos: Channel, model: Any) -> None:
        handle = await silos.publish(model)
        whole = await silos.call("va", train(0, handle))
        headed = await silos.call("va", train(0, handle, inline=0))
        assert whole.packet is not None and headed.packet is None and headed.size == 14
        pieces = [
            await silos.call("va", Fetch(**HEADER, version=0, start=at, stop=at + 5)) for at in (0, 5, 10)
        ]
        assert (
            np.concatenate([piece.packet["values"] for piece in pieces]).tobytes()
            == whole.packet["values"].tobytes()
        )
        missing = await silos.call("va", Fetch(**HEADER, version=9, start=0, stop=1))
        assert isinstance(missing, Refused) and missing.code == "unknown"

    with_va(channel, documents, job_of(), work)


def test_a_silo_answers_while_it_trains_and_can_be_stopped(channel: Open, documents: Documents) -> None:
    async def work(silos: Channel, model: Any) -> None:
        handle = await silos.publish(model)
        call = asyncio.ensure_future(silos.call("va", train(0, handle)))
        marks: set[Any] = set()
        while len(marks) < 3:
            assert not call.done(), call
            pong = await silos.call("va", Ping(**HEADER))
            assert isinstance(pong, Progress)
            marks |= {pong.marks} if pong.phase == "training" else set()
            await asyncio.sleep(0.05)
        await silos.call("va", Stop(**HEADER))
        reply = await call
        assert isinstance(reply, Refused) and reply.code == "cancelled"
        assert isinstance(await silos.call("va", train(1, handle)), Update), (
            "the next training is not touched"
        )

    with_va(channel, documents, job_of({"pause_s": 0.1}), work)


def test_a_silo_hands_in_what_is_done(channel: Open, documents: Documents) -> None:
    async def work(silos: Channel, model: Any) -> None:
        handle = await silos.publish(model)
        call = asyncio.ensure_future(silos.call("va", train(0, handle)))
        while (await silos.call("va", Ping(**HEADER))).phase != "training":
            assert not call.done(), call
            await asyncio.sleep(0.05)
        await silos.call("va", Stop(**HEADER, hand_in=0))
        reply = await call
        assert isinstance(reply, Update) and 1 <= reply.num_steps < 10
        again = await silos.call("va", train(0, handle))
        assert again.packet["values"].tobytes() == reply.packet["values"].tobytes()

    with_va(channel, documents, job_of({"pause_s": 0.1}), work)


def test_a_silo_assesses_a_model(channel: Open, documents: Documents) -> None:
    """All of the answer crosses the line, also what is nested in it."""

    async def work(silos: Channel, model: Any) -> None:
        handle = await silos.publish(model)
        request = Assess(
            **HEADER, version=0, model=handle, model_digest="m", counted=-1, trainings=1, num_steps=20
        )
        reply = await silos.call("va", request)
        assert isinstance(reply, Assessed), reply
        assert set(reply.models) == {"global", "alone", "fine_tuned"} and reply.num_steps == 20
        assert reply.curve[0] == (0, reply.models["global"].metrics)
        ours = reply.models["global"]
        assert ours.gains.keys() == ours.verdicts.keys() == ours.metrics.keys() == {"loss", "accuracy", "auc"}
        low, high = ours.intervals["accuracy"]
        assert low <= (ours.metrics["accuracy"].value or 0.0) <= high
        again = await silos.call("va", request)
        assert again == reply

    with_va(channel, documents, job_of(), work)


def test_a_silo_attacks_a_model_and_votes(channel: Open, documents: Documents) -> None:
    async def work(silos: Channel, model: Any) -> None:
        header = {**HEADER, "version": 0, "model": await silos.publish(model), "model_digest": "m"}
        request = Attack(**header, counted=-1, trainings=1, num_steps=20)
        reply = await silos.call("va", request)
        assert isinstance(reply, Attacked), reply
        assert (reply.vote, reply.verdicts, reply.scores) == ("pass", {}, {}), (
            "few rows: only the vote leaves"
        )
        assert await silos.call("va", request) == reply

    with_va(channel, documents, job_of({}, release={"attacks": ["membership"]}), work)


def test_a_restart_loses_the_call_and_the_join(channel: Open, documents: Documents) -> None:
    async def work(silos: Channel, model: Any) -> None:
        handle = await silos.publish(model)
        call = asyncio.ensure_future(silos.call("va", train(0, handle)))
        await asyncio.sleep(0.3)
        await silos.restart("va")
        with pytest.raises(SiloLost):
            await call
        await asyncio.sleep(0)
        while True:
            try:
                reply = await silos.call("va", train(0, handle))
                break
            except SiloLost:
                await asyncio.sleep(0.2)  # it is being started
        assert isinstance(reply, Refused) and reply.code == "job"

    with_va(channel, documents, job_of({"pause_s": 0.2}), work)


def test_an_older_driver_is_fenced_off(channel: Open, documents: Documents) -> None:
    async def work(silos: Channel, model: Any) -> None:
        await silos.call("va", Ping(run_id="contract", epoch=5))
        reply = await silos.call("va", train(0, await silos.publish(model)))
        assert isinstance(reply, Refused) and reply.code == "fenced"

    with_va(channel, documents, job_of(), work)


@pytest.mark.slow
def test_a_silo_that_vanished_is_lost_to_its_calls_and_to_no_others(
    channel: Open, documents: Documents
) -> None:
    """Also where a channel cannot tell before it is asked (`online`)."""

    async def work(silos: Channel, model: Any) -> None:
        assert set(silos.online()) == set(HOSPITALS)
        call = asyncio.ensure_future(silos.call("va", train(0, await silos.publish(model))))
        await asyncio.sleep(0.3)
        vanish(silos, "va")
        for asked in (call, silos.call("va", Ping(**HEADER))):
            with pytest.raises(SiloLost):
                await asked
        assert isinstance(await silos.call("hungarian", Ping(**HEADER)), Progress)

    with_va(channel, documents, job_of({"pause_s": 0.2}), work, patience_s=4)

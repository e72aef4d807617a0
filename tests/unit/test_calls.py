"""Calls in flight: as long as a silo makes progress it may take its time; without, it is given up, once."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from orchestrator.calls import Call, Calls
from orchestrator.core.errors import SiloLost
from orchestrator.core.messages import Evaluate, Evaluated, Ping, Progress, Reply, Request, Train

HEADER: dict[str, Any] = {"run_id": "run", "epoch": 1}
PATIENCE_S = 0.2


class Slow:
    """A channel to one silo that answers after ``work_s``, with ``beats`` signs of progress per second."""

    def __init__(self, work_s: float, beats: float = 0.0, deaf: bool = False) -> None:
        self.work_s, self.beats, self.deaf = work_s, beats, deaf
        self.restarts, self.began = 0, time.monotonic()

    async def call(self, silo: str, request: Request) -> Reply:
        if isinstance(request, Ping):
            await asyncio.sleep(60 if self.deaf else 0)
            marks = int((time.monotonic() - self.began) * self.beats)
            known = {
                "incarnation": "i",
                "phase": "training",
                "version": 0,
                "num_steps": marks,
                "total_steps": 99,
            }
            return Progress(silo=silo, marks=marks, **known)
        await asyncio.sleep(self.work_s)
        return Evaluated(silo=silo, version=0, metrics={}, seconds=0.0)

    async def restart(self, silo: str) -> None:
        self.restarts += 1


def train() -> Train:
    return Train(**HEADER, version=0, attempt=1, model=None, model_digest="", counted=-1, inline=0)


def with_calls(channel: Slow, work: Callable[[Calls, list[Any]], Awaitable[None]]) -> list[Any]:
    """What was delivered."""
    delivered: list[Any] = []

    async def whole() -> None:
        def deliver(call: Call, reply: Reply | SiloLost) -> None:
            delivered.append((call, reply))

        calls = Calls(channel, PATIENCE_S, deliver, lambda _: None, time.monotonic, lambda: Ping(**HEADER))  # type: ignore[arg-type]
        try:
            await asyncio.wait_for(work(calls, delivered), 10)
        finally:
            calls.close()

    asyncio.run(whole())
    return delivered


def test_an_answer_is_delivered() -> None:
    async def work(calls: Calls, delivered: list[Any]) -> None:
        call = calls.start("s", train())
        await asyncio.sleep(0.1)
        assert calls.current(call)
        calls.done(call)
        assert not calls.current(call)

    ((_, reply),) = with_calls(Slow(0.02), work)
    assert isinstance(reply, Evaluated)


def test_progress_is_worth_waiting_for() -> None:
    """Five times the patience, with a sign of progress now and then."""
    channel = Slow(5 * PATIENCE_S, beats=30)

    async def work(calls: Calls, delivered: list[Any]) -> None:
        calls.start("s", train())
        await asyncio.sleep(5 * PATIENCE_S + 0.1)

    ((_, reply),) = with_calls(channel, work)
    assert isinstance(reply, Evaluated) and channel.restarts == 0


@pytest.mark.parametrize("deaf", [False, True], ids=["answers without progress", "answers nothing"])
def test_a_silo_without_progress_is_given_up_and_restarted_once(deaf: bool) -> None:
    """Also while the driver is busy with something else and does not look."""
    channel = Slow(60, deaf=deaf)

    async def work(calls: Calls, delivered: list[Any]) -> None:
        calls.start("s", train())
        await asyncio.sleep(6 * PATIENCE_S)

    ((_, reply),) = with_calls(channel, work)
    assert isinstance(reply, SiloLost) and "no progress for 0.2 s" in reply.why
    assert channel.restarts == 1


def test_an_answer_that_waits_to_be_read_is_no_silence() -> None:
    channel = Slow(0.02)

    async def work(calls: Calls, delivered: list[Any]) -> None:
        calls.start("s", train())
        await asyncio.sleep(4 * PATIENCE_S)  # the driver waits for the disk

    assert len(with_calls(channel, work)) == 1 and channel.restarts == 0


def test_asking_waits_for_the_answer_under_the_same_watch() -> None:
    async def work(calls: Calls, delivered: list[Any]) -> None:
        request = Evaluate(**HEADER, version=0, model=None, counted=-1)
        assert isinstance(await calls.ask("s", request), Evaluated)
        calls.channel.work_s = 60  # type: ignore[attr-defined]
        with pytest.raises(SiloLost, match="no progress"):
            await calls.ask("s", request)
        assert not calls.by_silo

    assert with_calls(Slow(0.02), work) == []

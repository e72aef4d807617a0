"""What the in-process channel does so that silos in threads behave like silos in processes."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.errors import SiloLost
from orchestrator.core.messages import Join, Joined, Ping, Refused, Train, Update
from orchestrator.transport.local import LocalChannel
from silos.silo import Silo
from tests.support.quadratic import PlainSite, job_of, problems

HEADER: dict[str, Any] = {"run_id": "run", "epoch": 1}
JOB = job_of(["s0"])
JOIN = Join(**HEADER, job=JOB.model_dump_json(), job_digest=JOB.digest)


def train(version: int, model: Any) -> Train:
    known = {"attempt": 1, "model_digest": str(version), "counted": -1, "inline": 100}
    return Train(**HEADER, version=version, model=model, **known)


def site(folder: Path, **options: Any) -> PlainSite:
    return PlainSite("s0", problems(1, **options)["s0"], folder)


async def published(channel: LocalChannel) -> Any:
    from numpy import float32, ones

    return await channel.publish({"params": ones(5, float32)})


def test_a_restart_ends_the_work_in_hand(tmp_path: Path) -> None:
    """A thread cannot be killed: without a word it would go on, and write its state beside the new silo's."""
    here = site(tmp_path, steps=100, sleep_s=0.02)

    async def work() -> None:
        channel = LocalChannel({"s0": lambda: Silo(here)})
        assert isinstance(await channel.call("s0", JOIN), Joined)
        call = asyncio.ensure_future(channel.call("s0", train(0, await published(channel))))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        await channel.restart("s0")
        with pytest.raises(SiloLost, match="its process ended"):
            await call
        assert time.monotonic() - began < 1 and here.trained == []
        channel.close()

    asyncio.run(work())


def test_a_silo_off_the_network_is_lost_now_and_for_what_it_works_on(tmp_path: Path) -> None:
    here = site(tmp_path, sleep_s=0.05)

    async def work() -> None:
        channel = LocalChannel({"s0": lambda: Silo(here)})
        await channel.call("s0", JOIN)
        call = asyncio.ensure_future(channel.call("s0", train(0, await published(channel))))
        await asyncio.sleep(0.05)
        channel.offline.add("s0")
        assert not channel.online()
        for coming in (call, channel.call("s0", Ping(**HEADER))):
            with pytest.raises(SiloLost):
                await coming
        channel.offline.clear()
        assert isinstance(await channel.call("s0", train(0, await published(channel))), Update)
        assert here.trained == [0], "it was trained, and only the answer got lost"
        channel.close()

    asyncio.run(work())


def test_silos_work_at_the_same_time() -> None:
    meeting = threading.Barrier(3, timeout=10)

    class Meets:
        def handle(self, request: Any) -> Any:
            meeting.wait()
            return Refused(silo="", code="policy", reason="met")

    async def work() -> None:
        channel = LocalChannel({name: Meets for name in "abc"})
        replies = await asyncio.gather(*(channel.call(name, JOIN) for name in "abc"))
        assert all(reply.reason == "met" for reply in replies)
        channel.close()

    asyncio.run(work())


def test_what_a_silo_raises_is_its_answer() -> None:
    class Breaks:
        def handle(self, request: Any) -> Any:
            raise IndexError("row 7")

    async def work() -> None:
        channel = LocalChannel({"s0": Breaks})
        for request in (JOIN, Ping(**HEADER)):
            reply = await channel.call("s0", request)
            assert isinstance(reply, Refused) and (reply.code, reply.reason) == (
                "failed",
                "IndexError: row 7",
            )
        channel.close()

    asyncio.run(work())

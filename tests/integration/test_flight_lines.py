"""Lines that break, crawl and fall silent: what was sent is not sent again, and who makes progress is waited for."""

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.core.errors import SiloLost
from orchestrator.core.messages import (
    Evaluate,
    Evaluated,
    Fetch,
    Join,
    Joined,
    Piece,
    Ping,
    Progress,
    Refused,
    Reply,
    Request,
)
from orchestrator.core.vector import blocks
from orchestrator.transport.flight import FlightChannel
from silos.agent import Agent
from silos.workplace import InThread
from tests.support.consortium import Consortium, until, uri_of
from tests.support.line import Line

HEADER: dict[str, Any] = {"run_id": "lines", "epoch": 1}
LIMIT_S = 120.0
SHARED = 8_000_000
"""Elements that the silo says it shares: no larger model is for it."""


class Keeper:
    """A silo that keeps a vector, and the model that it got last."""

    def __init__(self, size: int) -> None:
        self.values = np.random.default_rng(0).random(size, np.float32)
        self.model: dict[str, Any] = {}
        self.asked: list[Request] = []
        self.pause_s = 0.0

    def handle(self, request: Request) -> Reply:
        self.asked.append(request)
        match request:
            case Join():
                text = dict.fromkeys(("schema_digest", "fingerprint", "device", "node"), "")
                told = {"num_examples": {}, "model": {}, "versions": {}, **text}
                return Joined(silo="a", incarnation="i", num_parameters=SHARED, num_shared=SHARED, **told)
            case Fetch():
                return Piece(packet={"values": self.values[request.start : request.stop]})
            case Evaluate():
                time.sleep(self.pause_s)
                self.model = {name: np.array(part) for name, part in request.model.items()}
                return Evaluated(silo="a", version=request.version, metrics={}, seconds=0.0)
            case Ping():
                told = {"version": 0, "num_steps": 0, "total_steps": 0}
                return Progress(silo="a", incarnation="i", phase="idle", marks=1, **told)
        return Refused(silo="a", code="unknown", reason="not asked here")


@contextmanager
def lined(folder: Path, keeper: Keeper, patience_s: float = 60.0) -> Iterator[tuple[FlightChannel, Line]]:
    consortium = Consortium(folder / "ca", ("a",))
    with consortium.channel(patience_s) as channel, Line(channel.port) as line:
        uri = f"grpc+tls://127.0.0.1:{line.port}"
        with consortium.agents(uri, {"a": lambda: keeper}):
            until(lambda: channel.connected() == {"a"})
            join = Join(**HEADER, job="", job_digest="")
            assert isinstance(asyncio_run(channel.call("a", join)), Joined)
            yield channel, line


def asyncio_run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, LIMIT_S))


async def fetched(channel: FlightChannel, size: int) -> np.ndarray:
    out = np.zeros(size, np.float32)
    for start, stop in blocks(size, 1 << 23):
        reply = await channel.call("a", Fetch(**HEADER, version=0, start=start, stop=stop))
        assert isinstance(reply, Piece), reply
        out[start:stop] = reply.packet["values"]
    return out


@pytest.mark.parametrize("millions", [6, pytest.param(86, marks=pytest.mark.slow)])
def test_an_update_is_not_sent_again_from_the_start(tmp_path: Path, millions: int) -> None:
    """Cut three times on its way: what had arrived stays, but for the frames that were under way."""
    keeper = Keeper(millions * 1_000_000)
    with lined(tmp_path, keeper) as (channel, line):
        line.cut_after = [keeper.values.nbytes * share // 10 for share in (2, 5, 8)]
        got = asyncio_run(fetched(channel, keeper.values.size))
        assert not line.cut_after, "the line was cut three times"
        assert np.array_equal(got, keeper.values)
        again = line.up - keeper.values.nbytes
        assert again < 3 * 6 * (4 << 20) + (1 << 20), f"{again:,} bytes more than the update has"
    assert sum(isinstance(each, Fetch) for each in keeper.asked) == -(-keeper.values.size // (1 << 23))


def test_a_model_is_not_fetched_again_from_the_start(tmp_path: Path) -> None:
    keeper, model = Keeper(1), np.random.default_rng(1).random(8_000_000, np.float32)
    with lined(tmp_path, keeper) as (channel, line):

        async def sent() -> None:
            published = await channel.publish({"params": model})
            call = asyncio.ensure_future(
                channel.call("a", Evaluate(**HEADER, version=0, model=published, counted=-1))
            )
            for share in (0.3, 0.6):
                while line.down < share * model.nbytes:
                    await asyncio.sleep(0.001)
                line.cut()
            assert isinstance(await call, Evaluated)

        asyncio_run(sent())
        assert np.array_equal(keeper.model["params"], model)
        assert line.down - model.nbytes < 2 * 6 * (4 << 20) + (1 << 20)


def test_a_model_that_cannot_be_the_silos_is_not_fetched(tmp_path: Path) -> None:
    """Neither a larger one than it has joined with, nor one of a run that it has not joined."""
    keeper = Keeper(1)
    with lined(tmp_path, keeper) as (channel, line):

        async def asked() -> None:
            long = await channel.publish({"params": np.ones(SHARED + 1, np.float32)})
            request = Evaluate(**HEADER, version=0, model=long, counted=-1)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(channel.call("a", request), 3.0)
            other = Evaluate(run_id="other", epoch=1, version=0, model=long, counted=-1)
            reply = await channel.call("a", other)
            assert isinstance(reply, Refused) and reply.code == "job"
            fits = await channel.publish({"params": np.ones(10, np.float32)})
            good = Evaluate(**HEADER, version=0, model=fits, counted=-1)
            assert isinstance(await channel.call("a", good), Evaluated), "it goes on"

        asyncio_run(asked())
        assert line.down < 1 << 20


@pytest.mark.parametrize("size", [1_000_000, 1_200_000], ids=["in one frame on a fast line", "in several"])
@pytest.mark.slow
def test_a_slow_line_is_waited_for_while_bytes_move(tmp_path: Path, size: int) -> None:
    """The piece takes more than twice the patience; the driver sees that it comes."""
    keeper = Keeper(size)
    with lined(tmp_path, keeper, patience_s=6.0) as (channel, line):
        line.rate = 256_000.0
        before = channel.moved("a")
        began = time.monotonic()
        got = asyncio_run(fetched(channel, keeper.values.size))
        assert time.monotonic() - began > 14 and channel.moved("a") > before
        assert np.array_equal(got, keeper.values)


@pytest.mark.slow
def test_a_silent_line_is_given_up_after_the_patience_and_taken_up_again(tmp_path: Path) -> None:
    keeper = Keeper(1000)
    with lined(tmp_path, keeper, patience_s=3.0) as (channel, line):
        line.silent = True

        async def lost() -> None:
            with pytest.raises(SiloLost, match="silent for"):
                while True:
                    await channel.call("a", Ping(**HEADER))

        asyncio_run(lost())
        line.silent = False
        line.cut()  # as TCP does in the end
        until(lambda: (channel.absent_s("a") or 9) < 1.0)
        assert np.array_equal(asyncio_run(fetched(channel, 1000)), keeper.values)


def test_work_goes_on_while_the_line_is_cut_and_its_answer_follows(tmp_path: Path) -> None:
    keeper = Keeper(1)
    keeper.pause_s = 2.0
    with lined(tmp_path, keeper) as (channel, line):

        async def asked() -> None:
            published = await channel.publish({"params": np.ones(10, np.float32)})
            request = Evaluate(**HEADER, version=0, model=published, counted=-1)
            call = asyncio.ensure_future(channel.call("a", request))
            while not any(isinstance(each, Evaluate) for each in keeper.asked):
                await asyncio.sleep(0.01)
            line.cut()
            assert isinstance(await call, Evaluated)

        asyncio_run(asked())
    assert sum(isinstance(each, Evaluate) for each in keeper.asked) == 1, "asked twice, it worked once"


def test_a_silo_of_another_version_is_turned_away(tmp_path: Path) -> None:
    consortium, refused = Consortium(tmp_path / "ca", ("a",)), []
    with consortium.channel(refused=lambda *why: refused.append(why)) as channel:
        agent = Agent("a", uri_of(channel), consortium.of("a"), InThread(lambda: Keeper(1)))
        agent._hello = lambda: {"incarnation": "i", "versions": {"siloray": "9.9.0"}}  # type: ignore[method-assign]
        agent._line._hello = agent._hello
        threading.Thread(target=agent.run, daemon=True).start()
        until(lambda: refused)
        agent.close()
        assert channel.connected() == set()
    who, code, reason = refused[0]
    assert who.endswith("/silo/a") and code == "version" and "runs Siloray 9.9.0" in reason

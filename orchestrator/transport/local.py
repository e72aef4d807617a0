"""Silos in this process, each with a thread of its own: the test double, and the way to run without Ray."""

import asyncio
from collections.abc import Callable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from orchestrator.core.errors import SiloLost
from orchestrator.core.messages import AT_ONCE, Ask, Refused, Reply, Request, SiloId, Stop, Update
from orchestrator.core.vector import Parts


class Handles(Protocol):
    """A silo, as a channel sees it."""

    def handle(self, request: Request) -> Reply: ...


class LocalChannel:
    """Calls silos in threads. ``start`` makes a silo's object anew, as a restarted process would."""

    def __init__(self, start: Mapping[SiloId, Callable[[], Handles]]) -> None:
        self._start = start
        self._silos = {name: make() for name, make in start.items()}
        self._threads = {name: ThreadPoolExecutor(1, f"silo-{name}") for name in start}
        self._stop: dict[SiloId, Stop] = {}
        self.offline: set[SiloId] = set()
        """Silos that a test takes off the network."""

    def online(self) -> Set[SiloId]:
        return self._silos.keys() - self.offline

    async def publish(self, parts: Parts) -> Any:
        """Copies: silos may hold on to a version while the driver reuses its memory."""
        copies = {name: np.array(part) for name, part in parts.items()}
        for copy in copies.values():
            copy.flags.writeable = False
        return copies

    async def call(self, silo: SiloId, request: Request) -> Reply:
        if silo in self.offline:
            raise SiloLost(silo, "offline")
        handler = self._silos[silo]
        self._stop[silo] = Stop(run_id=request.run_id, epoch=request.epoch)
        if isinstance(request, Ask):
            return await asyncio.to_thread(answer, silo, handler, request)
        if isinstance(request, AT_ONCE):
            return answer(silo, handler, request)
        loop = asyncio.get_running_loop()
        reply = await loop.run_in_executor(self._threads[silo], answer, silo, handler, request)
        if self._silos[silo] is not handler or silo in self.offline:
            raise SiloLost(silo, "its process ended")
        return reply

    def moved(self, silo: SiloId) -> int:
        return 0

    async def restart(self, silo: SiloId) -> None:
        old, threads = self._silos[silo], self._threads[silo]
        self._silos[silo] = self._start[silo]()
        self._threads[silo] = ThreadPoolExecutor(1, f"silo-{silo}")
        threads.shutdown(wait=False)
        if silo in self._stop:
            answer(
                silo, old, self._stop[silo]
            )  # a thread cannot be killed; what is left of it must not write

    def close(self) -> None:
        """Wait for nothing: threads end with their work."""
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)


def answer(silo: SiloId, handler: Handles, request: Request) -> Reply:
    """What goes wrong in the silo's own code is its answer, as on every channel."""
    try:
        return _own(handler.handle(request))
    except Exception as error:
        return Refused(silo=silo, code="failed", reason=f"{type(error).__name__}: {error}")


def _own(reply: Reply) -> Reply:
    """A packet that comes with the reply is the driver's: the silo's memory is written over by its next training."""
    if isinstance(reply, Update) and reply.packet is not None:
        return replace(reply, packet={name: np.array(array) for name, array in reply.packet.items()})
    return reply

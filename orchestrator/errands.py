"""Words to silos that nobody waits for."""

import asyncio
import contextlib

from orchestrator.attempt import Attempt
from orchestrator.core.errors import SiloLost
from orchestrator.core.messages import SiloId, Stop


class Errands:
    """Sent from the event loop; what becomes of them shows in the answer to the work that they are about."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self._asked: dict[SiloId, int] = {}
        """Silo -> newest version whose work it was told to hand in."""
        self._sending: set[asyncio.Task[None]] = set()

    def cancel(self, silo: SiloId) -> None:
        """Its work can no longer be used; it is busy until it answers."""
        self._send(silo, None)

    def hand_in(self, silo: SiloId, version: int) -> None:
        """Have what is done of this version; a silo is told so once."""
        if self._asked.get(silo) != version:
            self._asked[silo] = version
            self._send(silo, version)

    def _send(self, silo: SiloId, hand_in: int | None) -> None:
        request = Stop(run_id=self.attempt.run_id, epoch=self.attempt.store.epoch, hand_in=hand_in)
        task = asyncio.create_task(self._carry(silo, request))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _carry(self, silo: SiloId, request: Stop) -> None:
        with contextlib.suppress(SiloLost):
            await self.attempt.channel.call(silo, request)

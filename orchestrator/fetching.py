"""Packets that stayed at their silos, fetched piece by piece while folding."""

from collections import defaultdict

from orchestrator.attempt import Attempt
from orchestrator.core.errors import SiloLost
from orchestrator.core.messages import Fetch, Piece, SiloId, Update
from orchestrator.core.vector import Packet


class Fetching:
    """Fetches the updates of one fold. Each may take ``limit_s`` in all, so that a silo whose bytes trickle does not
    hold the others; only its own time counts, as it waits for the slowest one between two pieces."""

    def __init__(self, attempt: Attempt, limit_s: float) -> None:
        self.attempt, self.limit_s = attempt, limit_s
        self._spent: defaultdict[tuple[SiloId, int], float] = defaultdict(float)
        """Seconds, by silo and version of the update."""

    async def __call__(self, update: Update, start: int, stop: int) -> Packet:
        """Elements ``start`` to ``stop`` of the update's packet. Raises `SiloLost`."""
        if update.packet is not None:
            return {name: array[start:stop] for name, array in update.packet.items()}
        request = Fetch(
            run_id=self.attempt.run_id,
            epoch=self.attempt.store.epoch,
            version=update.version,
            start=start,
            stop=stop,
        )
        key, began = (update.silo, update.version), self.attempt.clock()
        reply = await self.attempt.ask(update.silo, request, self.limit_s - self._spent[key])
        self._spent[key] += self.attempt.clock() - began
        if not isinstance(reply, Piece):
            raise SiloLost(update.silo, f"has no update to fetch: {reply}")
        return reply.packet

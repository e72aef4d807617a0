"""A recorded run made again, update by update: what the journal says must lead to the same bits.

Updates arrive in the round in which the record has them, as long after its opening as the last one took then. A silo
that worked in vain, or was lost, works in vain again, until the version on which its next recorded update is based.
"""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.core.events import Contributor, Event, RoundClosed, RoundOpened
from orchestrator.core.messages import Reply, Request, SiloId, Train
from orchestrator.simulation.channel import SimulatedChannel, Work
from orchestrator.simulation.loop import now
from orchestrator.simulation.timings import Spent, Steady, Task
from orchestrator.transport.local import Handles

Key = tuple[SiloId, int]
"""Silo, and the version that it trained from."""


class AsRecorded(Steady):
    """Durations that only the record knows (`Timings`)."""

    seed = 0

    def __init__(self, source: str) -> None:
        self.source = source

    def spent(self, task: Task) -> Spent:
        return Spent()

    def told(self) -> dict[str, Any]:
        """For the record."""
        return {"run": self.source, "exactly": True}


class FollowingChannel(SimulatedChannel):
    """Delivers as ``rounds`` say."""

    def __init__(
        self,
        start: Mapping[SiloId, Callable[[], Handles]],
        source: str,
        batch_size: int,
        rounds: Sequence[RoundClosed],
    ) -> None:
        super().__init__(start, AsRecorded(source), batch_size)
        self._wait = {closed.version - 1: closed.seconds.get("wait", 0.0) for closed in rounds}
        """By the version that a round opened with: seconds until its last arrival."""
        self._given = {
            (each.silo, each.base_version): (closed.version - 1, each)
            for closed in rounds
            for each in closed.contributors
        }
        """The round in which an update arrived, and what is known of it."""
        self._opened: dict[int, float] = {}
        self._works: dict[Key, Work] = {}
        self._together: dict[tuple[int, float], list[Work]] = {}
        """What is on its way: by the round, and by the moment at which it is due."""

    def observe(self, event: Event) -> None:
        """Has to be told of the run's events."""
        if isinstance(event, RoundOpened):
            self._opened[event.version] = now()
            self._due_in(event.version)
            self._give_up_before(event.version)

    async def call(self, silo: SiloId, request: Request) -> Reply:
        """A number of steps that the driver asked for followed from how long things took; it is as recorded."""
        if isinstance(request, Train) and request.num_steps is not None:
            request = replace(request, num_steps=self._num_steps(silo, request))
        return await super().call(silo, request)

    def _num_steps(self, silo: SiloId, request: Train) -> int | None:
        found = self._given.get((silo, request.version))
        return found[1].num_steps if found else request.num_steps

    def _expect(self, work: Work) -> None:
        key = work.silo, work.version
        self._works[key] = work
        work.due = math.inf
        if key in self._given:
            version, given = self._given[key]
            work.spent = _spent(given)
            if version in self._opened:
                self._at_once(version, [work])

    def _due_in(self, version: int) -> None:
        """What was in hand already when this round opened."""
        keys = [key for key, (arrived, _) in self._given.items() if arrived == version]
        self._at_once(version, [self._works[key] for key in keys if key in self._works])

    def _at_once(self, version: int, works: list[Work]) -> None:
        """They arrive together, whatever their number: the driver took them in together."""
        for work in works:
            work.due = max(now(), self._opened[version] + self._after(version, work))
            if (version, work.due) not in self._together:
                self._together[version, work.due] = []
                asyncio.get_running_loop().call_at(work.due, self._arrive_in, version, work.due)
            self._together[version, work.due].append(work)

    def _after(self, version: int, work: Work) -> float:
        """At once, if the silo trained on the round's own version as well and delivered that, too."""
        again = self._given.get((work.silo, version), (-1, None))[0] == version
        return 0.0 if work.version < version and again else self._wait[version]

    def _arrive_in(self, version: int, due: float) -> None:
        for work in self._together.pop((version, due)):
            self._end_of(work, "arrived")

    def _give_up_before(self, version: int) -> None:
        """Work that came to nothing, of silos that are to begin anew."""
        for silo in [silo for silo, based in self._given if based == version]:
            work = self._in_hand[silo][0] if silo in self._in_hand else None
            if work is not None and (silo, work.version) not in self._given:
                self._end_of(work, "lost")


def _spent(given: Contributor) -> Spent:
    train, transfer = (given.seconds.get(phase, 0.0) for phase in ("train", "transfer"))
    return Spent(train=train, other=math.fsum(given.seconds.values()) - train - transfer, up=transfer)

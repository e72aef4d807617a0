"""The way to silos that work in this process on a virtual clock.

A silo trains when it is asked to, for its inputs are fixed then; its answer arrives when the virtual time of the work
is over. Answers that are due at the same moment arrive one by one, by the silos'
names: what one of them sets going is over before the next.
"""

import asyncio
import heapq
import math
from collections import Counter
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from orchestrator.core.errors import SiloLost
from orchestrator.core.messages import (
    Evaluate,
    Evaluated,
    Joined,
    Ping,
    Progress,
    Refused,
    Reply,
    Request,
    SiloId,
    Stop,
    Train,
    Update,
)
from orchestrator.core.vector import Parts
from orchestrator.simulation.loop import now
from orchestrator.simulation.timings import Spent, Task, Timings
from orchestrator.transport.local import Handles, answer

End = Literal["arrived", "stopped", "lost"]


@dataclass(slots=True)
class Work:
    """One training, from the moment that its silo was asked."""

    silo: SiloId
    version: int
    """Trained from."""
    number: int
    began: float
    due: float
    spent: Spent
    num_steps: int
    ended: float = math.nan
    end: End | None = None
    """None while it goes on."""


class SimulatedChannel:
    """``start`` makes a silo's object anew; ``batch_size`` tells how many steps an epoch has."""

    def __init__(
        self, start: Mapping[SiloId, Callable[[], Handles]], timings: Timings, batch_size: int
    ) -> None:
        self._start, self._timings, self._batch_size = start, timings, batch_size
        self._silos = {name: make() for name, make in start.items()}
        self._rows: dict[SiloId, int] = {}
        self._numbers: Counter[SiloId] = Counter()
        self._waiting: list[tuple[float, SiloId, int, Work]] = []
        """What is due, first by time, then by silo."""
        self._in_hand: dict[SiloId, tuple[Work, asyncio.Future[None]]] = {}
        self._pings = 0
        self.works: list[Work] = []
        """All trainings so far, in the order in which they began."""
        self.models: dict[int, Parts] = {}
        """Versions that silos were given; whoever needs one no longer takes it out."""

    def online(self) -> Set[SiloId]:
        return {silo for silo in self._silos if not self._timings.away(silo, now())}

    async def publish(self, parts: Parts) -> Any:
        """Copies: silos may hold on to a version while the driver reuses its memory."""
        copies = {name: np.array(part) for name, part in parts.items()}
        for copy in copies.values():
            copy.flags.writeable = False
        return copies

    async def call(self, silo: SiloId, request: Request) -> Reply:
        if self._timings.away(silo, now()):
            raise SiloLost(silo, "cannot be reached")
        if isinstance(request, Ping):
            return self._pong(silo)
        reply = self._answer(silo, request)
        match request, reply:
            case Train(), Update():
                self.models[request.version] = request.model
                return await self._train(silo, request, reply)
            case Evaluate(), Evaluated():
                self.models[request.version] = request.model
                return await self._evaluate(silo, request, reply)
            case Stop(hand_in=None), _:
                self._end(silo, "stopped")
            case Stop(), _:
                self._hand_in(silo, request.hand_in)
            case _, Joined():
                self._rows[silo] = reply.num_examples.get("train", 0)
        return reply

    def moved(self, silo: SiloId) -> int:
        return 0

    async def restart(self, silo: SiloId) -> None:
        self._silos[silo] = self._start[silo]()
        self._end(silo, "lost")

    async def _train(self, silo: SiloId, request: Train, update: Update) -> Reply:
        task = self._task(silo, request.model, update.num_steps, update.packet_bytes)
        spent, began = self._timings.spent(task), now()
        due = began + spent.total
        work = Work(silo, request.version, task.number, began, due, spent, update.num_steps)
        self.works.append(work)
        await self._due(work)
        if work.end == "arrived" and work.num_steps < update.num_steps:
            update = self._shortened(silo, request, work.num_steps)
        if work.end == "lost":
            raise SiloLost(silo, "cannot be reached")
        if work.end == "stopped":
            return Refused(silo=silo, code="cancelled", reason="the driver no longer wanted this work")
        return replace(update, seconds={"load": 0.0, "evaluate": work.spent.other, "train": work.spent.train})

    def _answer(self, silo: SiloId, request: Request) -> Reply:
        """What is to be handed in is worked out here: a silo that was told of it before it trained would do nothing."""
        if isinstance(request, Stop) and request.hand_in is not None:
            return self._pong(silo)
        return answer(silo, self._silos[silo], request)

    def _shortened(self, silo: SiloId, request: Train, num_steps: int) -> Update:
        """The update of the first so many steps. Under its own digest the silo would return the one that it keeps."""
        again = replace(request, num_steps=num_steps, model_digest=f"{request.model_digest} {num_steps}")
        reply = answer(silo, self._silos[silo], again)
        assert isinstance(reply, Update), reply
        return replace(reply, model_digest=request.model_digest)

    async def _evaluate(self, silo: SiloId, request: Evaluate, evaluated: Evaluated) -> Reply:
        spent = self._timings.spent(self._task(silo, request.model, 0, 0))
        await asyncio.sleep(spent.total)
        return replace(evaluated, seconds=spent.other)

    def _task(self, silo: SiloId, model: Parts, num_steps: int, bytes_up: int) -> Task:
        number = self._numbers[silo]
        self._numbers[silo] += 1
        rows = self._rows.get(silo, 0)
        per_epoch = -(-rows // self._batch_size) if rows else max(num_steps, 1)
        bytes_down = sum(part.nbytes for part in model.values())
        return Task(silo, number, num_steps, num_steps / per_epoch, bytes_down, bytes_up)

    async def _due(self, work: Work) -> None:
        """Until the work's time has come, or its end before that. A silo that a newer request reaches works on that
        one alone."""
        self._end(work.silo, "stopped")
        loop = asyncio.get_running_loop()
        over = loop.create_future()
        self._in_hand[work.silo] = work, over
        outage = self._timings.next_outage(work.silo, work.began)
        if outage < work.due:
            loop.call_at(outage, self._end_of, work, "lost")
        self._expect(work)
        await over

    def _arrive(self) -> None:
        """The first of those that are due; there is a timer for each."""
        due, _, _, work = heapq.heappop(self._waiting)
        if due == work.due:
            self._end_of(work, "arrived")

    def _hand_in(self, silo: SiloId, version: int | None) -> None:
        """The step in hand is the last one; what is on its way already comes as it is."""
        work = self._in_hand[silo][0] if silo in self._in_hand else None
        if work is None or work.version != version or work.due == math.inf:
            return
        spent, step_s = work.spent, work.spent.train / max(work.num_steps, 1)
        trained = now() - work.began - spent.down - spent.other
        num_steps = max(1, math.ceil(trained / step_s - 1e-9)) if step_s > 0 else work.num_steps
        if num_steps < work.num_steps:
            work.num_steps, work.spent = num_steps, replace(spent, train=num_steps * step_s)
            work.due = work.began + work.spent.total
            self._expect(work)

    def _expect(self, work: Work) -> None:
        heapq.heappush(self._waiting, (work.due, work.silo, work.number, work))
        asyncio.get_running_loop().call_at(work.due, self._arrive)

    def _end(self, silo: SiloId, how: End) -> None:
        """What the silo has in hand, if anything."""
        if silo in self._in_hand:
            self._end_of(self._in_hand[silo][0], how)

    def _end_of(self, work: Work, how: End) -> None:
        if work.end is not None:
            return
        work.end, work.ended = how, now()
        _, over = self._in_hand.pop(work.silo)
        if not over.done():
            over.set_result(None)

    def _pong(self, silo: SiloId) -> Progress:
        """A silo at work is always alive here."""
        self._pings += 1
        work = self._in_hand.get(silo, (None,))[0]
        done = (now() - work.began) / max(work.due - work.began, 1e-12) if work else 0.0
        return Progress(
            silo=silo,
            incarnation="simulated",
            phase="training" if work else "idle",
            version=work.version if work else -1,
            num_steps=int(work.num_steps * min(done, 1.0)) if work else 0,
            total_steps=work.num_steps if work else 0,
            marks=self._pings,
        )

"""Work in flight: one call per silo, watched for signs of life.

There is one setting, ``rounds.patience_s``, instead of a time-out for every kind of work: a silo may take as
long as it likes while it makes progress, and is given up when it shows none for that long.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.core.errors import SiloLost
from orchestrator.core.messages import Assess, Attack, Evaluate, Ping, Progress, Reply, SiloId, Work
from orchestrator.core.protocols import Channel

Deliver = Callable[["Call", Reply | SiloLost], None]


@dataclass(eq=False, slots=True)
class Call:
    """One training, evaluation, assessment or attack that a silo was asked for."""

    silo: SiloId
    request: Work
    deliver: Deliver
    began_at: float
    alive_at: float
    task: "asyncio.Task[None] | None" = None
    given_up: bool = False
    """Its end is on the way to the driver, which may be busy; its silo is restarted once."""
    marks: int = -1
    progress: Progress | None = None


@dataclass
class Calls:
    """Starts calls, delivers their replies, and gives up those without a sign of life."""

    channel: Channel
    patience_s: float
    deliver: Deliver
    progressed: Callable[[Progress], None]
    clock: Callable[[], float]
    ping: Callable[[], Ping]
    by_silo: dict[SiloId, Call] = field(default_factory=dict)
    _watch: "asyncio.Task[None] | None" = None
    _probes: set["asyncio.Task[None]"] = field(default_factory=set)

    def start(self, silo: SiloId, request: Work, deliver: Deliver | None = None) -> Call:
        """Replaces the silo's call in hand, whose answer is no longer current."""
        now = self.clock()
        call = Call(silo, request, deliver or self.deliver, began_at=now, alive_at=now)
        self.by_silo[silo] = call
        call.task = asyncio.create_task(self._carry(call))
        if self._watch is None:
            self._watch = asyncio.create_task(self._watching())
        return call

    async def ask(self, silo: SiloId, request: Evaluate | Assess | Attack) -> Reply:
        """Start a call and wait for its answer. Raises `SiloLost`."""
        answer: asyncio.Future[Reply | SiloLost] = asyncio.get_running_loop().create_future()
        call = self.start(silo, request, lambda _, reply: None if answer.done() else answer.set_result(reply))
        reply = await answer
        self.done(call)
        if isinstance(reply, SiloLost):
            raise reply
        return reply

    def current(self, call: Call) -> bool:
        """False for the answer to a call that was given up."""
        return self.by_silo.get(call.silo) is call

    def done(self, call: Call) -> None:
        if self.current(call):
            del self.by_silo[call.silo]

    def close(self) -> None:
        for task in (self._watch, *self._probes, *(call.task for call in self.by_silo.values())):
            if task is not None:
                task.cancel()

    async def _carry(self, call: Call) -> None:
        try:
            call.deliver(call, await self.channel.call(call.silo, call.request))
        except SiloLost as lost:
            call.deliver(call, lost)

    async def _watching(self) -> None:
        pause = min(max(self.patience_s / 4, 0.05), 5.0)
        while True:
            await asyncio.sleep(pause)
            for call in list(self.by_silo.values()):
                self._probe_soon(call)
                if self.clock() - call.alive_at > self.patience_s:
                    self._give_up(call)

    def _probe_soon(self, call: Call) -> None:
        probe = asyncio.create_task(self._probe(call))
        self._probes.add(probe)
        probe.add_done_callback(self._probes.discard)

    async def _probe(self, call: Call) -> None:
        try:
            reply = await asyncio.wait_for(self.channel.call(call.silo, self.ping()), self.patience_s)
        except (SiloLost, TimeoutError):
            return  # the call itself, or the watch, finds out
        if isinstance(reply, Progress) and reply.marks != call.marks:
            call.marks, call.alive_at, call.progress = reply.marks, self.clock(), reply
            self.progressed(reply)

    def _give_up(self, call: Call) -> None:
        if not self.current(call) or call.given_up or call.task is None or call.task.done():
            return
        call.given_up = True
        call.task.cancel()
        where = f" in phase {call.progress.phase}" if call.progress else ""
        call.deliver(call, SiloLost(call.silo, f"no progress for {self.patience_s:g} s{where}"))
        restart = asyncio.create_task(self.channel.restart(call.silo))
        self._probes.add(restart)
        restart.add_done_callback(self._probes.discard)

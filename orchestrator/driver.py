"""The driver: one event loop that launches, receives and closes. It knows neither Ray nor MLflow.

Commit, then acknowledge, then tell the world: a version is told of once it is durable. Training on it starts
before that, for a version that is made again is made of the same updates; but no round closes before the one
before it is durable.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.attempt import Attempt
from orchestrator.calls import Call, Calls
from orchestrator.core import events
from orchestrator.core.errors import BadInput, CannotGoOn, SiloLost
from orchestrator.core.faults import fault
from orchestrator.core.messages import CohortInfo, Ping, Progress, Refused, Reply, SiloId, Train, Update
from orchestrator.core.protocols import Channel, Observer
from orchestrator.core.rounds import Rounds
from orchestrator.ending import Outcome, fail, finish
from orchestrator.errands import Errands
from orchestrator.fetching import Fetching
from orchestrator.gate import Expected, flaw
from orchestrator.job import Job
from orchestrator.opening import Opening
from orchestrator.pipeline import Combined, UpdateUnfit
from orchestrator.records import contributors, timed
from orchestrator.store import DiskFull, LeaseLost, Store, checkpoint_name
from orchestrator.weighing import cohort_of

MAX_SEEN = 1_000
"""Events of the channel that wait for the run to open."""

INLINE = 1 << 18
"""Elements of a packet that travel with the reply; larger ones are fetched while folding."""


class Driver:
    """Runs one job to its end, or goes on with it. One instance per attempt."""

    def __init__(
        self,
        job: Job,
        channel: Channel,
        store: Store,
        run_id: str,
        observe: Observer = lambda event: None,
        clock: Callable[[], float] = time.monotonic,
        owner: str = "driver",
    ) -> None:
        attempt = Attempt(job, channel, store, run_id, observe, clock, self._wake)
        self.attempt, self.job, self.channel, self.clock, self.owner = attempt, job, channel, clock, owner
        self.model, self.board, self.enrolment = attempt.model, attempt.board, attempt.enrolment
        self.rounds = Rounds(job.policy, job.sample)
        self.calls = attempt.calls = Calls(
            channel, job.rounds.patience_s, self._deliver, self._progressed, clock, self._ping
        )
        self._published: Any = None
        self._inbox: asyncio.Queue[tuple[Call, Reply | SiloLost] | None] = asyncio.Queue()
        self._ending: tuple[str, str] | None = None
        self._stop_asked = False
        self._seen: deque[events.Event] = deque(maxlen=MAX_SEEN)
        self._errands = Errands(attempt)
        self._bytes_down = self._broadcast_bytes = 0
        self._began_at = self._opened_at = self._arrived_at = clock()

    async def run(self) -> Outcome:
        """Until converged, out of rounds, stopped, or unable to go on. Raises `LeaseHeld` and the store's errors."""
        try:
            await Opening(self.attempt, self.owner, self._pause).begin()
            self._record_seen()
            if self._ending is None:
                self.rounds.version = self.model.version - 1
                await self._go_on()
            while self._ending is None:
                await self._turn()
            for silo in list(self.calls.by_silo):
                self._errands.cancel(silo)
            return await finish(self.attempt, *self._ending)
        except BadInput as error:
            return await fail(self.attempt, 2, str(error))
        except CannotGoOn as error:
            return await fail(self.attempt, 4, str(error))
        finally:
            self.calls.close()
            self.enrolment.close()
            await self.model.close()
            self.attempt.store.release()

    def request_stop(self, now: bool = False) -> None:
        """End after the round in hand; with ``now``, without it."""
        self._stop_asked = True
        if now:
            self._ending = "stopped", "stopped on request; the open round was abandoned"
        self._wake()

    def record(self, event: events.Event) -> None:
        """What the channel saw, in the event loop. It waits until the run is open."""
        self._seen.append(event)
        self._record_seen()

    def _record_seen(self) -> None:
        while self._seen:
            try:
                self.attempt.emit(self._seen[0])
            except LeaseLost:
                return
            except DiskFull:
                self.attempt.observe(self._seen[0])
            self._seen.popleft()

    async def _pause(self, timeout_s: float) -> bool:
        """Wait for something to happen; whether the run goes on."""
        self._record_seen()
        await self._next(timeout_s)
        return self._ending is None

    async def _go_on(self) -> None:
        """The next round, unless this was the last."""
        self._decide_end()
        if self._ending is None:
            await self._open()

    async def _open(self) -> None:
        """Open the next round and set its silos to work."""
        now = self._opened_at = self._arrived_at = self.clock()
        candidates = set(self.job.training) - self.enrolment.declined.keys()
        self.rounds.policy = self.attempt.policy()
        for silo in self.rounds.open(candidates, now):
            self._errands.cancel(silo)
        broadcast = self.job.strategy.broadcast(self.model.state)
        self._published = await self.channel.publish(broadcast)
        self._broadcast_bytes = sum(part.nbytes for part in broadcast.values())
        self._bytes_down = 0
        self.attempt.emit(events.RoundOpened(version=self.rounds.version, cohort=sorted(self.rounds.cohort)))
        fault("round.opened")
        self._launch()

    def _launch(self) -> None:
        for silo in self.rounds.vacancies(self.enrolment.online):
            self.rounds.launched(silo)
            self.calls.start(silo, self._train_request(silo))
            self._bytes_down += self._broadcast_bytes
            version, attempt = self.rounds.version, self.rounds.attempts[silo]
            self.attempt.emit(events.SiloLaunched(silo=silo, version=version, attempt=attempt))
            fault("silo.launched")

    def _train_request(self, silo: SiloId) -> Train:
        return Train(
            run_id=self.attempt.run_id,
            epoch=self.attempt.store.epoch,
            version=self.rounds.version,
            attempt=self.rounds.attempts[silo],
            model=self._published,
            model_digest=self.model.lineage,
            counted=self._counted(silo),
            num_steps=self.attempt.paces.steps(silo),
            inline=INLINE,
            keep=tuple(update.version for update in self.rounds.buffer if update.silo == silo),
        )

    def _counted(self, silo: SiloId) -> int:
        """Version of the silo's newest update that is in the model, or waits to be folded."""
        waiting = (update.version for update in self.rounds.buffer if update.silo == silo)
        return max(self.attempt.folded.get(silo, -1), *waiting, -1)

    async def _turn(self) -> None:
        """One thing that happens: an answer, a silo that joined, a deadline."""
        await self._next(self._pause_s())
        if self._ending is not None:
            return
        self._launch()
        self._call_in()
        if self.rounds.due(self.enrolment.online, self.clock()):
            self.attempt.go_on()
            await self._close()
        elif self.rounds.hopeless(self.enrolment.online):
            self._hope_or_give_up()
        else:
            self.attempt.go_on()

    def _call_in(self) -> None:
        """From the deadline on, silos at work hand in what they have done, if the job wants that."""
        if self.rounds.policy.hand_in_s is not None and self.clock() >= self.rounds.deadline:
            for silo, version in self.rounds.in_flight.items():
                self._errands.hand_in(silo, version)

    def _pause_s(self) -> float:
        longest = min(1.0, self.attempt.patience_s / 4) if self.attempt.waiting else 5.0
        now = self.clock()
        return min(longest, self.rounds.next_moment(now) - now)

    async def _next(self, timeout_s: float) -> None:
        """Take what has arrived, or return after ``timeout_s`` seconds."""
        try:
            arrival = await asyncio.wait_for(self._inbox.get(), timeout_s)
        except TimeoutError:
            return
        while True:
            if arrival is not None:
                self._receive(*arrival)
            if self._inbox.empty():
                return
            arrival = self._inbox.get_nowait()

    def _receive(self, call: Call, reply: Reply | SiloLost) -> None:
        if not self.calls.current(call):
            if isinstance(reply, Update):
                self.attempt.refuse(
                    call.silo, call.request.version, "late", "answered after it had been given up"
                )
            return
        self.calls.done(call)
        match reply:
            case SiloLost():
                self._lost(call.silo, call.request.version, reply.why)
            case Update():
                self._arrived(call, reply)
            case Refused(code="cancelled"):
                self.rounds.lost(call.silo)
            case Refused(code="job" | "busy"):
                self._lost(call.silo, call.request.version, reply.reason)
            case Refused(code="fenced") if self.attempt.store.replaced():
                raise CannotGoOn(f"{call.silo}: {reply.reason}")
            case Refused():
                self.attempt.refuse(call.silo, call.request.version, reply.code, reply.reason)
                self.enrolment.refused(call.silo, reply)
                self.rounds.declined(call.silo)
            case _:
                self.attempt.refuse(
                    call.silo, call.request.version, "unknown", f"answered with {type(reply).__name__}"
                )
                self.rounds.declined(call.silo)

    def _lost(self, silo: SiloId, version: int, why: str) -> None:
        self.attempt.lost(silo, version, why)
        self.rounds.lost(silo)

    def _unfit(self, silo: SiloId, version: int, code: str, reason: str) -> None:
        """The gate refuses this update."""
        self.attempt.refuse(silo, version, code, reason)
        self.enrolment.absent(silo, f"{code}: {reason}")
        self.rounds.refuse(silo, version)

    def _arrived(self, call: Call, update: Update) -> None:
        found = flaw(self.job, update, self._expected(call))
        if found is not None:
            self._unfit(call.silo, call.request.version, *found)
            return
        staleness = self.rounds.version - update.version
        now = self.clock()
        if not self.rounds.arrived(timed(update, now - call.began_at), now):
            self.attempt.refuse(update.silo, update.version, "stale", f"arrived {staleness} versions late")
            return
        self._arrived_at = now
        self.attempt.emit(events.UpdateArrived(silo=update.silo, version=update.version, staleness=staleness))
        fault("update.arrived")

    def _expected(self, call: Call) -> Expected:
        joined = self.enrolment.joined.get(call.silo)
        assert isinstance(call.request, Train)
        return Expected(
            silo=call.silo,
            run_id=self.attempt.run_id,
            epoch=self.attempt.store.epoch,
            version=call.request.version,
            model_digest=call.request.model_digest,
            layout=self.model.layout,
            num_examples=joined.num_examples.get("train") if joined else None,
        )

    # closing

    async def _close(self) -> None:
        """Fold, step, start the next round, and make the version durable meanwhile."""
        fault("round.closing")
        folded = await self._fold()
        if folded is None:
            self._wake()
            return
        updates, cohort, combined = folded
        fault("round.folded")
        for update in updates:
            self.board.report(update.silo, update.version, update.metrics)
        figures = self.board.figures(self.rounds.version)
        stepping = self.clock()
        norm = await self.model.advance(combined, updates, cohort)
        self.attempt.space_found()
        now = self.clock()
        closed = events.RoundClosed(
            version=self.model.version,
            contributors=contributors(updates, combined, self.rounds.version, self._broadcast_bytes),
            evaluated=figures,
            seconds={
                "wait": self._arrived_at - self._opened_at,
                **combined.seconds,
                "step": now - stepping,
                "round": now - self._opened_at,
            },
            bytes_up=sum(update.packet_bytes for update in updates),
            bytes_down=self._bytes_down,
            update_norm=norm,
            checkpoint=checkpoint_name(self.model.version),
            best=self.attempt.pin_best() == self.rounds.version,
            lineage=self.model.lineage,
        )
        self.attempt.count(closed)
        await self._go_on()
        self.model.commit(closed, lambda: self.attempt.tell(closed), self.attempt.disk_full)
        fault("round.closed")

    async def _fold(self) -> tuple[list[Update], CohortInfo, Combined] | None:
        """Fold what the round holds. Updates that turn out unfit or lost are left out; None if what remains is
        not enough, and the round stays open."""
        while True:
            updates = self.rounds.close()
            try:
                self._check_metrics(updates)
                fetch = Fetching(self.attempt, self._fetch_s())
                cohort = cohort_of(self.attempt.balance, updates, self.rounds.version + 1, self.rounds.policy)
                return updates, cohort, await self.model.fold(updates, cohort, fetch)
            except UpdateUnfit as unfit:
                self.rounds.give_back([each for each in updates if each is not unfit.update])
                self._unfit(unfit.update.silo, unfit.update.version, unfit.code, unfit.reason)
            except SiloLost as lost:
                self._give_back_without(lost, updates)
            if not self.rounds.due(self.enrolment.online, self.clock()):
                return None

    def _check_metrics(self, updates: Sequence[Update]) -> None:
        """Not at arrival: which of two updates is the odd one must not depend on which came first."""
        found = self.board.odd([update.metrics for update in updates])
        if found is not None:
            index, name = found
            raise UpdateUnfit(
                updates[index], "metrics", f"its sums of '{name}' do not add up with the others'"
            )

    def _give_back_without(self, lost: SiloLost, updates: list[Update]) -> None:
        self.rounds.give_back([each for each in updates if each.silo != lost.silo])
        for update in (each for each in updates if each.silo == lost.silo):
            self.rounds.perished(update)
            self._lost(update.silo, update.version, lost.why)

    def _fetch_s(self) -> float:
        """How long an update may take to come: to the round's deadline, and a patience where that is near or over."""
        if self.rounds.deadline == math.inf:
            return math.inf
        return max(self.rounds.deadline - self.clock(), self.attempt.patience_s)

    def _decide_end(self) -> None:
        spent, limit = self.clock() - self._began_at, self.job.stop.wall_time_s
        if self._ending is not None:
            return
        if self._stop_asked:
            self._ending = "stopped", f"stopped on request after version {self.model.version}"
        elif self.model.version >= self.job.rounds.total:
            self._ending = "done", f"all {self.job.rounds.total} rounds are closed"
        elif (reason := self.board.reason_to_stop()) is not None:
            self._ending = "done", reason
        elif limit is not None and spent >= limit:
            self._ending = "done", f"stop.wall_time_s: {spent:.0f} s are spent"

    # waiting

    def _hope_or_give_up(self) -> None:
        """The round cannot close with the silos at hand: wait for those that may come back, or say who is missing."""
        version, awaited = self.rounds.version, set(self.rounds.awaited())
        if awaited & self.enrolment.pending:
            self.attempt.wait(version, awaited, "the round needs their updates")
            return
        what, lacking = f"version {version} cannot be trained on: ", self.rounds.num_lacking()
        if lacking:
            fewest = self.rounds.policy.min_silos
            what += (
                f"{lacking} of the {fewest} silos that an average needs are lacking (rounds.min_updates); "
            )
            awaited |= self.enrolment.declined.keys()
        raise self.attempt.cannot_without(awaited, what)

    # words to others

    def _deliver(self, call: Call, reply: Reply | SiloLost) -> None:
        self._inbox.put_nowait((call, reply))

    def _wake(self) -> None:
        self._inbox.put_nowait(None)

    def _ping(self) -> Ping:
        return Ping(run_id=self.attempt.run_id, epoch=self.attempt.store.epoch)

    def _progressed(self, progress: Progress) -> None:
        self.attempt.observe(
            events.SiloProgress(
                silo=progress.silo,
                version=progress.version,
                phase=progress.phase,
                num_steps=progress.num_steps,
                total_steps=progress.total_steps,
            )
        )

"""The driver: one event loop that launches, receives and closes. It knows neither Ray nor MLflow.

Commit, then acknowledge, then tell the world: a version is told of once it is durable. Training on it starts
before that, for a version that is made again is made of the same updates; but no round closes before the one
before it is durable.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from orchestrator.attempt import Attempt
from orchestrator.calls import Call, Calls
from orchestrator.core import events
from orchestrator.core.errors import BadInput, CannotGoOn, SiloLost
from orchestrator.core.faults import fault
from orchestrator.core.messages import Ping, Progress, Reply
from orchestrator.core.protocols import Channel, Observer
from orchestrator.ending import Outcome, fail, finish
from orchestrator.errands import Errands
from orchestrator.folding import Folded, Folding
from orchestrator.job import Job
from orchestrator.launching import Launching
from orchestrator.opening import Opening
from orchestrator.published import PublishedModels
from orchestrator.receiving import receive
from orchestrator.records import contributors
from orchestrator.sealed import SealedSums
from orchestrator.store import DiskFull, LeaseLost, Store, checkpoint_name

MAX_SEEN = 1_000
"""Events of the channel that wait for the run to open."""


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
        self.rounds = attempt.rounds
        self.calls = attempt.calls = Calls(
            channel, job.rounds.patience_s, self._deliver, self._progressed, clock, self._ping
        )
        self._inbox: asyncio.Queue[tuple[Call, Reply | SiloLost] | None] = asyncio.Queue()
        self._ending: tuple[str, str] | None = None
        self._stop_asked = False
        self._seen: deque[events.Event] = deque(maxlen=MAX_SEEN)
        models = PublishedModels()
        self._sums = SealedSums(attempt, job.sums) if job.sums is not None else None
        self._errands, self._launching = Errands(attempt), Launching(attempt, models)
        self._folding = Folding(attempt, models, self._sums)
        self._began_at = clock()

    async def run(self) -> Outcome:
        """Until converged, out of rounds, stopped, or unable to go on. Raises `LeaseHeld` and the store's errors."""
        try:
            await Opening(self.attempt, self.owner, self._pause).begin()
            if self._sums is not None:
                self._sums.combine.ready()
            self._record_seen()
            if self._ending is None:
                self.rounds.version = self.model.version - 1
                await self._go_on()
            while self._ending is None:
                await self._turn()
            for silo in list(self.calls.by_silo):
                self._errands.cancel(silo)
            return await finish(self.attempt, *self._ending, self._sums)
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
        now = self.clock()
        candidates = set(self.job.training) - self.enrolment.declined.keys()
        self.rounds.policy = self.attempt.policy()
        for silo in self.rounds.open(candidates, now):
            self._errands.cancel(silo)
        await self._launching.publish()
        self.attempt.emit(events.RoundOpened(version=self.rounds.version, cohort=sorted(self.rounds.cohort)))
        fault("round.opened")
        self._launching.launch()

    async def _turn(self) -> None:
        """One thing that happens: an answer, a silo that joined, a deadline."""
        await self._next(self._pause_s())
        if self._ending is not None:
            return
        self._launching.launch()
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
        if self.enrolment.error is not None:
            raise self.enrolment.error
        try:
            arrival = await asyncio.wait_for(self._inbox.get(), timeout_s)
        except TimeoutError:
            return
        while True:
            if arrival is not None:
                receive(self.attempt, *arrival)
            if self._inbox.empty():
                return
            arrival = self._inbox.get_nowait()

    # closing

    async def _close(self) -> None:
        """Fold, step, start the next round, and make the version durable meanwhile."""
        fault("round.closing")
        folded = await self._folding.fold()
        if folded is None:
            self._wake()
            return
        fault("round.folded")
        closed = await self._step(folded)
        self.attempt.count(closed)
        self.attempt.privacy.take(closed)
        if self.job.noise is not None:
            self._commit(closed)
            await self.model.committed()  # noise drawn again must not meet what was sent with the first draw
            await self._go_on()
        else:
            await self._go_on()
            self._commit(closed)
        fault("round.closed")

    async def _step(self, folded: Folded) -> events.RoundClosed:
        """Make the next version of the model; the record of what it is made of."""
        updates, combined, sent_bytes = folded.updates, folded.combined, self._launching.broadcast_bytes
        for update in updates:
            self.board.report(update.silo, update.version, update.metrics)
        self.board.report_together(self.rounds.version, combined.together)
        figures = self.board.figures(self.rounds.version)
        stepping = self.clock()
        before = self.model.settings
        norm = await self.model.advance(combined, updates, folded.cohort)
        self.attempt.space_found()
        now = self.clock()
        spent = self.attempt.privacy.figures(updates, combined.weights, before)
        return events.RoundClosed(
            version=self.model.version,
            contributors=contributors(updates, combined, self.rounds.version, sent_bytes, spent),
            evaluated=figures,
            seconds={
                "wait": self.rounds.arrived_at - self.rounds.opened_at,
                **combined.seconds,
                "step": now - stepping,
                "round": now - self.rounds.opened_at,
            },
            bytes_up=sum(update.packet_bytes for update in updates),
            bytes_down=self._launching.bytes_down,
            update_norm=norm,
            checkpoint=checkpoint_name(self.model.version),
            best=self.attempt.pin_best() == self.rounds.version,
            lineage=self.model.lineage,
            settings=self.model.settings,
            sealed=combined.sealed,
        )

    def _commit(self, closed: events.RoundClosed) -> None:
        self.model.commit(closed, lambda: self.attempt.tell(closed), self.attempt.disk_full)

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
        elif (over := self.attempt.privacy.over()) is not None:
            self._ending = "done", over
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

"""The driver: one event loop that launches, receives and closes. It knows neither Ray nor MLflow.

Commit, then acknowledge, then tell the world: a version is told of once it is durable. Training on it starts
before that, for a version that is made again is made of the same updates; but no round closes before the one
before it is durable.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from orchestrator.calls import Call, Calls
from orchestrator.core import events
from orchestrator.core.errors import BadInput, CannotGoOn, SiloLost
from orchestrator.core.events import EVENT, Event
from orchestrator.core.faults import fault
from orchestrator.core.messages import (
    Evaluate,
    Evaluated,
    Fetch,
    Initial,
    Joined,
    Leave,
    Piece,
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
from orchestrator.core.metrics import MetricSums
from orchestrator.core.protocols import Channel, Observer
from orchestrator.core.rounds import Rounds
from orchestrator.core.vector import Packet, Parts
from orchestrator.core.versions import versions
from orchestrator.enrolment import Enrolment, check_schema
from orchestrator.gate import Expected, flaw, initial_flaw, unsound
from orchestrator.global_model import GlobalModel
from orchestrator.job import Job
from orchestrator.pipeline import Combined, UpdateUnfit
from orchestrator.records import contributors
from orchestrator.scoreboard import Scoreboard
from orchestrator.store import Recovered, Store, checkpoint_name

INLINE = 1 << 18
"""Elements of a packet that travel with the reply; larger ones are fetched while folding."""

GIVE_UP = 10
"""A run that waits for silos gives up after so many times the patience; the same command goes on with it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    status: str
    """``done``, ``stopped`` or ``failed``."""
    exit_code: int
    reason: str


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
        self.job, self.channel, self.store, self.run_id = job, channel, store, run_id
        self.observe, self.clock, self.owner = observe, clock, owner
        self.patience_s = job.rounds.patience_s
        self.rounds = Rounds(job.policy, job.sample)
        self.model = GlobalModel(job, run_id, store)
        self.board = Scoreboard(job.stop, job.silos, job.policy.max_staleness)
        self.enrolment = Enrolment(job, channel, self._emit, lambda silo: self._wake())
        self.calls = Calls(channel, self.patience_s, self._deliver, self._progressed, clock, self._ping)
        self._published: Any = None
        self._inbox: asyncio.Queue[tuple[Call, Reply | SiloLost] | None] = asyncio.Queue()
        self._ending: tuple[str, str] | None = None
        self._stop_asked = False
        self._waiting_since: float | None = None
        self._full_since: float | None = None
        self._folded: dict[SiloId, int] = {}
        """Silo -> version of its newest update that is in the model."""
        self._errands: set[asyncio.Task[None]] = set()
        self._bytes_down = self._broadcast_bytes = 0
        self._began_at = self._opened_at = self._arrived_at = clock()

    async def run(self) -> Outcome:
        """Until converged, out of rounds, stopped, or unable to go on. Raises `LeaseHeld` and the store's errors."""
        try:
            await self._start()
            while self._ending is None:
                await self._turn()
            return await self._finish(*self._ending)
        except BadInput as error:
            return await self._failed(2, str(error))
        except CannotGoOn as error:
            return await self._failed(4, str(error))
        finally:
            self.calls.close()
            self.enrolment.close()
            await self.model.close()
            self.store.release()

    def request_stop(self, now: bool = False) -> None:
        """End after the round in hand; with ``now``, without it."""
        self._stop_asked = True
        if now:
            self._ending = "stopped", "stopped on request; the open round was abandoned"
        self._wake()

    # start

    async def _start(self) -> None:
        epoch = self.store.acquire(self.owner)
        found = self.store.recover({"job_digest": self.job.digest, "run_id": self.run_id})
        if found is not None:
            self.model.restore(found.version, found.state, found.meta["lineage"])
        self._replay([EVENT.validate_python(event) for _, event in self.store.events()])
        self._emit(self._run_opened(epoch, found))
        self.enrolment.run_id, self.enrolment.epoch = self.run_id, epoch
        for silo in self.job.silos:
            self.enrolment.seek(silo)
        await self._assemble()
        if self._ending is not None:
            return
        if found is None:
            await self._begin()
        self.rounds.version = self.model.version - 1
        self._decide_end()
        if self._ending is None:
            await self._open()

    def _replay(self, history: Sequence[Event]) -> None:
        self.board.replay(history)
        closed: dict[int, events.RoundClosed] = {}
        for event in history:
            match event:
                case events.SiloJoined():
                    self.enrolment.fingerprints.setdefault(event.silo, event.fingerprint)
                case events.ModelReady():
                    self.enrolment.schema_digest = event.schema_digest
                case events.RoundClosed():
                    closed[event.version] = event
                case events.Rewound():
                    closed = {version: each for version, each in closed.items() if version <= event.version}
        for version in sorted(closed):
            self._folded |= {each.silo: each.base_version for each in closed[version].contributors}
        self._pin_best()

    def _run_opened(self, epoch: int, found: Recovered | None) -> Event:
        return events.RunOpened(
            run_id=self.run_id,
            name=self.job.name,
            job=self.job.model_dump(mode="json"),
            job_digest=self.job.digest,
            epoch=epoch,
            versions=versions(),
            resumed_from=found.version if found else None,
            skipped=[f"{name}: {why}" for name, why in found.skipped] if found else [],
        )

    async def _assemble(self) -> None:
        """Wait for the silos, so that the first deadline does not measure their imports."""
        began = self.clock()
        while self.enrolment.pending and self._ending is None:
            late = self.clock() - began > self.patience_s
            if late and self._enough():
                break
            if late:
                self._wait_or_give_up(self.enrolment.pending, "they have not joined")
            await self._next(min(1.0, self.patience_s / 4))
        self._waiting_since = None
        if not self._enough() and self._ending is None:
            self._refuse_to_begin()
        check_schema(self.enrolment.joined)

    def _enough(self) -> bool:
        online, policy = self.enrolment.online, self.job.policy
        return policy.required <= online and len(online) >= policy.min_updates

    def _refuse_to_begin(self) -> None:
        why = self._whys(set(self.job.silos) - self.enrolment.online)
        if any(refusal.code == "data" for refusal in self.enrolment.declined.values()):
            raise BadInput(why)
        raise CannotGoOn(why)

    async def _begin(self) -> None:
        """Version 0: every silo makes it from the job's seed, so the first one is asked."""
        joined, parts = await self._initial()
        self.model.begin(parts, joined.schema_digest)
        self.enrolment.schema_digest = joined.schema_digest
        event = events.ModelReady(
            version=0,
            num_shared=joined.num_shared,
            schema_digest=joined.schema_digest,
            model=joined.model,
            checkpoint=checkpoint_name(0),
        )
        self.model.commit(event, lambda: self.observe(event), self._disk_full)

    async def _initial(self) -> tuple[Joined, Parts]:
        """Who sent the initial parameters, and these; a silo that does not answer is left for the next."""
        for _ in range(self.job.rounds.max_attempts):
            for joined in [self.enrolment.joined[silo] for silo in sorted(self.enrolment.online)]:
                try:
                    return joined, await self._ask_initial(joined)
                except SiloLost as lost:
                    self._lost(joined.silo, 0, lost.why)
            await self._assemble()
        raise CannotGoOn(f"no initial model came: {self._whys(set(self.job.silos))}")

    async def _ask_initial(self, joined: Joined) -> Parts:
        request = Initial(run_id=self.run_id, epoch=self.store.epoch)
        reply = await self._ask(joined.silo, request)
        parts = cast(Parts, reply.packet) if isinstance(reply, Piece) else {}
        wrong = initial_flaw(parts, joined.num_shared) if isinstance(reply, Piece) else str(reply)
        if wrong is not None:
            raise SiloLost(joined.silo, f"no initial model: {wrong}")
        return parts

    async def _ask(self, silo: SiloId, request: Request) -> Reply:
        """Ask for something that takes no time worth watching; a silo that stays silent is restarted."""
        try:
            return await asyncio.wait_for(self.channel.call(silo, request), self.patience_s)
        except TimeoutError:
            await self.channel.restart(silo)
            why = f"did not answer {type(request).__name__} within {self.patience_s:g} s"
            raise SiloLost(silo, why) from None

    # the loop

    async def _open(self) -> None:
        """Open the next round and set its silos to work."""
        now = self._opened_at = self._arrived_at = self.clock()
        candidates = set(self.job.silos) - self.enrolment.declined.keys()
        for silo in self.rounds.open(candidates, now):
            self._cancel(silo)
        broadcast = self.job.strategy.broadcast(self.model.state)
        self._published = await self.channel.publish(broadcast)
        self._broadcast_bytes = sum(part.nbytes for part in broadcast.values())
        self._bytes_down = 0
        self._emit(events.RoundOpened(version=self.rounds.version, cohort=sorted(self.rounds.cohort)))
        fault("round.opened")
        self._launch()

    def _launch(self) -> None:
        for silo in self.rounds.vacancies(self.enrolment.online):
            self.rounds.launched(silo)
            self.calls.start(silo, self._train_request(silo))
            self._bytes_down += self._broadcast_bytes
            version, attempt = self.rounds.version, self.rounds.attempts[silo]
            self._emit(events.SiloLaunched(silo=silo, version=version, attempt=attempt))
            fault("silo.launched")

    def _train_request(self, silo: SiloId) -> Train:
        return Train(
            run_id=self.run_id,
            epoch=self.store.epoch,
            version=self.rounds.version,
            attempt=self.rounds.attempts[silo],
            model=self._published,
            model_digest=self.model.lineage,
            counted=self._counted(silo),
            inline=INLINE,
            keep=tuple(update.version for update in self.rounds.buffer if update.silo == silo),
        )

    def _counted(self, silo: SiloId) -> int:
        """Version of the silo's newest update that is in the model, or waits to be folded."""
        waiting = (update.version for update in self.rounds.buffer if update.silo == silo)
        return max(self._folded.get(silo, -1), *waiting, -1)

    async def _turn(self) -> None:
        """One thing that happens: an answer, a silo that joined, a deadline."""
        await self._next(self._pause_s())
        if self._ending is not None:
            return
        self._launch()
        if self.rounds.due(self.enrolment.online, self.clock()):
            self._waiting_since = None
            await self._close()
        elif self.rounds.hopeless(self.enrolment.online):
            self._hope_or_give_up()
        else:
            self._waiting_since = None

    def _pause_s(self) -> float:
        longest = min(1.0, self.patience_s / 4) if self._waiting_since is not None else 5.0
        left = self.rounds.deadline - self.clock()
        return min(longest, left) if left > 0 else longest

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
                self._refuse(call.silo, call.request.version, "late", "answered after it had been given up")
            return
        self.calls.done(call)
        match reply:
            case SiloLost():
                self._lost(call.silo, call.request.version, reply.why)
            case Update():
                self._arrived(call, reply)
            case Refused(code="cancelled"):
                self.rounds.lost(call.silo)
            case Refused(code="job"):
                self._lost(call.silo, call.request.version, reply.reason)
            case Refused(code="fenced"):
                raise CannotGoOn(f"{call.silo}: {reply.reason}")
            case Refused():
                self._refuse(call.silo, call.request.version, reply.code, reply.reason)
                self.enrolment.why_absent[call.silo] = f"{reply.code}: {reply.reason}"
                self.rounds.declined(call.silo)
            case _:
                self._refuse(
                    call.silo, call.request.version, "unknown", f"answered with {type(reply).__name__}"
                )
                self.rounds.declined(call.silo)

    def _lost(self, silo: SiloId, version: int, why: str) -> None:
        self._emit(events.SiloDown(silo=silo, version=version, why=why))
        self.rounds.lost(silo)
        self.enrolment.seek(silo, why)

    def _arrived(self, call: Call, update: Update) -> None:
        found = flaw(self.job, update, self._expected(call))
        if found is not None:
            self._refuse(call.silo, call.request.version, *found)
            self.rounds.refuse(call.silo, call.request.version)
            return
        staleness = self.rounds.version - update.version
        if not self.rounds.arrived(update):
            self._refuse(update.silo, update.version, "stale", f"arrived {staleness} versions late")
            return
        self._arrived_at = self.clock()
        self._emit(events.UpdateArrived(silo=update.silo, version=update.version, staleness=staleness))
        fault("update.arrived")

    def _expected(self, call: Call) -> Expected:
        joined = self.enrolment.joined.get(call.silo)
        assert isinstance(call.request, Train)
        return Expected(
            silo=call.silo,
            run_id=self.run_id,
            epoch=self.store.epoch,
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
        updates, combined = folded
        fault("round.folded")
        for update in updates:
            self.board.report(update.silo, update.version, update.metrics)
        figures = self.board.figures(self.rounds.version)
        stepping = self.clock()
        norm = await self.model.advance(combined, updates)
        self._full_since = None
        now = self.clock()
        self._folded |= {update.silo: update.version for update in updates}
        closed = events.RoundClosed(
            version=self.model.version,
            contributors=contributors(
                updates,
                self._discounts(updates),
                combined.norms,
                self.rounds.version,
                self._broadcast_bytes,
            ),
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
            best=self._pin_best() == self.rounds.version,
            lineage=self.model.lineage,
        )
        self._decide_end()
        if self._ending is None:
            await self._open()
        self.model.commit(closed, lambda: self.observe(closed), self._disk_full)
        fault("round.closed")

    async def _fold(self) -> tuple[list[Update], Combined] | None:
        """Fold what the round holds. Updates that turn out unfit or lost are left out; None if what remains is
        not enough, and the round stays open."""
        while True:
            updates = self.rounds.close()
            try:
                self._check_metrics(updates)
                return updates, await self.model.fold(updates, self._discounts(updates), self._fetch)
            except UpdateUnfit as unfit:
                self.rounds.give_back([each for each in updates if each is not unfit.update])
                self._refuse(unfit.update.silo, unfit.update.version, unfit.code, unfit.reason)
                self.rounds.refuse(unfit.update.silo, unfit.update.version)
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

    def _discounts(self, updates: Sequence[Update]) -> list[float]:
        return [self.rounds.policy.discount(self.rounds.version - update.version) for update in updates]

    async def _fetch(self, update: Update, start: int, stop: int) -> Packet:
        if update.packet is not None:
            return {name: array[start:stop] for name, array in update.packet.items()}
        request = Fetch(
            run_id=self.run_id, epoch=self.store.epoch, version=update.version, start=start, stop=stop
        )
        reply = await self._ask(update.silo, request)
        if not isinstance(reply, Piece):
            raise SiloLost(update.silo, f"has no update to fetch: {reply}")
        return reply.packet

    def _pin_best(self) -> int | None:
        """Checkpoints that stay: the best version's, and those that tracking logs as models."""
        logged = set(range(0, self.model.version + 1, self.job.tracking.every))
        best = self.board.best
        self.store.pins = logged | ({best[0]} if best else set())
        return best[0] if best else None

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

    async def _finish(self, status: str, reason: str) -> Outcome:
        await self.model.committed()
        for silo in list(self.calls.by_silo):
            self._cancel(silo)
        if status == "done":
            await self._evaluate_last()
        digest = await asyncio.to_thread(self.model.parameters_digest)
        self._emit(self._run_closed(status, reason, digest))
        await self._dismiss(finished=status == "done")
        return Outcome(status, 0 if status == "done" else 3, reason)

    async def _evaluate_last(self) -> None:
        """Figures of the last version, which no round trains from."""
        version = self.model.version
        self._published = await self.channel.publish(self.job.strategy.broadcast(self.model.state))
        silos = sorted(self.enrolment.online)
        replies = await asyncio.gather(*(self._evaluate(silo) for silo in silos))
        reports = {silo: sums for silo, sums in zip(silos, replies, strict=True) if sums is not None}
        while (found := self.board.odd(list(reports.values()))) is not None:
            silo = list(reports)[found[0]]
            del reports[silo]
            self._refuse(silo, version, "metrics", f"its sums of '{found[1]}' do not add up with the others'")
        for silo, sums in reports.items():
            self.board.report(silo, version, sums)
        figures = self.board.figures(version)
        best = self._pin_best() == version
        self._emit(events.VersionEvaluated(evaluated=figures, best=best))

    async def _dismiss(self, finished: bool) -> None:
        """Free the silos for other runs; one that does not hear it frees itself after a while."""
        leave = Leave(run_id=self.run_id, epoch=self.store.epoch, finished=finished)
        calls = [self.channel.call(silo, leave) for silo in sorted(self.enrolment.online)]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), min(5.0, self.patience_s))

    async def _evaluate(self, silo: SiloId) -> MetricSums | None:
        request = Evaluate(
            run_id=self.run_id,
            epoch=self.store.epoch,
            version=self.model.version,
            model=self._published,
            counted=self._counted(silo),
        )
        try:
            reply = await self.calls.ask(silo, request)
        except SiloLost as lost:
            self._emit(
                events.SiloDown(silo=silo, version=self.model.version, why=f"not evaluated: {lost.why}")
            )
            return None
        if not isinstance(reply, Evaluated) or unsound(reply.metrics) is not None:
            self._refuse(silo, self.model.version, "metrics", f"sent no figures: {reply}")
            return None
        return reply.metrics

    def _run_closed(self, status: str, reason: str, digest: str) -> Event:
        best = self.board.best
        return events.RunClosed(
            status=status,
            reason=reason,
            version=self.model.version,
            parameters_digest=digest,
            best_version=best[0] if best else None,
            best_metric=self.job.stop.metric if best else None,
            best_value=best[1] if best else None,
            never_contributed=sorted(set(self.job.silos) - self._folded.keys()),
        )

    async def _failed(self, exit_code: int, reason: str) -> Outcome:
        await self.model.close()
        self._emit(self._run_closed("failed", reason, self.model.parameters_digest()))
        return Outcome("failed", exit_code, reason)

    # waiting

    def _hope_or_give_up(self) -> None:
        """The round cannot close with the silos at hand: wait for those that may come back, or say who is missing."""
        awaited = set(self.rounds.awaited())
        if awaited & self.enrolment.pending:
            self._wait_or_give_up(awaited, "the round needs their updates")
        else:
            raise CannotGoOn(f"version {self.rounds.version} cannot be trained on: {self._whys(awaited)}")

    def _wait_or_give_up(self, silos: set[SiloId], why: str) -> None:
        now, limit = self.clock(), GIVE_UP * self.patience_s
        if self._waiting_since is None:
            self._waiting_since = now
            version = self.rounds.version
            self._emit(events.Waiting(version=version, silos=sorted(silos), why=why, until_s=limit))
        if now - self._waiting_since > limit:
            raise CannotGoOn(f"waited {limit:.0f} s in vain: {self._whys(silos)}")

    def _whys(self, silos: set[SiloId]) -> str:
        absent = self.enrolment.why_absent
        return "; ".join(f"{silo}: {absent.get(silo, 'did not deliver')}" for silo in sorted(silos))

    async def _disk_full(self, why: str) -> None:
        """The commit waits for space; training goes on until the next round wants to close."""
        limit = GIVE_UP * self.patience_s
        if self._full_since is None:
            self._full_since = self.clock()
            self.observe(events.Waiting(version=self.model.version, silos=[], why=why, until_s=limit))
        if self.clock() - self._full_since > limit:
            raise CannotGoOn(why)
        await asyncio.sleep(min(5.0, self.patience_s / 4))

    # words to others

    def _cancel(self, silo: SiloId) -> None:
        """Its work can no longer be used; it is busy until it answers."""
        task = asyncio.create_task(self._send_stop(silo))
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    async def _send_stop(self, silo: SiloId) -> None:
        with contextlib.suppress(SiloLost):
            await self.channel.call(silo, Stop(run_id=self.run_id, epoch=self.store.epoch))

    def _refuse(self, silo: SiloId, version: int, code: str, reason: str) -> None:
        self._emit(events.UpdateRefused(silo=silo, version=version, code=code, reason=reason))

    def _emit(self, event: Event) -> None:
        if event.durable:
            self.store.append(event.model_dump(mode="json"), durable=isinstance(event, events.RunClosed))
        self.observe(event)

    def _deliver(self, call: Call, reply: Reply | SiloLost) -> None:
        self._inbox.put_nowait((call, reply))

    def _wake(self) -> None:
        self._inbox.put_nowait(None)

    def _ping(self) -> Ping:
        return Ping(run_id=self.run_id, epoch=self.store.epoch)

    def _progressed(self, progress: Progress) -> None:
        self.observe(
            events.SiloProgress(
                silo=progress.silo,
                version=progress.version,
                phase=progress.phase,
                num_steps=progress.num_steps,
                total_steps=progress.total_steps,
            )
        )

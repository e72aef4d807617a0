"""The first phase of an attempt: what the journal knows, who takes part, and version 0."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

from orchestrator import starting
from orchestrator.attempt import GIVE_UP, Attempt
from orchestrator.core import events
from orchestrator.core.errors import BadInput, CannotGoOn, SiloLost
from orchestrator.core.events import EVENT, Event
from orchestrator.core.messages import Initial, Joined, Piece
from orchestrator.core.symmetry import Symmetry, read
from orchestrator.core.vector import Parts
from orchestrator.core.versions import versions
from orchestrator.gate import initial_flaw
from orchestrator.privacy.sealing import FEWEST
from orchestrator.store import Recovered, checkpoint_name


class Opening:
    """Brings a run to the version that it starts from."""

    def __init__(self, attempt: Attempt, owner: str, pause: Callable[[float], Awaitable[bool]]) -> None:
        """``pause`` waits at most so many seconds for something to happen; False: the run has to end."""
        self.attempt, self.owner, self.pause = attempt, owner, pause
        self.job, self.store, self.enrolment = attempt.job, attempt.store, attempt.enrolment

    async def begin(self) -> None:
        """Take the lease, recover or make the model, wait for the silos. Raises `LeaseHeld`, `BadInput`,
        `CannotGoOn`; returns early when ``pause`` says so."""
        epoch = self.store.acquire(self.owner)
        found = self.store.recover({"job_digest": self.job.digest, "run_id": self.attempt.run_id})
        if found is not None:
            self.attempt.model.restore(found.version, found.state, found.meta["lineage"])
        if self.job.start_from is not None:
            self.enrolment.start = starting.load(self.store.root, self.store.key)
        untold = self._replay([EVENT.validate_python(event) for _, event in self.store.events()])
        self.attempt.emit(self._run_opened(epoch, found))
        for alarm in untold:
            self.attempt.mention(alarm)
        self.enrolment.run_id, self.enrolment.epoch = self.attempt.run_id, epoch
        self.enrolment.planned = await asyncio.to_thread(self.attempt.privacy.planned)
        self.attempt.ledgers.told(self.job.silos[0])  # a record that cannot be read ends the run here
        for silo in self.job.silos:
            self.enrolment.seek(silo)
        if not await self._assemble():
            return
        self._check_metrics()
        if found is None:
            await self._make_model()

    def _replay(self, history: Sequence[Event]) -> list[events.DriftAlarm]:
        """Alarms that a driver did not live to record."""
        self.attempt.board.replay(history)
        closed: dict[int, events.RoundClosed] = {}
        told: set[tuple[str, int]] = set()
        for event in history:
            match event:
                case events.SiloJoined():
                    self.enrolment.fingerprints.setdefault(event.silo, event.fingerprint)
                case events.ModelReady():
                    self.enrolment.shared = event.schema_digest, event.num_shared
                    self._check_start(event.started_from)
                    self.attempt.model.symmetries = symmetries_of(event.model, self.attempt.model.state)
                case events.DriftAlarm():
                    told.add((event.silo, event.version))
                case events.ContributionsFound():
                    self.attempt.valued = event
                case events.SiloAssessed():
                    self.attempt.assessed[event.silo] = event
                case events.SiloAttacked():
                    self.attempt.attacked[event.silo] = event
                case events.ModeChosen():
                    self.attempt.told_mode = event.version <= self.attempt.model.version
                case events.RoundClosed():
                    self.attempt.privacy.take(event)
                    closed[event.version] = event
                case events.Rewound():
                    closed = {version: each for version, each in closed.items() if version <= event.version}
        alarms: list[events.DriftAlarm] = []
        for version in sorted(closed):
            self.attempt.count(closed[version])
            alarms += self.attempt.drift.observe(closed[version]) if self.job.report.drift else []
        self.attempt.pin_best()
        return [alarm for alarm in alarms if (alarm.silo, alarm.version) not in told]

    def _check_start(self, before: events.StartedFrom | None) -> None:
        start = self.enrolment.start
        if start is not None and (before is None or before.source != start.source):
            raise BadInput(f"{self.store.root / starting.START}: not the weights that the run began with")

    def _run_opened(self, epoch: int, found: Recovered | None) -> Event:
        return events.RunOpened(
            run_id=self.attempt.run_id,
            name=self.job.name,
            job=self.job.model_dump(mode="json"),
            job_digest=self.job.digest,
            epoch=epoch,
            versions=versions(),
            resumed_from=found.version if found else None,
            skipped=[f"{name}: {why}" for name, why in found.skipped] if found else [],
            driver_key=self.store.driver_key,
            store_key=self.store.key.id if self.store.key else "",
        )

    async def _assemble(self) -> bool:
        """Wait for the silos, so that the first deadline does not measure their imports. False: the run has to end."""
        began, patience_s = self.attempt.clock(), self.attempt.patience_s
        while self.enrolment.pending:
            late = self.attempt.clock() - began > patience_s
            if late and self._enough():
                break
            if late:
                self.attempt.wait(-1, self.enrolment.pending, "they have not joined")
            if not await self.pause(min(1.0, patience_s / 4)):
                return False
        self.attempt.go_on()
        self.enrolment.agree()
        if not self._enough():
            raise self.attempt.cannot_without(set(self.job.training) - self.enrolment.online)
        return True

    def _check_metrics(self) -> None:
        """Raises `BadInput` where the job is to stop by figures that no silo tells."""
        online, stop = self.enrolment.online & set(self.job.training), self.job.stop
        if stop.patience is None and stop.target is None:
            return
        kinds = Counter(self.enrolment.joined[silo].metrics for silo in online)
        sums = self.job.sums
        together = sums is not None and sums.protects and kinds["summed"] >= FEWEST
        if online and not (kinds["open"] or kinds["noised"] or together):
            what = "stop.patience" if stop.patience is not None else "stop.target"
            raise BadInput(
                f"{what}: the silos let no figure out by which the run could stop (policy.metrics in silo.yaml: "
                f"{', '.join(sorted(kinds))}; summed ones need a sealed sum in which {FEWEST} silos have them so); "
                f"leave it out, and all {self.job.rounds.total} rounds are run"
            )

    def _enough(self) -> bool:
        online, policy = self.enrolment.online, self.job.policy
        return policy.required <= online and len(online & set(self.job.training)) >= policy.min_updates

    async def _make_model(self) -> None:
        """Version 0: every silo makes it from the job's seed, so the first one is asked."""
        made = await self._initial()
        if made is None:
            return
        joined, parts = made
        started_from = self._started_from(joined)
        model = self.attempt.model
        model.begin(parts, joined.schema_digest)
        model.symmetries = symmetries_of(joined.model, parts)
        event = events.ModelReady(
            version=0,
            num_shared=joined.num_shared,
            schema_digest=joined.schema_digest,
            model=joined.model,
            checkpoint=checkpoint_name(0),
            started_from=started_from,
        )
        model.commit(event, lambda: self.attempt.observe(event), self.attempt.disk_full)

    def _started_from(self, joined: Joined) -> events.StartedFrom | None:
        """Raises `BadInput` where the job starts from weights of which none fits its model."""
        if self.enrolment.start is None or self.job.start_from is None:
            return None
        told = self.enrolment.start.told(joined.model.get("entries", ()))
        if not told.loaded:
            raise BadInput(
                f"start_from: {self.job.start_from.told} has no tensor of a name and shape of the job's model, such as "
                f"{', '.join(told.left[:3])}"
            )
        return told

    async def _initial(self) -> tuple[Joined, Parts] | None:
        """Who sent the initial parameters, and these; a silo that does not answer is left for the next. None: the
        run has to end."""
        for _ in range(self.job.rounds.max_attempts):
            for joined in [self.enrolment.joined[silo] for silo in sorted(self.enrolment.online)]:
                try:
                    return joined, await self._ask_initial(joined)
                except SiloLost as lost:
                    self.attempt.lost(joined.silo, 0, lost.why)
            if not await self._assemble():
                return None
        raise CannotGoOn(f"no initial model came: {self.attempt.whys(self.job.silos)}")

    async def _ask_initial(self, joined: Joined) -> Parts:
        request = Initial(run_id=self.attempt.run_id, epoch=self.store.epoch)
        reply = await self.attempt.ask(joined.silo, request, GIVE_UP * self.attempt.patience_s)
        parts = cast(Parts, reply.packet) if isinstance(reply, Piece) else {}
        wrong = initial_flaw(parts, joined.num_shared) if isinstance(reply, Piece) else str(reply)
        if wrong is not None:
            raise SiloLost(joined.silo, f"no initial model: {wrong}")
        try:
            symmetries_of(joined.model, parts)
        except ValueError as error:
            raise SiloLost(joined.silo, f"no symmetries of its model: {error}") from error
        return parts


def symmetries_of(model: Mapping[str, Any], parts: Parts) -> tuple[Symmetry, ...]:
    """What a silo says of them. Raises ValueError where it is nonsense."""
    sizes = (parts[name].size if name in parts else 0 for name in ("params", "buffers"))
    return read(model.get("symmetries", ()), *sizes)

"""A silo: one entry point, `Silo.handle`, whoever carries the requests.

Asked again for the version that it trained last, a silo returns the stored update without training. An update
stays here until the driver has fetched it; it lies in the trainer's own memory while that is free.
"""

import platform
import re
import threading
import uuid
from collections.abc import Iterable
from dataclasses import replace
from time import monotonic, perf_counter
from typing import Any

import numpy as np

from orchestrator.core.errors import BadInput
from orchestrator.core.faults import fault
from orchestrator.core.messages import (
    Evaluate,
    Evaluated,
    Fetch,
    Initial,
    Join,
    Joined,
    Leave,
    Piece,
    Ping,
    Progress,
    Refused,
    Reply,
    Request,
    Stop,
    Train,
    Update,
)
from orchestrator.core.vector import Layout, Packet, Vector
from orchestrator.core.versions import versions
from orchestrator.job import Job
from orchestrator.pipeline import outgoing
from silos.policy import received
from silos.site import Cancelled, Order, Site, Trained, Trainer
from silos.state import Kept, SiloState

KEPT_UPDATES = 2
"""Updates kept for a driver that asks again after a crash; the newest, and one that it may not have folded."""

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
"""A run's state lies in a folder of this name, so it must not lead anywhere else."""

BUSY_S = 60.0
"""A run that has not asked for anything for so long may be replaced by another."""


class Silo:
    """Holds one job at a time. `handle` may be called from several threads: `Fetch`, `Ping` and `Stop` are
    answered while another thread trains."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.incarnation = uuid.uuid4().hex[:12]
        self._job: Job | None = None
        self._joined: tuple[str, Joined] | None = None
        self._trainer: Trainer | None = None
        self._epoch: dict[str, int] = {}
        self._outbox: dict[int, tuple[Update, Packet]] = {}
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._progress = ("idle", -1, 0, 0)
        self._marks = 0
        self._asked_at = 0.0

    @property
    def name(self) -> str:
        return self.site.name

    def handle(self, request: Request) -> Reply:
        """Answer; a refusal is an ordinary reply. Only a defect of ours raises."""
        if not RUN_ID.fullmatch(request.run_id):
            return self._refused("unknown", "no run has such an id")
        reply = self._answer(request)
        if isinstance(reply, Refused) and isinstance(request, Join | Initial | Train | Evaluate):
            self.site.guard.refused(request.run_id, reply)
        return reply

    def _answer(self, request: Request) -> Reply:
        if request.epoch < self._epoch.get(request.run_id, 0):
            return self._refused("fenced", f"driver epoch {request.epoch} was replaced by a newer driver")
        self._epoch[request.run_id] = request.epoch
        try:
            return self._dispatch(request)
        except BadInput as error:
            return self._refused("data", self.site.guard.told(request.run_id, error))
        except Cancelled:
            return self._refused("cancelled", "the driver no longer wanted this work")

    def _dispatch(self, request: Request) -> Reply:
        match request:
            case Ping():
                self._asked_at = monotonic()
                return self._pong()
            case Stop():
                self._cancelled.set()
                return self._pong()
            case Join():
                return self._join(request)
            case Leave():
                return self._leave(request)
        if self._trainer is None or self._joined is None or self._joined[0] != request.run_id:
            return self._refused("job", "this process has not joined the run")
        self._asked_at = monotonic()
        match request:
            case Initial():
                return Piece(packet=dict(self._trainer.initial()))
            case Train():
                return self._closed(request, request.version + 1) or self._train(request, self._trainer)
            case Fetch():
                return self._fetch(request)
            case Evaluate():
                return self._closed(request, request.version) or self._evaluate(request, self._trainer)
        return self._refused("unknown", f"unknown request {type(request).__name__}")

    def _join(self, request: Join) -> Reply:
        if self._joined and self._joined[0] == request.run_id and self._job_digest == request.job_digest:
            return self._closed(request) or self._joined[1]
        if self._joined and self._joined[0] != request.run_id and monotonic() - self._asked_at < BUSY_S:
            return self._refused("busy", f"works for the run {self._joined[0]}")
        job = received(request.job)
        if job is None:
            return self._refused("job", "the job's text is no job here: other Siloray version?")
        if job.digest != request.job_digest:
            return self._refused("job", "the job's digest does not fit its text: other Siloray version?")
        reason = self.site.review(job)
        if reason is not None:
            return self._refused("policy", reason)
        closed = self._closed(request)
        if closed is not None:
            return closed
        self._mark("loading", -1, 0, 0)
        trainer = self.site.trainer(job)
        description = self._describe(job, trainer)
        self.site.guard.joined(request.run_id, job)
        self._job, self._trainer, self._outbox = job, trainer, {}
        self._joined = request.run_id, description
        self._asked_at = monotonic()
        self._mark("idle", -1, 0, 0)
        return self._joined[1]

    def _closed(self, request: Request, rounds: int = 0) -> Refused | None:
        closed = self.site.guard.closed(request.run_id, rounds)
        return None if closed is None else self._refused(*closed)

    def _leave(self, request: Leave) -> Reply:
        if self._joined and self._joined[0] == request.run_id:
            self._joined, self._trainer, self._job = None, None, None
            with self._lock:
                self._outbox = {}
        if request.finished:
            SiloState(self.site.state_folder(request.run_id)).forget()
        return self._pong()

    def _describe(self, job: Job, trainer: Trainer) -> Joined:
        return Joined(
            silo=self.name,
            incarnation=self.incarnation,
            schema_digest=trainer.schema_digest,
            num_parameters=trainer.num_parameters,
            num_shared=trainer.num_shared,
            num_examples=self.site.counts(trainer),
            fingerprint=self.site.fingerprint(job),
            device=trainer.device,
            node=platform.node(),
            model=trainer.describe(),
            versions=versions(),
        )

    @property
    def _job_digest(self) -> str:
        return self._job.digest if self._job else ""

    def _train(self, request: Train, trainer: Trainer) -> Reply:
        stored = self._outbox.get(request.version)
        if stored and stored[0].model_digest == request.model_digest:
            again = replace(stored[0], attempt=request.attempt, epoch=request.epoch)
            return self._reply(again, stored[1], request)
        assert self._job is not None
        self._cancelled.clear()
        self._make_room(request.keep)
        state = SiloState(self.site.state_folder(request.run_id))
        vectors = state.after(request.counted)
        trained = trainer.train(self._order(request, vectors))
        fault("silo.trained")
        began = perf_counter()
        kept = Kept(vectors, "codec", sum(part.size for part in trained.parts.values()))
        packet = outgoing(self._job, self.name, request.version, trained.parts, kept)
        state.save(request.version, vectors, request.counted)
        update = self._update(request, trained, packet, perf_counter() - began)
        reply = self._reply(update, packet, request)
        if isinstance(reply, Update):
            with self._lock:
                self._outbox[request.version] = (update, packet)
        self._mark("idle", request.version, 0, 0)
        fault("silo.replied")
        return reply

    def _update(self, request: Train, trained: Trained, packet: Packet, pack_s: float) -> Update:
        assert self._job is not None
        layout = Layout.of(trained.parts)
        return Update(
            silo=self.name,
            run_id=request.run_id,
            epoch=request.epoch,
            version=request.version,
            attempt=request.attempt,
            model_digest=request.model_digest,
            job_digest=self._job.digest,
            layout=tuple(zip(layout.names, layout.sizes, strict=True)),
            weight=self._job.combine.weight(self.name, trained.num_examples),
            num_examples=trained.num_examples,
            num_steps=trained.num_steps,
            scalars=trained.scalars,
            metrics=self.site.release(trained.metrics),
            train_metrics=self.site.release(trained.train_metrics),
            seconds={**trained.seconds, "pack": pack_s},
            packet_bytes=sum(array.nbytes for array in packet.values()),
        )

    def _reply(self, update: Update, packet: Packet, request: Train) -> Update | Refused:
        """The update, once the organisation has recorded that it leaves; or that it must not."""
        assert self._job is not None
        reason = self.site.guard.leaving(self._job, update, packet)
        if reason is not None:
            return self._refused("policy", reason)
        return replace(update, packet=packet) if update.size <= request.inline else update

    def _make_room(self, keep: Iterable[int]) -> None:
        """The next training reuses the trainer's memory: copy out what the driver has not fetched yet."""
        with self._lock:
            wanted = sorted(set(keep) & self._outbox.keys())[-KEPT_UPDATES:]
            self._outbox = {version: self._owned(version) for version in wanted}

    def _owned(self, version: int) -> tuple[Update, Packet]:
        update, packet = self._outbox[version]
        return update, {name: np.array(array) for name, array in packet.items()}

    def _fetch(self, request: Fetch) -> Reply:
        with self._lock:
            found = self._outbox.get(request.version)
        if found is None:
            return self._refused("unknown", f"no update of version {request.version} is kept here")
        self._marks += 1
        return Piece(packet={name: array[request.start : request.stop] for name, array in found[1].items()})

    def _evaluate(self, request: Evaluate, trainer: Trainer) -> Reply:
        began = perf_counter()
        self._cancelled.clear()
        self._make_room(())  # the version to evaluate is durable with all that is in it
        vectors = SiloState(self.site.state_folder(request.run_id)).after(request.counted)
        metrics = self.site.release(trainer.evaluate(self._order(request, vectors)))
        self._mark("idle", request.version, 0, 0)
        return Evaluated(
            silo=self.name, version=request.version, metrics=metrics, seconds=perf_counter() - began
        )

    def _order(self, request: Train | Evaluate, state: dict[str, Vector]) -> Order:
        tick = self._tick(request.version)
        return Order(version=request.version, received=request.model, state=state, tick=tick)

    def _tick(self, version: int) -> Any:
        def tick(phase: str, done: int, total: int) -> None:
            if self._cancelled.is_set():
                raise Cancelled
            self._mark(phase, version, done, total)

        return tick

    def _mark(self, phase: str, version: int, done: int, total: int) -> None:
        self._progress = (phase, version, done, total)
        self._marks += 1

    def _pong(self) -> Progress:
        phase, version, done, total = self._progress
        return Progress(
            silo=self.name,
            incarnation=self.incarnation,
            phase=phase,
            version=version,
            num_steps=done,
            total_steps=total,
            marks=self._marks,
        )

    def _refused(self, code: Any, reason: str) -> Refused:
        return Refused(silo=self.name, code=code, reason=reason)

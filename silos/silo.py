"""A silo: one entry point, `Silo.handle`, whoever carries the requests.

Asked again for the version that it trained last, a silo returns the stored update without training. An update
stays here until the driver has fetched it.
"""

import json
import logging
import re
import threading
import traceback
import uuid
from collections.abc import Callable
from dataclasses import replace
from time import monotonic, perf_counter
from typing import Any

import numpy as np

from orchestrator import starting
from orchestrator.core.errors import BadInput
from orchestrator.core.faults import fault
from orchestrator.core.messages import (
    Assess,
    Assessed,
    Evaluate,
    Evaluated,
    Fetch,
    Initial,
    Join,
    Leave,
    Load,
    Piece,
    Ping,
    Progress,
    Refused,
    Reply,
    Request,
    Stop,
    Train,
    Update,
    Work,
)
from orchestrator.core.printable import printable
from orchestrator.core.vector import Packet, Vector
from orchestrator.job import Job
from orchestrator.pipeline import outgoing
from silos.mid_round import MidRound
from silos.outbox import Outbox
from silos.policy import received
from silos.run import Run
from silos.signs import Signs
from silos.site import Cancelled, Order, Site, Tick, Trainer
from silos.state import Kept, SiloState

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
"""A run's state lies in a folder of this name, so it must not lead anywhere else."""

BUSY_S = 60.0
"""A run that has not asked for anything for so long may be replaced by another."""
LOOK_S = 10.0
"""While the silo works, it asks so often whether it still may."""


class Silo:
    """Holds one job at a time. `handle` may be called from several threads: `Fetch`, `Ping` and `Stop` are
    answered while another thread trains."""

    def __init__(self, site: Site, clock: Callable[[], float] = monotonic) -> None:
        """``clock``: seconds, from any beginning."""
        self.site, self.clock = site, clock
        self.incarnation = uuid.uuid4().hex[:12]
        self._run: Run | None = None
        self._outbox = Outbox()
        self._fencing = threading.Lock()
        self._newest_driver = "", 0
        self._cancelled = threading.Event()
        self._hand_in = -1
        """Version of which the driver wants what is done, and no more."""
        self._signs = Signs(clock)
        self._assessed: tuple[str, Assessed] | None = None
        """Of which run, and what was found, with all that the silo knows."""
        self._asked_at = self._looked_at = clock()

    @property
    def name(self) -> str:
        return self.site.name

    def handle(self, request: Request) -> Reply:
        """Answer. A refusal is an ordinary reply, and so is what went wrong here; the silo keeps both on record."""
        try:
            reply = self._answer(request)
        except Cancelled as ended:
            reply = self._refused(ended.code, ended.reason)
        except BadInput as error:
            reply = self._refused("data", self.site.guard.told(request.run_id, error))
        except Exception as error:  # in the task's own code, as a rule
            lines = map(printable, traceback.format_exc().splitlines())
            logging.getLogger(__name__).error("%s", "\n".join(lines))
            reply = self._refused("failed", self.site.guard.told(request.run_id, error))
        if isinstance(reply, Refused):
            self.site.guard.refused(request.run_id, reply)
        return reply

    def _answer(self, request: Request) -> Reply:
        if not RUN_ID.fullmatch(request.run_id):
            return self._refused("unknown", "no run has such an id")
        if self._outdated(request):
            return self._refused("fenced", f"driver epoch {request.epoch} was replaced by a newer driver")
        run = self._run if self._run is not None and self._run.id == request.run_id else None
        if run is not None:
            self._asked_at = self.clock()
        match request:
            case Ping():
                return self._pong()
            case Stop():
                if run is not None:
                    self._stop(request)
                return self._pong()
            case Join():
                return self._join(request)
            case Leave():
                return self._leave(request)
        return (
            self._refused("job", "this process has not joined the run")
            if run is None
            else self._work(run, request)
        )

    def _stop(self, request: Stop) -> None:
        if request.hand_in is None:
            self._cancelled.set()
        else:
            self._hand_in = request.hand_in

    def _work(self, run: Run, request: Request) -> Reply:
        if isinstance(request, Fetch):
            return self._fetch(request)
        self._go_on(run)
        match request:
            case Load():
                return self._load(request, run)
            case Initial():
                self.site.guard.left("initial", request.run_id)
                return Piece(packet=dict(run.trainer.initial()))
            case Train():
                return self._train(request, run)
            case Evaluate():
                return self._evaluate(request, run)
            case Assess():
                return self._assess(request, run)
        return self._refused("unknown", f"unknown request {type(request).__name__}")

    def _outdated(self, request: Request) -> bool:
        """Whether a newer driver has asked for anything in this run. Of a run that joined, a new process of the silo
        knows it, too."""
        state = self._state(request)
        with self._fencing:
            known = state.epoch
            newest = max(known or 0, self._newest(request))
            if request.epoch < newest:
                return True
            self._newest_driver = request.run_id, request.epoch
            if known is not None and request.epoch > known:
                state.fence(request.epoch)
        return False

    def _newest(self, request: Request) -> int:
        """Epoch of the newest driver that asked lately, if that was in this run."""
        run_id, epoch = self._newest_driver
        return epoch if run_id == request.run_id else 0

    def _permit(self, job: Job) -> None:
        """The organisation's word as it is now; raises `Cancelled` where that is no. Its documents may have changed,
        its hours may be over."""
        reason = self.site.review(job)
        refusal = ("policy", reason) if reason is not None else self.site.guard.closed(job)
        if refusal is not None:
            raise Cancelled(*refusal)
        self._looked_at = self.clock()

    def _go_on(self, run: Run) -> None:
        """As `_permit`, for the run in hand."""
        self._permit(run.job)
        if self.site.counts(run.trainer) != run.num_examples:
            raise Cancelled("job", "its policy on numbers of rows has changed: join again")

    def _join(self, request: Join) -> Reply:
        run = self._run
        if run is not None and run.id != request.run_id and self.clock() - self._asked_at < BUSY_S:
            return self._refused("busy", f"works for the run {run.id}")
        job = received(request.job)
        if job is None:
            return self._refused("job", "the job's text is no job here: other Siloray version?")
        if job.digest != request.job_digest:
            return self._refused("job", "the job's digest does not fit its text: other Siloray version?")
        self._permit(job)
        if run is not None and (run.id, run.job.digest) == (request.run_id, job.digest):
            trainer = run.trainer
        else:
            trainer = self._opened(request, job)
        run = Run.of(request.run_id, job, self.site, trainer)
        joined = run.joined(self.incarnation)
        self._signs.tells_counts = bool(run.num_examples)
        self._run, self._asked_at, self._hand_in = run, self.clock(), -1
        return joined

    def _opened(self, request: Join, job: Job) -> Trainer:
        """Of a job that is new here; what was in hand is dropped."""
        self._signs.mark("loading", -1)
        trainer = self.site.trainer(job)
        self.site.guard.joined(request.run_id, job)
        with self._fencing:
            state = self._state(request)
            state.fence(max(request.epoch, self._newest(request), state.epoch or 0))
        self._outbox.make_room()
        self._signs.mark("idle", -1)
        return trainer

    def _load(self, request: Load, run: Run) -> Reply:
        """Read by nothing but the model: names, shapes and numbers."""
        try:
            values = request.model["values"]
            weights = starting.views(request.layout, values)
            if not np.isfinite(values).all():
                raise ValueError("NaN or infinity")
            run.trainer.begin_with(weights, starting.digest_of(request.layout, values))
        except (ValueError, KeyError) as error:
            return self._refused("job", f"the weights to begin with do not fit the job's model: {error}")
        return run.joined(self.incarnation)

    def _leave(self, request: Leave) -> Reply:
        if self._run is not None and self._run.id == request.run_id:
            self._run = None
            self._outbox.make_room()
        state = self._state(request)
        if request.finished and state.epoch is not None:
            state.forget()
        return self._pong()

    def _state(self, request: Request) -> SiloState:
        return SiloState(self.site.state_folder(request.run_id))

    def _train(self, request: Train, run: Run) -> Reply:
        stored = self._outbox.get(request.version)
        if stored and stored[0].model_digest == request.model_digest:
            again = replace(stored[0], attempt=request.attempt, epoch=request.epoch)
            return self._reply(again, stored[1], request, run)
        if request.num_steps is not None and not (run.job.rounds.asks_for_steps and request.num_steps > 0):
            return self._refused("job", f"asks for {request.num_steps} steps, which the job does not foresee")
        self._cancelled.clear()
        self._outbox.make_room(request.keep)
        state = self._state(request)
        vectors = self._begun(request, run, state)
        trained = run.trainer.train(self._order(request, run, vectors))
        fault("silo.trained")
        began = perf_counter()
        kept = Kept(vectors, "codec", sum(part.size for part in trained.parts.values()))
        packet = outgoing(run.job, self.name, request.version, trained.parts, kept)
        state.save(request.version, vectors, request.counted)
        update = run.update(request, trained, packet, perf_counter() - began)
        reply = self._reply(update, packet, request, run)
        if isinstance(reply, Update):
            self._outbox.put(update, packet)
        self._signs.mark("idle", request.version)
        fault("silo.replied")
        return reply

    def _begun(self, request: Work, run: Run, state: SiloState) -> dict[str, Vector]:
        """The private state to work from, once the organisation has recorded that the work begins."""
        vectors = state.after(request.counted)
        reason = self.site.guard.begins(run.job, request, vectors)
        if reason is not None:
            raise Cancelled("policy", reason)
        return vectors

    def _reply(self, update: Update, packet: Packet, request: Train, run: Run) -> Update | Refused:
        """The update, once the organisation has recorded that it leaves; or that it must not."""
        self._go_on(run)
        reason = self.site.guard.leaving(run.job, update, packet)
        if reason is not None:
            return self._refused("policy", reason)
        return replace(update, packet=packet) if update.size <= request.inline else update

    def _fetch(self, request: Fetch) -> Reply:
        found = self._outbox.get(request.version)
        if found is None:
            return self._refused("unknown", f"no update of version {request.version} is kept here")
        self._signs.moved()
        return Piece(packet={name: array[request.start : request.stop] for name, array in found[1].items()})

    def _evaluate(self, request: Evaluate, run: Run) -> Reply:
        began = perf_counter()
        self._cancelled.clear()
        self._outbox.make_room()  # the version to evaluate is durable with all that is in it
        vectors = self._begun(request, run, self._state(request))
        metrics = self.site.release(run.trainer.evaluate(self._order(request, run, vectors)))
        self._signs.mark("idle", request.version)
        self._go_on(run)
        self.site.guard.left("evaluated", request.run_id, version=request.version, metrics=", ".join(metrics))
        return Evaluated(
            silo=self.name, version=request.version, metrics=metrics, seconds=perf_counter() - began
        )

    def _assess(self, request: Assess, run: Run) -> Reply:
        """Once for a version: the same again is answered with what is stored."""
        known = self._assessed
        if known is None or (known[0], known[1].model_digest) != (run.id, request.model_digest):
            self._cancelled.clear()
            self._outbox.make_room()  # as for an evaluation
            vectors = self._begun(request, run, self._state(request))
            found = self.site.assess(run.trainer, self._order(request, run, vectors))
            if found.own is not None:
                self.site.keep(run.id, found.own, run.card(request, found))
            known = self._assessed = run.id, run.assessed(request, found)
            self._signs.mark("idle", request.version)
        self._go_on(run)
        models = {name: run.released(each) for name, each in known[1].models.items()}
        metrics = sorted({name for each in models.values() for name in each.metrics})
        self.site.guard.left(
            "assessed",
            request.run_id,
            version=request.version,
            models=", ".join(models),
            metrics=", ".join(metrics),
        )
        curve = tuple((steps, self.site.release(sums)) for steps, sums in known[1].curve)
        return replace(known[1], models=models, curve=curve, version=request.version)

    def _order(self, request: Work, run: Run, state: dict[str, Vector]) -> Order:
        return Order(
            version=request.version,
            received=request.model,
            state=state,
            tick=self._tick(request.version, run),
            num_steps=None if isinstance(request, Evaluate) else request.num_steps,
            enough=lambda: self._hand_in == request.version,
            mid_round=self._mid_round(request, run) if isinstance(request, Train) else None,
            trainings=request.trainings if isinstance(request, Assess) else 0,
        )

    def _mid_round(self, request: Train, run: Run) -> MidRound:
        depends = (run.job.digest, run.site.fingerprint(run.job), request.version, request.model_digest)
        work = json.dumps([*depends, request.counted, request.num_steps])
        return MidRound(self.site.state_folder(request.run_id), work)

    def _tick(self, version: int, run: Run) -> Tick:
        def tick(phase: str, done: int, total: int) -> None:
            if self._cancelled.is_set():
                raise Cancelled
            if self.clock() - self._looked_at >= LOOK_S:
                self._go_on(run)
            self._signs.mark(phase, version, done, total)

        return tick

    def _pong(self) -> Progress:
        signs = self._signs
        return Progress(
            silo=self.name,
            incarnation=self.incarnation,
            phase=signs.phase,
            version=signs.version,
            num_steps=signs.num_steps,
            total_steps=signs.total_steps,
            marks=signs.marks,
        )

    def _refused(self, code: Any, reason: str) -> Refused:
        return Refused(silo=self.name, code=code, reason=reason)

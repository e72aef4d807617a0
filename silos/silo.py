"""A silo: one entry point, `Silo.handle`, whoever carries the requests."""

import logging
import re
import threading
import traceback
import uuid
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import Any

import numpy as np

from orchestrator import starting
from orchestrator.core.errors import BadInput
from orchestrator.core.messages import (
    Ask,
    Assess,
    Attack,
    Evaluate,
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
)
from orchestrator.core.printable import printable
from orchestrator.job import Job
from orchestrator.privacy.sealing import SumRefused
from silos.fence import Fence
from silos.measuring import Measuring
from silos.outbox import Outbox
from silos.policy import received
from silos.run import Run
from silos.site import Cancelled, Site, Trainer
from silos.statements import Statements, seen
from silos.sums import Sums
from silos.training import Training
from silos.working import Working

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
"""A run's state lies in a folder of this name, so it must not lead anywhere else."""

BUSY_S = 60.0
"""A run that has not asked for anything for so long may be replaced by another."""


class Silo:
    """Holds one job at a time. `handle` may be called from several threads: `Fetch`, `Ping` and `Stop` are
    answered while another thread trains."""

    def __init__(self, site: Site, clock: Callable[[], float] = monotonic) -> None:
        """``clock``: seconds, from any beginning."""
        self.site, self.clock = site, clock
        self.incarnation = uuid.uuid4().hex[:12]
        self._run: Run | None = None
        self._asked_at = clock()
        self._fence, self._outbox, self._statements = Fence(), Outbox(), Statements(site)
        self._sums, self._summing = Sums(self._outbox), threading.Lock()
        self._working = Working(site, clock, self._outbox)
        self._signs = self._working.signs
        self._training = Training(self._working, self._statements, self._sums)
        self._measuring = Measuring(self._working, self._statements, self._sums)

    @property
    def name(self) -> str:
        return self.site.name

    def handle(self, request: Request) -> Reply:
        """Answer. A refusal is an ordinary reply, and so is what went wrong here; the silo keeps both on record."""
        try:
            reply = self._answer(request)
        except Cancelled as ended:
            reply = self._refused(ended.code, ended.reason)
        except SumRefused as refused:
            reply = self._refused(refused.code, str(refused), refused.of)
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
        if self._fence.outdated(request, self._working.state(request)):
            return self._refused("fenced", f"driver epoch {request.epoch} was replaced by a newer driver")
        run = self._run if self._run is not None and self._run.id == request.run_id else None
        if run is not None:
            self._asked_at = self.clock()
        match request:
            case Ping():
                return self._pong()
            case Stop():
                if run is not None:
                    self._working.stop(request, run.job)
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

    def _work(self, run: Run, request: Request) -> Reply:
        if isinstance(request, Fetch):
            return self._fetch(request, run)
        self._working.go_on(run)
        if isinstance(request, Ask):
            return self._ask(request, run)
        match request:
            case Load():
                return self._load(request, run)
            case Initial():
                self.site.guard.left("initial", request.run_id)
                return Piece(packet=dict(run.trainer.initial()))
            case Train():
                return self._training.train(request, run)
            case Evaluate():
                return self._measuring.evaluate(request, run)
            case Assess():
                return self._measuring.assess(request, run)
            case Attack():
                return self._measuring.attack(request, run)
        return self._refused("unknown", f"unknown request {type(request).__name__}")

    def _join(self, request: Join) -> Reply:
        run = self._run
        if run is not None and run.id != request.run_id and self.clock() - self._asked_at < BUSY_S:
            return self._refused("busy", f"works for the run {run.id}")
        job = received(request.job)
        if job is None:
            return self._refused("job", "the job's text is no job here: other Siloray version?")
        if job.digest != request.job_digest:
            return self._refused("job", "the job's digest does not fit its text: other Siloray version?")
        self._working.permit(job)
        self.site.guard.told_of(request.ledger)
        if run is not None and (run.id, run.job.digest) == (request.run_id, job.digest):
            trainer = run.trainer
        else:
            trainer = self._opened(request, job)
        run = Run.of(request.run_id, job, self.site, trainer)
        joined = run.joined(self.incarnation)
        self._working.joined(run)
        self._run, self._asked_at = run, self.clock()
        return joined

    def _opened(self, request: Join, job: Job) -> Trainer:
        """Of a job that is new here; what was in hand is dropped."""
        self._signs.mark("loading", -1)
        if job.sums is not None:
            job.sums.ready()
        trainer = self.site.trainer(job)
        self.site.guard.joined(request.run_id, job)
        self._fence.keep(request, self._working.state(request))
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
        receipt = None
        if self._run is not None and self._run.id == request.run_id:
            if request.head:
                receipt = self._statements.leave(request, self._run.job.digest)
                self.site.guard.left("leave", request.run_id, **seen(receipt))
            self._run = None
            self._outbox.make_room()
            self._sums.leave()
        state = self._working.state(request)
        if request.finished and state.epoch is not None:
            state.forget()
        return replace(self._pong(), receipt=receipt)

    def _ask(self, request: Ask, run: Run) -> Reply:
        """A step of a sum; one at a time, also while another thread trains."""
        with self._summing:
            answer = self._sums.answer(request, run)
        self._signs.moved()
        self.site.guard.left(
            "step of a sum",
            request.run_id,
            version=request.version,
            attempt=request.attempt,
            step=request.step,
        )
        return answer

    def _fetch(self, request: Fetch, run: Run) -> Reply:
        if run.job.sums is not None:
            piece = self._sums.piece(request)
            if piece is None:
                return self._refused("unknown", "no packet that was sealed for this sum is kept here")
            self._signs.moved()
            return Piece(packet=piece)
        found = self._outbox.get(request.version)
        if found is None:
            return self._refused("unknown", f"no update of version {request.version} is kept here")
        self._signs.moved()
        return Piece(packet={name: array[request.start : request.stop] for name, array in found[1].items()})

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

    def _refused(self, code: Any, reason: str, of: str = "") -> Refused:
        return Refused(silo=self.name, code=code, reason=reason, of=of)

"""What all work at a silo has in common: it may begin, is paid for in privacy, shows signs of life, and ends when the
driver or the organisation says so."""

import json
import threading
from collections.abc import Callable, Iterable, Sequence

from orchestrator.core.messages import Assess, Attack, Evaluate, LedgerHead, Request, Stop, Train, Work
from orchestrator.core.vector import Vector
from orchestrator.job import Job
from silos.mid_round import MidRound
from silos.odometer import Spent
from silos.outbox import Outbox
from silos.run import Run
from silos.signs import Signs
from silos.site import Cancelled, Order, Site, Tick
from silos.spending import Spend
from silos.state import SiloState

LOOK_S = 10.0
"""While the silo works, it asks so often whether it still may."""


class Working:
    """Of one process of the silo. One work at a time; other threads may end it."""

    def __init__(self, site: Site, clock: Callable[[], float], outbox: Outbox) -> None:
        self.site, self.clock, self.outbox = site, clock, outbox
        self.signs = Signs(clock)
        self._cancelled = threading.Event()
        self._hand_in = -1
        """Version of which the driver wants what is done, and no more."""
        self._looked_at = clock()

    def joined(self, run: Run) -> None:
        """All work from now on is for this run."""
        self.signs.tells_counts = bool(run.num_examples)
        self._hand_in = -1

    def permit(self, job: Job) -> None:
        """The organisation's word as it is now; raises `Cancelled` where that is no. Its documents may have changed,
        its hours may be over."""
        reason = self.site.review(job)
        refusal = ("policy", reason) if reason is not None else self.site.guard.closed(job)
        if refusal is not None:
            raise Cancelled(*refusal)
        self._looked_at = self.clock()

    def go_on(self, run: Run) -> None:
        """As `permit`, for the run in hand."""
        self.permit(run.job)
        if self.site.counts(run.trainer) != run.num_examples:
            raise Cancelled("job", "its policy on numbers of rows has changed: join again")

    def stop(self, request: Stop, job: Job) -> None:
        """End the work in hand, or have what is done of it: for a sum only where the job foresees that, since one long
        training among single steps would show."""
        if request.hand_in is None:
            self._cancelled.set()
        elif job.sums is None or job.policy.hand_in_s is not None:
            self._hand_in = request.hand_in

    def state(self, request: Request) -> SiloState:
        """What is kept here of the request's run."""
        return SiloState(self.site.state_folder(request.run_id), self.site.key)

    def begin(self, request: Work, run: Run, keep: Iterable[int] = ()) -> dict[str, Vector]:
        """The private state to work from, once the organisation has recorded that the work begins. Updates of the
        versions ``keep`` stay here; all others are folded, and durable, or will not be wanted."""
        self._cancelled.clear()
        self.outbox.make_room(keep)
        vectors = self.state(request).after(request.counted)
        reason = self.site.guard.begins(run.job, request, vectors)
        if reason is not None:
            raise Cancelled("policy", reason)
        return vectors

    def spends(
        self, request: Work, run: Run, spends: Sequence[Spend], head: LedgerHead | None = None
    ) -> Spent | None:
        """Durably entered in the privacy ledger, before any of it is done. A work that is done anew is charged anew:
        its noise is new."""
        return self.site.guard.spends(run.job, request, self.site.files_fingerprint(run.job), spends, head)

    def order(self, request: Work, run: Run, state: dict[str, Vector]) -> Order:
        """What the trainer is given."""
        return Order(
            version=request.version,
            received=request.model,
            state=state,
            tick=self.tick(request.version, run),
            num_steps=None if isinstance(request, Evaluate) else request.num_steps,
            enough=lambda: self._hand_in == request.version,
            mid_round=self._mid_round(request, run) if isinstance(request, Train) else None,
            trainings=request.trainings if isinstance(request, Assess | Attack) else 0,
            draw=request.draw if isinstance(request, Train) else 0,
        )

    def tick(self, version: int, run: Run) -> Tick:
        """For every step of the work on this version."""

        def tick(phase: str, done: int, total: int) -> None:
            if self._cancelled.is_set():
                raise Cancelled
            if self.clock() - self._looked_at >= LOOK_S:
                self.go_on(run)
            self.signs.mark(phase, version, done, total)

        return tick

    def _mid_round(self, request: Train, run: Run) -> MidRound:
        depends = (run.job.digest, run.site.fingerprint(run.job), request.version, request.model_digest)
        work = json.dumps([*depends, request.counted, request.num_steps, request.draw])
        return MidRound(self.site.state_folder(request.run_id), work, self.site.key)

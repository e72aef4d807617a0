"""A training, from the request to the update that leaves: state and account before it, receipt and record after it."""

import os
from dataclasses import replace
from time import perf_counter

import numpy as np

from orchestrator.core.faults import fault
from orchestrator.core.messages import MOST_DRAWS, Refused, Train, Update
from orchestrator.core.vector import Packet, packet_digest
from orchestrator.pipeline import outgoing
from orchestrator.receipts import commitment
from silos.hashing import hashed
from silos.run import Run
from silos.site import Cancelled
from silos.state import Kept
from silos.statements import Statements
from silos.sum_terms import mark_of
from silos.sums import Brought, Sums
from silos.working import Working


class Training:
    """Asked again for the version that was trained last, it gives the stored update without training. An update stays
    here until the driver has fetched it."""

    def __init__(self, working: Working, statements: Statements, sums: Sums) -> None:
        self.site, self.outbox, self.working = working.site, working.outbox, working
        self._statements, self._sums = statements, sums

    def train(self, request: Train, run: Run) -> Update | Refused:
        """Raises `Cancelled`, and `BadInput` of the silo's own files."""
        stored = self.outbox.get(request.version)
        if stored and (stored[0].model_digest, stored[0].draw) == (request.model_digest, request.draw):
            again = replace(stored[0], attempt=request.attempt, epoch=request.epoch)
            return self._leaving(self._receipted(again, request), stored[1], request, run)
        if request.num_steps is not None and not (run.job.rounds.asks_for_steps and request.num_steps > 0):
            raise Cancelled("job", f"asks for {request.num_steps} steps, which the job does not foresee")
        if request.draw not in range(1 if run.job.sums is None else MOST_DRAWS + 1):
            raise Cancelled("job", f"asks for training {request.draw} of version {request.version}")
        vectors = self.working.begin(request, run, request.keep)
        order, rule = self.working.order(request, run, vectors), self.site.metrics_rule
        spent = self.working.spends(request, run, run.spends(order, rule), request.ledger)
        received = hashed(request.model)
        trained = run.trainer.train(order)
        fault("silo.trained")
        began = perf_counter()
        test, training = rule.of_test(trained.metrics), rule.of_training(trained.train_metrics)
        trained = replace(trained, metrics=test, train_metrics=training)
        extra = {name: np.zeros(size, np.float32) for name, size in run.job.extra_parts.items()}
        trained = replace(trained, parts={**trained.parts, **extra})
        kept = Kept(vectors, "codec", sum(part.size for part in trained.parts.values()))
        packet = outgoing(run.job, self.site.name, request.version, trained.parts, kept, request.settings)
        self.working.state(request).save(request.version, vectors, request.counted)
        digest = packet_digest(packet)
        promised = self._promised(request, run, digest), run.job.sums is not None
        pack_s = perf_counter() - began
        update = run.update(request, trained, packet, pack_s, received(), rule, spent)
        update = self._receipted(update, request, promised)
        reply = self._leaving(update, packet, request, run)
        if isinstance(reply, Update):
            self.outbox.put(update, packet)
            if run.job.sums is not None:
                figures = run.in_sums(trained.metrics, rule, request.draw)
                mark = mark_of(self.site.identity, digest) if run.job.sums.protects else ""
                work = Brought(
                    *(update.received, figures, trained.num_examples, update.hidden, update.settings, mark),
                    draw=update.draw,
                )
                self._sums.brought(request.version, work)
        self.working.signs.mark("idle", request.version)
        fault("silo.replied")
        return reply

    def _promised(self, request: Train, run: Run, digest: str) -> str:
        """What the receipt says of the packet: its digest, or where nobody is to see it, one that tells nothing."""
        if run.job.sums is None:
            return digest
        salt = os.urandom(32)
        self.site.guard.left(
            "commitment", request.run_id, version=request.version, sha256=digest, salt=salt.hex()
        )
        return commitment(digest, salt)

    def _receipted(self, update: Update, request: Train, promised: tuple[str, bool] | None = None) -> Update:
        """With a receipt of its own for this very request; ``promised`` as the one before said, if nothing is given."""
        if promised is None:
            assert update.receipt is not None
            promised = update.receipt.update, update.receipt.salted
        return replace(update, receipt=self._statements.update(update, *promised, request))

    def _leaving(self, update: Update, packet: Packet, request: Train, run: Run) -> Update | Refused:
        """The update, once the organisation has recorded that it leaves; or that it must not."""
        self.working.go_on(run)
        reason = self.site.guard.leaving(run.job, update, packet)
        if reason is not None:
            return Refused(silo=self.site.name, code="policy", reason=reason)
        alone = update.size <= request.inline and run.job.sums is None
        return replace(update, packet=packet) if alone else update

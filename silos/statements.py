"""What the silo signs, one statement after the other."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from orchestrator.core.messages import Attack, Attacked, Evaluate, Leave, Train, Update
from orchestrator.core.receipts import Receipt
from orchestrator.receipts import contributors_digest, numbers_digest, signed, vote_digest
from silos.site import Site


def seen(receipt: Receipt) -> dict[str, Any]:
    """What the silo's own record keeps of a statement: with it the silo can show later which history it was told."""
    return {
        "receipt": receipt.sequence,
        "journal_head": receipt.head,
        "journal_lines": receipt.head_length,
    }


class Statements:
    """With numbers that rise, also from one process of the silo to the next: microseconds since 1970, or one more than
    the last where the clock went back."""

    def __init__(self, site: Site, clock: Callable[[], float] = time.time) -> None:
        self.site, self._clock = site, clock
        self._last = 0
        self._lock = threading.Lock()

    def update(self, update: Update, digest: str, salted: bool, request: Train) -> Receipt:
        """Of an update that leaves, or that the driver is told is ready. ``digest``: of its packet."""
        return self._signed(
            Receipt(
                kind="update",
                silo=update.silo,
                run_id=update.run_id,
                job_digest=update.job_digest,
                epoch=request.epoch,
                version=update.version,
                attempt=request.attempt,
                received=update.received,
                update=digest,
                salted=salted,
                numbers=numbers_digest(update),
                num_examples=update.num_examples,
                ledger=update.ledger.hash if update.ledger else "",
                ledger_length=update.ledger.length if update.ledger else 0,
                contributors=contributors_digest(request.contributors),
                head=request.head,
                head_length=request.head_length,
            )
        )

    def evaluation(self, request: Evaluate, job_digest: str, received: str) -> Receipt:
        """Of an evaluation; ``received``: digest of the model."""
        about = self._about(request, "evaluation", job_digest)
        return self._signed(replace(about, version=request.version, received=received))

    def vote(self, request: Attack, job_digest: str, said: Attacked, received: str) -> Receipt:
        """Of a vote on the release of the model with the digest ``received``."""
        about = self._about(request, "vote", job_digest)
        return self._signed(
            replace(about, version=request.version, received=received, update=vote_digest(said))
        )

    def leave(self, request: Leave, job_digest: str) -> Receipt:
        """The run is over."""
        return self._signed(self._about(request, "leave", job_digest))

    def _about(
        self,
        request: Attack | Evaluate | Leave,
        kind: Literal["evaluation", "vote", "leave"],
        job_digest: str,
    ) -> Receipt:
        return Receipt(
            kind=kind,
            silo=self.site.name,
            run_id=request.run_id,
            job_digest=job_digest,
            epoch=request.epoch,
            version=-1,
            head=request.head,
            head_length=request.head_length,
        )

    def _signed(self, receipt: Receipt) -> Receipt:
        with self._lock:
            self._last = max(self._last + 1, int(1e6 * self._clock()))
        stated = replace(receipt, policy=self.site.guard.policy_digest, sequence=self._last)
        return signed(stated, self.site.identity.sign)

"""The gate at arrival: what an update's header must say before the update is counted.

The numbers themselves are examined where they are first read, while folding (`orchestrator.pipeline`).
A refusal has a stable code; it never ends the run, and the update never enters the model.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from orchestrator import receipts
from orchestrator.core.messages import Update
from orchestrator.core.metrics import MetricSums, Sums
from orchestrator.core.vector import Parts
from orchestrator.job import Job
from orchestrator.pipeline import packet_flaw
from orchestrator.privacy.fixed_point import fits
from orchestrator.receipts import Known

ABSURD = 1e9
"""No public number of a strategy is larger."""


MOST_SPENT = 32
"""Numbers on privacy in one update."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the driver knows about the work that it asked a silo for."""

    silo: str
    run_id: str
    epoch: int
    version: int
    model_digest: str
    layout: Mapping[str, int]
    num_examples: int | None
    """Training rows that the silo declared when it joined; None where its policy keeps them in."""
    receipt: Known
    settings: str = ""
    """Digest of those that the update was to be made with, where it goes into a sum."""
    draw: int = 0
    """As asked for."""


def flaw(job: Job, update: Update, expected: Expected) -> tuple[str, str] | None:
    """Reason code and sentence if the update must be refused; None if it may be counted."""
    if update.silo != expected.silo:
        return "foreign", f"sent by {expected.silo} in the name of {update.silo}"
    if (update.run_id, update.job_digest) != (expected.run_id, job.digest):
        return "foreign", "belongs to another run or job"
    if update.epoch != expected.epoch:
        return "epoch", f"answers driver epoch {update.epoch}, this is {expected.epoch}"
    if update.version != expected.version:
        return "stale", f"trained from version {update.version} when asked for {expected.version}"
    if update.model_digest != expected.model_digest:
        return "foreign", "trained from another model of that version"
    if update.draw != expected.draw:
        return "foreign", f"is training {update.draw} of that version when asked for {expected.draw}"
    if tuple(update.layout) != tuple(expected.layout.items()):
        return "schema", f"has parts {dict(update.layout)}, expected {dict(expected.layout)}"
    found = (
        check(job, update, expected) for check in (_weight_flaw, _number_flaw, _metric_flaw, _packet_flaw)
    )
    wrong = next((flaw for flaw in found if flaw is not None), None)
    return wrong or _receipt_flaw(job, update, expected)


def initial_flaw(parts: Parts, num_shared: int) -> str | None:
    """What is wrong with the initial parameters that a silo sent."""
    known = parts.keys() <= {"params", "buffers"} and "params" in parts
    if not known or any(part.dtype != np.float32 or part.ndim != 1 for part in parts.values()):
        return "sent something else than flat float32 parameters"
    if sum(part.size for part in parts.values()) != num_shared:
        return f"sent {sum(part.size for part in parts.values())} numbers, declared {num_shared}"
    if not all(np.isfinite(part).all() for part in parts.values()):
        return "sent NaN or infinity"
    return None


def _weight_flaw(job: Job, update: Update, expected: Expected) -> tuple[str, str] | None:
    if not math.isfinite(update.weight) or not 0 < update.weight <= job.combine.max_weight:
        return "weight", f"weight {update.weight} is not in (0, {job.combine.max_weight:g}]"
    if update.weight != job.combine.weight(update.silo, update.num_examples):
        return "weight", f"weight {update.weight} does not follow from {update.num_examples} examples"
    if expected.num_examples is not None and update.num_examples != expected.num_examples:
        return "weight", f"claims {update.num_examples} examples, joined with {expected.num_examples}"
    return None


def _number_flaw(job: Job, update: Update, expected: Expected) -> tuple[str, str] | None:
    if update.scalars.keys() != job.strategy.scalars:
        return "schema", f"has scalars {sorted(update.scalars)}, expected {sorted(job.strategy.scalars)}"
    if not all(math.isfinite(number) for number in update.scalars.values()):
        return "nonfinite", f"scalars {update.scalars}"
    if not all(0 <= number <= ABSURD for number in update.scalars.values()):
        return "scalar", f"scalars {update.scalars} are not in [0, {ABSURD:g}]"
    counts = update.num_examples, update.num_steps, update.packet_bytes
    if not all(isinstance(number, int) and number >= 0 for number in counts):
        return "schema", f"counts {counts} are no natural numbers"
    if not all(math.isfinite(spent) for spent in update.seconds.values()):
        return "schema", f"seconds {update.seconds}"
    if len(update.privacy) > MOST_SPENT or not all(map(math.isfinite, update.privacy.values())):
        return "schema", f"privacy {str(update.privacy)[:200]}"
    if not re.fullmatch(r"[0-9a-f]{64}", update.received):
        return "schema", f"received {update.received[:80]!r} is no SHA-256"
    if update.settings != expected.settings:
        return "schema", "was made with other settings of that version"
    return None


def _metric_flaw(job: Job, update: Update, expected: Expected) -> tuple[str, str] | None:
    name = unsound({**update.train_metrics, **update.metrics})
    if name is not None:
        return "metrics", f"{name} is no sum that adds up"
    if not fits(update.summed):
        return "metrics", "metrics of an absurd size for the sum"
    if not set(update.hidden) <= {name for name, _, _ in update.summed}:
        return "metrics", "hides metrics that are not in the sum"
    return None


def unsound(metrics: MetricSums) -> str | None:
    """A metric that is no `Sums` of its kind."""
    return next((name for name, sums in metrics.items() if not (isinstance(sums, Sums) and sums.sound)), None)


def _receipt_flaw(job: Job, update: Update, expected: Expected) -> tuple[str, str] | None:
    """Last, for what is wrong with the update itself says more."""
    known, receipt = expected.receipt, update.receipt
    salted = job.sums is not None
    about = replace(
        known.receipt,
        salted=salted,
        num_examples=update.num_examples,
        numbers=receipts.numbers_digest(update),
    )
    wrong = receipts.flaw(receipt, replace(known, receipt=about))
    if wrong is None and receipt is not None:
        said = receipt.received, receipt.ledger, receipt.ledger_length
        ledger = (update.ledger.hash, update.ledger.length) if update.ledger else ("", 0)
        if said != (update.received, *ledger):
            wrong = "its receipt is about another model or ledger than its header"
    return None if wrong is None else ("receipt", wrong)


def _packet_flaw(job: Job, update: Update, expected: Expected) -> tuple[str, str] | None:
    if job.sums is not None and update.packet is not None:
        return "schema", "its numbers came in the clear, where the job sums them unopened"
    wrong = None if update.packet is None else packet_flaw(job, update.packet, update.size)
    return None if wrong is None else ("schema", wrong)

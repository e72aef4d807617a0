"""The gate at arrival: what an update's header must say before the update is counted.

The numbers themselves are examined where they are first read, while folding (`orchestrator.pipeline`).
A refusal has a stable code; it never ends the run, and the update never enters the model.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.core.messages import Update
from orchestrator.job import Job


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
    if dict(update.layout) != dict(expected.layout) or len(update.layout) != len(expected.layout):
        return "schema", f"has parts {dict(update.layout)}, expected {dict(expected.layout)}"
    return _weight_flaw(job, update, expected) or _packet_flaw(update)


def _weight_flaw(job: Job, update: Update, expected: Expected) -> tuple[str, str] | None:
    if not math.isfinite(update.weight) or not 0 < update.weight <= job.combine.max_weight:
        return "weight", f"weight {update.weight} is not in (0, {job.combine.max_weight:g}]"
    if update.weight != job.combine.weight(update.silo, update.num_examples):
        return "weight", f"weight {update.weight} does not follow from {update.num_examples} examples"
    if expected.num_examples is not None and update.num_examples != expected.num_examples:
        return "weight", f"claims {update.num_examples} examples, joined with {expected.num_examples}"
    if not all(math.isfinite(number) for number in update.scalars.values()):
        return "nonfinite", f"scalars {update.scalars}"
    return None


def _packet_flaw(update: Update) -> tuple[str, str] | None:
    if update.packet is not None and any(array.shape != (update.size,) for array in update.packet.values()):
        return "schema", f"packet arrays must be one-dimensional with {update.size} elements"
    return None

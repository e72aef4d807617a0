"""Jobs whose updates leave as whole numbers in a sum: what does not add up, or would hide nothing."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from orchestrator.aggregation.groups import Groups
from orchestrator.privacy.ring_sum import FEWEST_BITS, RingSum
from orchestrator.privacy.sealing import FEWEST

if TYPE_CHECKING:
    from orchestrator.job import Job

MOST_SHARE = 0.75
"""Of one silo in a sum that hides it."""
LEAST_DISCOUNT = 0.05
"""Of an update that is as late as may be, beside new ones in a sum that hides them."""


def refusals(job: "Job", sums: RingSum) -> Iterator[str]:
    """Of updates that leave as whole numbers in a sum."""
    if job.keep.updates:
        yield f"keep.updates: of a '{sums.name}' the driver sees the sum alone, and no update that it could keep"
    what, policy, point = f"'{sums.name}'", job.policy, sums.fixed_point(job.max_in_sum)
    for silo in sorted(sums.helpers - set(job.training)):
        yield f"combine.second: '{silo}' is no silo of the job that trains"
    if not job.codec.linear or job.codec.name != "raw":
        yield f"codec: {job.codec.name} packets do not add up, so they cannot be summed unopened; use raw"
    if sums.protects and len(job.training) < FEWEST:
        yield f"combine: {what} of fewer than {FEWEST} silos hides nothing: each could take its own update away"
    if sums.protects and policy.min_silos < FEWEST:
        yield (
            f"rounds.min_updates: a round of this job may close with {policy.min_silos} silos, and {what} of fewer "
            f"than {FEWEST} hides nothing: give {FEWEST} or more"
        )
    if sums.protects and (needed := sums.enough(policy.min_silos)) > policy.min_silos >= FEWEST:
        yield (
            f"rounds.min_updates: a round of this job may close with {policy.min_silos} silos, of whom {needed} would "
            f"have to be left for {what}: give more, or less combine.colluders or combine.threshold"
        )
    if not point.room or (sums.value_bits is None and point.value_bits < FEWEST_BITS):
        yield (
            f"combine.value_bits: {job.max_in_sum} updates of {point.value_bits} bits with weights up to "
            f"{point.max_weight} do not fit a ring of {point.bits} bits: give fewer bits, smaller weight_levels, "
            "uniform weights, or ring: uint32"
        )
    if sums.protects:
        yield from _nearly_alone(job, sums)
    if sums.groups is not None:
        yield from _groups(job, sums.groups)
    if sums.weights == "examples" and sums.max_examples is None:
        yield (
            "combine.max_examples: say how many training rows the largest silo may have, for weights are whole numbers "
            f"of max_examples / {sums.weight_levels}"
        )
    if job.strategy.scalars:
        yield (
            f"combine: '{job.strategy.name}' sends public numbers of each update, which a sum that hides them would "
            "not protect"
        )
    if job.strategy.own_weights:
        yield f"combine: '{job.strategy.name}' weighs single updates, and {what} shows the driver none"
    if job.corrects_rates:
        yield f"rounds.rate_correction: it weighs single updates, and {what} shows the driver none"
    if job.gate.max_norm is not None:
        yield f"gate.max_norm: the driver measures no single update in {what}; use privacy: [{{name: clip}}]"


def _nearly_alone(job: "Job", sums: RingSum) -> Iterator[str]:
    """Whose part would be most of the sum."""
    weights, policy = sums.weights, job.policy
    if isinstance(weights, dict) and max(weights.values()) > MOST_SHARE * math.fsum(weights.values()):
        largest = max(sorted(weights), key=lambda silo: weights[silo])
        yield (
            f"combine.weights: {largest} counts for more than {MOST_SHARE:.0%} of all, and '{sums.name}' would show "
            "little but its update"
        )
    least = policy.discount(policy.max_staleness)
    if least < LEAST_DISCOUNT:
        yield (
            f"rounds.staleness_exponent: an update that is {policy.max_staleness} versions late counts {least:.2g} as "
            f"much as a new one, and '{sums.name}' of one new and late ones would show the new one: give a smaller "
            "exponent, or max_staleness"
        )


def _groups(job: "Job", groups: Groups) -> Iterator[str]:
    """Of sums of random groups, with a rule over them."""
    fewest = job.policy.min_silos // groups.size
    if fewest < groups.needed:
        yield (
            f"combine.groups: '{groups.rule}' needs {groups.needed} groups, and a round of this job may have {fewest} "
            f"of {groups.size} silos: give rounds.min_updates: {groups.needed * groups.size}, or another rule"
        )
    for transform in job.privacy:
        if transform.extra:
            yield f"privacy: what '{transform.name}' counts in the sum of all silos, no rule over groups can tell"

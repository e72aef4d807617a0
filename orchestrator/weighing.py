"""What each update of a closing round counts for. Pure: made from the updates and from the rounds in the journal."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.core.events import RoundClosed
from orchestrator.core.messages import CohortInfo, SiloId, Update
from orchestrator.core.rounds import RoundPolicy
from orchestrator.job import Job

MOST = 8
"""A silo that delivers rarely counts for at most so many times its share at once."""


def shares_of(updates: Sequence[Update]) -> list[float]:
    """Normalised weights."""
    total = math.fsum(update.weight for update in updates)
    return [update.weight / total for update in updates]


@dataclass
class Balance:
    """Which silo counted when, so that those that deliver rarely count for as much in the end as their share is.

    Where silos deliver at their own pace, a fast one is in more rounds than a slow one, and the model goes where the
    *arrivals* weigh most. An update therefore counts for its silo's share times the
    number of versions since the silo counted last: over any stretch of time these add up to the share of all versions,
    which is the condition for no bias (Fraboni et al. 2022, FedFix). Nothing is estimated, and a resumed driver
    computes the same from its journal. Where updates may be several versions late, a version of a part of the silos
    moves the model by that part only: as many full steps on old models would overshoot.
    """

    job: Job
    counted: dict[SiloId, tuple[int, float]] = field(default_factory=dict)
    """Silo -> newest version that it is in, and its weight there."""

    def take(self, closed: RoundClosed) -> None:
        """A round that counts."""
        for each in closed.contributors:
            self.counted[each.silo] = closed.version, self.job.combine.weight(each.silo, each.num_examples)

    def corrections(self, updates: Sequence[Update], version: int, policy: RoundPolicy) -> list[float]:
        """Factors on the normalised weights of the updates that make ``version``."""
        longest = MOST * policy.cohort_size / policy.buffer_size
        present = {
            silo: weight for silo, (last, weight) in self.counted.items() if version - last <= longest
        } | {update.silo: update.weight for update in updates}
        mass = math.fsum(update.weight for update in updates) / math.fsum(present.values())
        times = Counter(update.silo for update in updates)
        strength = mass * policy.fill
        gaps = (version - self.counted.get(update.silo, (0, 0.0))[0] for update in updates)
        return [
            strength * min(gap, longest) / times[update.silo]
            for update, gap in zip(updates, gaps, strict=True)
        ]


def cohort_of(balance: Balance, updates: Sequence[Update], version: int, policy: RoundPolicy) -> CohortInfo:
    """What the strategy may know of the updates that make ``version``; they are in the order of the sum."""
    job = balance.job
    staleness = [version - 1 - update.version for update in updates]
    factors = [policy.discount(late) for late in staleness]
    if job.corrects_rates:
        corrections = balance.corrections(updates, version, policy)
        factors = [factor * more for factor, more in zip(factors, corrections, strict=True)]
    return CohortInfo(
        num_silos=len(job.training),
        weights=tuple(shares_of(updates)),
        scalars=tuple(update.scalars for update in updates),
        factors=tuple(factors),
        staleness=tuple(staleness),
        mass=_mass(job, updates),
    )


def _mass(job: Job, updates: Sequence[Update]) -> float:
    """Of the updates' weights in those of all silos; by numbers, where numbers of rows make the weights."""
    if job.combine.weights == "examples":
        return len(updates) / len(job.training)
    total = math.fsum(job.combine.weight(silo, 1) for silo in job.training)
    return math.fsum(update.weight for update in updates) / total

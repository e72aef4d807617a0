"""Robust rules under sums of which nobody sees a single term: silos are summed in random groups, drawn anew for each
round, and the rule goes over the groups' means."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field

from orchestrator.aggregation import robust
from orchestrator.core.random import rng_of
from orchestrator.core.vector import Vector

FEWEST = 3
"""Silos in a group: of two, each knows what the other one gave."""


class Groups(BaseModel, frozen=True, extra="forbid"):
    """Section ``groups`` of a sum. One bad silo spoils the mean of its group and no other one. The driver sees the
    groups' sums, of ``size`` silos or more, in place of one sum of all."""

    size: int = Field(default=FEWEST, ge=FEWEST)
    """Fewest silos in a group; what remains is spread over the groups."""
    rule: Literal["median", "trimmed_mean", "krum", "multi_krum"] = "median"
    """Over the groups' means, all of the same weight."""
    trim: int = Field(default=1, ge=0)
    """Groups that may be bad: as many are left out at each end by ``trimmed_mean``, and Krum's f."""

    @property
    def needed(self) -> int:
        """Groups without which the rule says nothing."""
        return max(3, robust.num_needed(self.rule, self.trim))

    def drawn(self, silos: Sequence[str], seed: int, version: int) -> tuple[tuple[str, ...], ...]:
        """From the job's seed, which everybody knows: a silo cannot choose its company."""
        return robust.drawn(silos, self.size, rng_of(seed, "groups", version))

    def combined(self, means: robust.Rows) -> Vector:
        """One row for each group."""
        if self.rule == "median":
            return robust.median(means)
        rule = {
            "trimmed_mean": robust.trimmed_mean,
            "krum": robust.krum,
            "multi_krum": robust.multi_krum,
        }[self.rule]
        return rule(means, self.trim)

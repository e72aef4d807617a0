"""How many local steps each silo makes, so that all are ready together; and whether that is worth while.

Pure: made from the rounds in the journal alone, so a resumed driver asks for the same.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from orchestrator.core.events import Contributor, RoundClosed
from orchestrator.core.messages import SiloId
from orchestrator.core.rounds import RoundPolicy
from orchestrator.job import Job
from orchestrator.round_settings import SPREAD

NEWEST = 0.5
"""Weight of the newest measurement in a silo's pace, beside all before it."""
ROUNDING = 1 + 1e-9
"""Keeps numbers that logarithms left a hair below a whole one from being cut down to the one before."""
EVEN = 1.3
"""Silos of which none takes so many times as long as another are equally fast: waiting costs less than it would to do
anything about it."""
MEASURED = 3
"""Rounds after which ``mode: auto`` chooses."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast one silo is."""

    step_s: float
    """Seconds per local step."""
    other_s: float
    """Seconds of a training besides its steps: loading, evaluating, packing, the way there and back."""
    own_steps: int
    """Steps that the job's own length of training has at this silo."""
    weight: float
    """The silo's weight in the job."""

    @property
    def training_s(self) -> float:
        """Seconds of a training as the job means it."""
        return self.own_steps * self.step_s + self.other_s


def steps_of(paces: Mapping[SiloId, Pace]) -> dict[SiloId, int]:
    """Local steps in rounds of equal time.

    The time is that of the silo in the weighted geometric middle, which makes the steps that the job means.
    """
    total = math.fsum(pace.weight for pace in paces.values())

    def middle(of: Mapping[SiloId, float]) -> float:
        return math.fsum(paces[silo].weight * value for silo, value in of.items()) / total

    usual = ROUNDING * math.exp(middle({silo: math.log(pace.own_steps) for silo, pace in paces.items()}))
    working_s = ROUNDING * math.exp(
        middle({silo: math.log(p.own_steps * p.step_s) for silo, p in paces.items()})
    )
    time_s = working_s + middle({silo: pace.other_s for silo, pace in paces.items()})
    fewest, most = max(1, math.ceil(usual / SPREAD / ROUNDING**2)), math.floor(usual * SPREAD)
    return {
        silo: min(max(math.floor((time_s - pace.other_s) / pace.step_s), fewest), most)
        for silo, pace in paces.items()
    }


@dataclass(frozen=True, slots=True)
class Choice:
    """What ``mode: auto`` came to."""

    version: int
    """Made of what was measured up to this version."""
    mode: Literal["sync", "semi_sync"]
    reason: str
    seconds: dict[SiloId, float]
    """Of one training, as the job means it, at each silo."""


class Paces:
    """The silos' paces, and what follows from them."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.by_silo: dict[SiloId, Pace] = {}
        """Silos that say how many steps they made, as far as they have delivered."""
        self.choice: Choice | None = None
        """Of ``mode: auto``, once it is made. It stays."""

    def take(self, closed: RoundClosed) -> None:
        """A round that counts. Versions come in their order."""
        for each in closed.contributors:
            measured = self._measured(each)
            if measured is not None:
                self.by_silo[each.silo] = _mean(self.by_silo.get(each.silo), measured)
        if self.job.rounds.mode == "auto" and self.choice is None and closed.version >= MEASURED:
            self.choice = choose(self.by_silo, closed.version)

    @property
    def equal_time(self) -> bool:
        """Whether rounds are of equal time now."""
        chosen = self.choice is not None and self.choice.mode == "semi_sync"
        return self.job.rounds.equal_time or chosen

    @property
    def policy(self) -> RoundPolicy:
        """The numbers of the next round."""
        chosen = self.choice is not None and self.choice.mode == "semi_sync"
        return self.job.loosest_policy if chosen else self.job.policy

    def steps(self, silo: SiloId) -> int | None:
        """Steps to ask the silo for; None: as the job says."""
        return steps_of(self.by_silo).get(silo) if self.equal_time and self.by_silo else None

    def _measured(self, each: Contributor) -> Pace | None:
        training_s = each.seconds.get("train", 0.0)
        if each.num_steps <= 0 or training_s <= 0:
            return None
        other_s = math.fsum(max(0.0, spent) for phase, spent in each.seconds.items() if phase != "train")
        own = self.job.local.num_steps(each.num_examples)
        weight = self.job.combine.weight(each.silo, each.num_examples)
        return Pace(training_s / each.num_steps, other_s, own, weight)


def _mean(before: Pace | None, measured: Pace) -> Pace:
    """A moving average of what was measured."""
    if before is None:
        return measured
    return replace(
        measured,
        step_s=NEWEST * measured.step_s + (1 - NEWEST) * before.step_s,
        other_s=NEWEST * measured.other_s + (1 - NEWEST) * before.other_s,
    )


def choose(paces: Mapping[SiloId, Pace], version: int) -> Choice:
    """Wait for all where silos are equally fast; else give all equal time, and do not wait for the last ones."""
    seconds = {silo: pace.training_s for silo, pace in sorted(paces.items())}
    if len(seconds) < 2:
        why = "fewer than two silos say how many steps they make, so there is nothing to compare"
        return Choice(version, "sync", why, seconds)
    fastest, slowest = min(seconds, key=seconds.__getitem__), max(seconds, key=seconds.__getitem__)
    spread = seconds[slowest] / seconds[fastest]
    found = (
        f"one training takes {seconds[fastest]:.3g} s ({fastest}) to {seconds[slowest]:.3g} s ({slowest}), "
        f"{spread:.2f} times as long"
    )
    if spread < EVEN:
        return Choice(version, "sync", f"{found}: rounds wait for all", seconds)
    why = f"{found}: equal time for all, and rounds close a little after three quarters have delivered"
    return Choice(version, "semi_sync", why, seconds)

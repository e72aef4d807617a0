"""Whether a silo's updates are what they were. Pure: the journal's rounds in order, and the same alarms come out.

Three signals for each silo: the norm of its update above, and the cosine with the round's mean below, their own
exponentially weighted mean by more than three deviations; its training loss rising (Page 1954; Hinkley 1971). Two of
them in three of its updates in a row are an alarm; one signal alone is an ordinary round.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.core.events import Contributor, DriftAlarm, RoundClosed

Signal = Literal["norm", "direction", "loss"]

WARM_UP = 5
"""Updates before a silo is judged."""
MEMORY = 0.2
"""Weight of the newest value in the means."""
WIDE = 3.0
"""Deviations."""
IN_A_ROW = 3
TOGETHER = 2
SMALLEST = 0.02
"""A deviation counts as at least so much of the mean, or of 1 for a cosine: the first values may be much alike."""


@dataclass
class Usual:
    """Exponentially weighted mean and deviation of one number."""

    floor: float = 0.0
    mean: float = 0.0
    variance: float = 0.0
    count: int = 0

    def beyond(self, value: float, sign: int) -> bool:
        """Whether the value lies too far above (``sign`` 1) or below (-1) what is usual; it is taken in then, no
        further out than the bound, so that a change that stays is seen several times and becomes usual in the end."""
        reach = WIDE * max(math.sqrt(self.variance), SMALLEST * abs(self.mean), self.floor)
        far = self.count >= WARM_UP and sign * (value - self.mean) > reach
        if far:
            self.mean += MEMORY * sign * reach
        else:
            self._take(value)
        return far

    def _take(self, value: float) -> None:
        weight = max(MEMORY, 1 / (self.count + 1))
        off = value - self.mean
        self.mean += weight * off
        self.variance = (1 - weight) * (self.variance + weight * off * off)
        self.count += 1


@dataclass
class PageHinkley:
    """Alarm where the sum of ``x - mean - tolerance`` has risen by more than ``threshold`` above its lowest point."""

    tolerance: float = 0.1
    threshold: float = 0.5
    mean: float = 0.0
    count: int = 0
    total: float = 0.0
    lowest: float = 0.0

    def rises(self, value: float) -> bool:
        self.count += 1
        self.mean += (value - self.mean) / self.count
        self.total += value - self.mean - self.tolerance
        self.lowest = min(self.lowest, self.total)
        return self.total - self.lowest > self.threshold


@dataclass
class _Silo:
    norm: Usual = field(default_factory=Usual)
    cosine: Usual = field(default_factory=lambda: Usual(floor=SMALLEST))
    loss: PageHinkley = field(default_factory=PageHinkley)
    in_a_row: int = 0
    alarmed: bool = False

    def signals(self, update: Contributor) -> list[Signal]:
        found: list[Signal] = []
        if update.norm is not None and math.isfinite(update.norm) and self.norm.beyond(update.norm, 1):
            found.append("norm")
        if update.cosine is not None and self.cosine.beyond(update.cosine, -1):
            found.append("direction")
        loss = update.train.get("loss")
        if loss is not None and math.isfinite(loss) and loss > 0 and self.loss.rises(math.log(loss)):
            found.append("loss")
        return found


class DriftWatch:
    """Of all silos of a run."""

    def __init__(self) -> None:
        self._silos: dict[str, _Silo] = {}

    def observe(self, closed: RoundClosed) -> list[DriftAlarm]:
        """Alarms of this round; each silo's next one comes after a calm update."""
        found = (self._alarm(closed.version, update) for update in closed.contributors)
        return [alarm for alarm in found if alarm is not None]

    def _alarm(self, version: int, update: Contributor) -> DriftAlarm | None:
        silo = self._silos.setdefault(update.silo, _Silo())
        signals = silo.signals(update)
        if len(signals) < TOGETHER:
            silo.in_a_row, silo.alarmed = 0, False
            return None
        silo.in_a_row += 1
        if silo.in_a_row < IN_A_ROW or silo.alarmed:
            return None
        silo.alarmed = True
        return DriftAlarm(
            silo=update.silo,
            version=version,
            signals=signals,
            norm=update.norm,
            cosine=update.cosine,
            loss=update.train.get("loss"),
        )

"""When silos train and when a round closes. Pure: no clock, no I/O, no randomness.

Opening version ``v`` draws a cohort. A member that is online, idle and has not yet delivered on ``v`` may
train. The round closes on ``buffer_size`` updates no staler than ``max_staleness``, or a ``grace`` later; or at
the deadline, or when nothing more can come, if it holds ``min_updates``. Silos whose update the gate refused are
not waited for.
No average is of fewer than ``min_silos`` silos, whoever is refused, declines or is lost. Synchronous,
semi-synchronous and asynchronous training are settings of these numbers (DESIGN section 5).
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Self

from pydantic import BaseModel, Field, model_validator

from orchestrator.core.messages import SiloId, Update
from orchestrator.core.protocols import in_order

Sample = Callable[[int, Sequence[SiloId], int], Collection[SiloId]]
"""Draws ``size`` of the candidates for a version."""


class RoundPolicy(BaseModel, frozen=True, extra="forbid"):
    """The numbers that make a mode."""

    cohort_size: int = Field(ge=1)
    buffer_size: int = Field(ge=1)
    min_updates: int = Field(default=1, ge=1)
    """Silos with which a round may close while others could still deliver."""
    min_silos: int = Field(default=1, ge=1)
    """Fewest silos in an average: two updates of one silo count once."""
    max_staleness: int = Field(default=0, ge=0)
    staleness_exponent: float = Field(default=0.5, ge=0)
    grace: float = Field(default=0, ge=0)
    """Share of the time that a full buffer took, for which the round then waits for the rest."""
    deadline_s: float | None = Field(default=None, gt=0)
    hand_in_s: float | None = Field(default=None, gt=0)
    """Silos at work at the deadline have so many seconds to hand in what is done; None: they are not asked to."""
    max_attempts: int = Field(default=3, ge=1)
    required: frozenset[SiloId] = frozenset()
    """A round does not close without these."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.min_updates <= self.buffer_size <= self.cohort_size:
            raise ValueError(
                "need min_updates <= buffer_size <= cohort_size, got "
                f"{self.min_updates}, {self.buffer_size}, {self.cohort_size}"
            )
        if self.min_silos > self.min_updates:
            raise ValueError(f"need min_silos <= min_updates, got {self.min_silos}, {self.min_updates}")
        if len(self.required) > self.cohort_size:
            raise ValueError(f"{len(self.required)} required silos do not fit a cohort of {self.cohort_size}")
        return self

    @property
    def most_stale(self) -> int:
        """Versions that an update can really be late: none where every round waits for its whole cohort."""
        waits = self.buffer_size == self.cohort_size and self.deadline_s is None
        return 0 if waits else self.max_staleness

    @property
    def fill(self) -> float:
        """Share of a full step that one version is: less than one where updates may be several versions late."""
        return self.buffer_size / self.cohort_size if self.most_stale > 1 else 1.0

    def discount(self, staleness: int) -> float:
        """Factor on the vector (not on its weight, where it would cancel): ``(1 + staleness) ** -a``.

        Xie et al. 2019 (FedAsync), Nguyen et al. 2022 (FedBuff).
        """
        return float((1 + staleness) ** -self.staleness_exponent)


@dataclass
class Rounds:
    """The state of the current round."""

    policy: RoundPolicy
    sample: Sample
    version: int = -1
    opened_at: float = 0.0
    arrived_at: float = 0.0
    """When the newest update came that counts; as the round opened, before any did."""
    cohort: frozenset[SiloId] = frozenset()
    in_flight: dict[SiloId, int] = field(default_factory=dict)
    """Silo -> version it is training."""
    delivered: dict[SiloId, int] = field(default_factory=dict)
    """Silo -> newest version it delivered on."""
    attempts: Counter[SiloId] = field(default_factory=Counter)
    buffer: list[Update] = field(default_factory=list)
    full_at: float | None = None
    """When an arrival first filled the buffer of this round."""
    refused: set[SiloId] = field(default_factory=set)
    """Silos whose update of this version the gate refused: a full buffer does not wait for them."""

    def open(self, candidates: Collection[SiloId], now: float) -> list[SiloId]:
        """Open the next version; return the silos whose work can no longer be used."""
        self.version += 1
        self.opened_at = self.arrived_at = now
        self.full_at = None
        self.attempts.clear()
        self.refused.clear()
        self.buffer = [update for update in self.buffer if self._usable(update.version)]
        rest = sorted(set(candidates) - self.policy.required)
        size = max(0, min(self.policy.cohort_size - len(self.policy.required), len(rest)))
        self.cohort = self.policy.required | frozenset(self.sample(self.version, rest, size))
        return [silo for silo, version in self.in_flight.items() if not self._usable(version)]

    @property
    def deadline(self) -> float:
        return self.opened_at + self.policy.deadline_s if self.policy.deadline_s else math.inf

    @property
    def closing(self) -> float:
        """When the round no longer waits for anybody: at the deadline, or when work must have been handed in."""
        return self.deadline + (self.policy.hand_in_s or 0)

    @property
    def grace_over(self) -> float:
        """When a round whose buffer is full closes without the rest."""
        if self.full_at is None:
            return self.opened_at
        return min(self.full_at + self.policy.grace * (self.full_at - self.opened_at), self.closing)

    def next_moment(self, now: float) -> float:
        """When the passing of time alone may next change something; infinite if never."""
        moments = (self.deadline, self.closing, self.grace_over)
        return min((moment for moment in moments if moment > now), default=math.inf)

    def vacancies(self, online: Collection[SiloId]) -> list[SiloId]:
        """Cohort members that may start training now."""
        free = self.policy.cohort_size - len(self.in_flight)
        idle = self.cohort & set(online) - self.in_flight.keys()
        ready = [silo for silo in sorted(idle) if self._may_train(silo)]
        return ready[: max(free, 0)]

    def launched(self, silo: SiloId) -> None:
        self.in_flight[silo] = self.version
        self.attempts[silo] += 1

    def arrived(self, update: Update, now: float) -> bool:
        """Buffer an update; False when it is too stale to use or the silo delivered on that version already."""
        if self.in_flight.get(update.silo) == update.version:
            del self.in_flight[update.silo]
        if self.delivered.get(update.silo, -1) >= update.version or not self._usable(update.version):
            return False
        self.delivered[update.silo] = update.version
        self.buffer.append(update)
        self.arrived_at = now
        if self.full_at is None and self._full:
            self.full_at = now
        return True

    def lost(self, silo: SiloId) -> None:
        """The silo's work in hand will not come; it may try again while it has attempts left."""
        self.in_flight.pop(silo, None)

    def declined(self, silo: SiloId) -> None:
        """The silo will not train this version, however often it is asked."""
        self.in_flight.pop(silo, None)
        self.attempts[silo] = self.policy.max_attempts

    def perished(self, update: Update) -> None:
        """A buffered update was lost with its silo before it was folded; the silo may train again."""
        self.buffer = [each for each in self.buffer if each is not update]
        if self.delivered.get(update.silo) == update.version:
            self.delivered[update.silo] = update.version - 1

    def spoilt(self, update: Update) -> None:
        """A buffered update cannot be used, and its silo did nothing wrong: it may train as if it had not yet."""
        self.perished(update)
        self.attempts[update.silo] = 0

    def refuse(self, silo: SiloId, version: int) -> None:
        """The gate refused this silo's update: for that version it counts as absent, and may not try it again."""
        if self.in_flight.get(silo) == version:
            del self.in_flight[silo]
        self.delivered[silo] = max(version, self.delivered.get(silo, -1))
        if version == self.version:
            self.refused.add(silo)

    def give_back(self, updates: Sequence[Update]) -> None:
        """Updates of a round that could not close after all."""
        self.buffer = [*updates, *self.buffer]

    def due(self, online: Collection[SiloId], now: float) -> bool:
        """Whether the round closes now: full and its grace over, or out of time or of hope with enough in hand."""
        if self.missing() or self.num_lacking():
            return False
        exhausted = not self.in_flight and not self.vacancies(online)
        if self._full:
            return exhausted or now >= self.grace_over
        return (exhausted or now >= self.closing) and len(self._delivered()) >= self.policy.min_updates

    def missing(self) -> list[SiloId]:
        """Required silos that have not delivered a usable update."""
        return sorted(self.policy.required - self._delivered())

    def num_lacking(self) -> int:
        """Silos that an average of what is in hand still lacks."""
        return max(0, self.policy.min_silos - len(self._delivered()))

    def awaited(self) -> list[SiloId]:
        """Cohort members without a buffered update: whom an open round waits for."""
        return sorted(self.cohort - self._delivered())

    def close(self) -> list[Update]:
        """Empty the buffer, in the order of the sum, so that arrival order does not matter."""
        updates, self.buffer = list(in_order(self.buffer)), []
        return updates

    def hopeless(self, online: Collection[SiloId]) -> bool:
        """Nothing is on its way, nobody may start, and what there is does not suffice to close."""
        return not self.in_flight and not self.vacancies(online) and not self.due(online, self.opened_at)

    @property
    def _full(self) -> bool:
        return len(self.buffer) >= min(self.policy.buffer_size, len(self.cohort - self.refused))

    def _delivered(self) -> set[SiloId]:
        """Silos with an update in the buffer."""
        return {update.silo for update in self.buffer}

    def _usable(self, version: int) -> bool:
        return 0 <= self.version - version <= self.policy.max_staleness

    def _may_train(self, silo: SiloId) -> bool:
        fresh = self.delivered.get(silo, -1) < self.version
        return fresh and self.attempts[silo] < self.policy.max_attempts

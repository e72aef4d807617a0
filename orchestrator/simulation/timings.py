"""How long a silo's work takes on the virtual clock."""

import math
from dataclasses import dataclass
from typing import Protocol

from orchestrator.core.messages import SiloId


@dataclass(frozen=True, slots=True)
class Task:
    """One training, or one evaluation, that a silo was given."""

    silo: SiloId
    number: int
    """Of the silo's tasks, from 0."""
    num_steps: int
    """Local steps; 0 for an evaluation."""
    num_epochs: float
    """The same in passes over the silo's rows."""
    bytes_down: int
    bytes_up: int


@dataclass(frozen=True, slots=True)
class Spent:
    """Virtual seconds of a task."""

    down: float = 0.0
    """The model on its way to the silo."""
    other: float = 0.0
    """At the silo, besides training: loading, evaluating, packing."""
    train: float = 0.0
    up: float = 0.0
    """The update on its way to the driver."""

    @property
    def total(self) -> float:
        return self.down + self.other + self.train + self.up


class Timings(Protocol):
    """Where the durations come from. The same task has the same duration, whenever it is asked for."""

    def spent(self, task: Task) -> Spent: ...

    def away(self, silo: SiloId, now: float) -> bool:
        """Whether the silo cannot be reached at this moment."""
        ...

    def next_outage(self, silo: SiloId, now: float) -> float:
        """When the silo will be lost next; infinity for never."""
        ...


class Steady:
    """Silos that are always there."""

    def away(self, silo: SiloId, now: float) -> bool:
        return False

    def next_outage(self, silo: SiloId, now: float) -> float:
        return math.inf

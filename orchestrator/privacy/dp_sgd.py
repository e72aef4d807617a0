"""DP-SGD: what a silo's training says of any one record, or patient, is bounded and drowned in noise."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, Field, model_validator

from orchestrator.core.protocols import Facts
from orchestrator.core.vector import Parts, Vector


class DpSgd(BaseModel, frozen=True, extra="forbid"):
    """Every local step takes each of the silo's records by chance, cuts each record's gradient to ``max_grad_norm``,
    adds them up, adds Gaussian noise of ``noise_multiplier`` times that, and divides by ``local.batch_size``, which is
    the expected number of records (Abadi et al. 2016, algorithm 1, arXiv 1607.00133). Where a silo has fewer, all
    are in every step, and it divides by the same number: the noise would tell how few they are otherwise.

    All of it happens in the silo's training, so that neither the driver nor the other silos need be trusted, and what
    is done with the update afterwards costs no privacy. The update itself passes through here unchanged.
    """

    name: Literal["dp_sgd"] = "dp_sgd"
    max_grad_norm: float = Field(gt=0)
    noise_multiplier: float | None = Field(default=None, gt=0)
    """Deviation of the noise over ``max_grad_norm``."""
    target_epsilon: float | None = Field(default=None, gt=0)
    """Of the whole job, at each silo: the silo finds the noise for it before round 0, by its own number of records and
    after what its data have given away before."""
    delta: float = Field(default=1e-5, gt=0, lt=1)
    """Well below one over the number of a silo's records."""
    unit: Literal["record", "patient"] = "record"
    """Whose presence nobody can tell. ``patient``: all records of one patient together; a step takes patients by
    chance, and cuts the gradient of each one's mean loss. ``local.batch_size`` then counts patients."""
    column: str | None = None
    """Where the rows name their patient."""
    max_records: int = Field(default=16, ge=1)
    """Of a patient in one step; of more, so many are drawn."""
    batch_norm: Literal["refuse", "replace"] = "refuse"
    """Batch normalisation mixes records, so that none has a gradient of its own. ``replace``: by group normalisation
    (Wu and He 2018), at every silo alike, before the first round."""
    engine: Literal["auto", "ghost", "single"] = "auto"
    """``ghost``: norms and the sum of what is left of all records' gradients, without the gradients where layers allow.
    ``single``: one record after the other. ``auto``: ghost, where that gives the same on some of the silo's records."""
    physical_batch: int = Field(default=64, ge=1)
    """Records whose gradients are in memory at a time."""
    insecure_test_noise_seed: int | None = None
    """Noise and draws that repeat, and protect nobody."""
    extra: ClassVar[Mapping[str, int]] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.noise_multiplier is None) == (self.target_epsilon is None):
            raise ValueError("give 'noise_multiplier' or 'target_epsilon', one of the two")
        if (self.unit == "patient") != (self.column is not None):
            raise ValueError(
                "give 'column', where the rows name their patient, with 'unit: patient', and only then"
            )
        if self.unit == "patient" and self.engine == "ghost":
            raise ValueError("engine: ghost clipping is of single records; leave it out with 'unit: patient'")
        if self.insecure_test_noise_seed is not None and self.target_epsilon is not None:
            raise ValueError("insecure_test_noise_seed: noise that repeats keeps no 'target_epsilon'")
        return self

    def adapted(self, settings: Mapping[str, float], facts: Facts) -> "Unchanged":
        return Unchanged(facts.bound)


@dataclass(frozen=True, slots=True)
class Unchanged:
    """A step that does nothing to an update: all has been done before."""

    bound: float | None

    def encode(self, x: Vector, rng: np.random.Generator) -> Vector:
        return x

    def finish(self, x: Vector, sensitivity: Callable[[float], float], rng: np.random.Generator) -> Vector:
        return x

    def next_settings(self, parts: Parts, total: float) -> Mapping[str, float]:
        return {}


def chance(num_units: int, batch_size: int) -> float:
    """With which a unit is in a step."""
    return min(1.0, batch_size / num_units)


def steps_per_epoch(num_units: int, batch_size: int) -> int:
    """Steps in which a unit takes part once, on average."""
    return math.ceil(num_units / batch_size)

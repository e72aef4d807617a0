"""Privacy of whole silos: updates of bounded length, and Gaussian noise on their sum.

The unit is all that one silo has. Neighbours are the sum with the silo's update and the sum in which zeros stand in its
place: who takes part is public, what it learned is not. (For "this data or any other" the length counts twice.)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, Field, model_validator

from orchestrator.core.errors import BadJob
from orchestrator.core.protocols import Facts
from orchestrator.core.vector import Parts, Vector
from orchestrator.privacy.accountant import calibrated
from orchestrator.privacy.clip import shortened
from orchestrator.privacy.noise import add_noise, fresh_key, insecure_key

BOUND = "clip_norm"
"""Name of the bound among the job's settings that evolve."""
STEPS = 8.0
"""Of the ring, at least, to a standard deviation of what a silo adds: rounding then hides as much as the noise."""
WITHIN = "within"
"""Part of an update that says whether it was within the bound."""


class Gaussian(BaseModel, frozen=True, extra="forbid"):
    """Noise of ``noise_multiplier`` times what one silo can move the result (McMahan et al. 2018, arXiv 1710.06963)."""

    extra: ClassVar[Mapping[str, int]] = {}
    name: Literal["gaussian"] = "gaussian"
    noise_multiplier: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Standard deviation of the noise over the sensitivity."""
    target_epsilon: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Instead: the smallest noise with which a silo that is in every version stays within it."""
    delta: float = Field(default=1e-5, gt=0, lt=1)
    """For which epsilon is told; well below one over the number of silos that could have been in the job."""
    where: Literal["driver", "silos"] = "driver"
    """``driver``: it adds the noise, once, and is trusted with the sum. ``silos``: each adds its part, so that the sum
    has enough with the fewest silos that an average may have, and more with more; nobody is trusted, where the
    combiner shows nothing but the sum."""
    insecure_test_noise_seed: int | None = None
    """For tests that compare bits: whoever knows it can take the noise away."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.noise_multiplier is None) == (self.target_epsilon is None):
            raise ValueError("give noise_multiplier, or target_epsilon with delta, and not both")
        if self.target_epsilon is not None and self.insecure_test_noise_seed is not None:
            raise ValueError("insecure_test_noise_seed: with a target the noise must be secret")
        return self

    def multiplier(self, num_versions: int) -> float:
        """The noise multiplier, calibrated where a target is stated. Raises `BadJob` where none meets it."""
        if self.noise_multiplier is not None:
            return self.noise_multiplier
        assert self.target_epsilon is not None
        return calibrated(self.target_epsilon, self.delta, 1.0, num_versions)

    def adapted(self, settings: Mapping[str, float], facts: Facts) -> "Noise":
        if facts.bound is None or facts.noise_multiplier is None:
            raise BadJob(
                "privacy: noise without a clip before it is no privacy: nothing bounds what a silo adds"
            )
        return Noise(self, facts.bound, facts.noise_multiplier, facts.min_silos)


class AdaptiveClip(BaseModel, frozen=True, extra="forbid"):
    """A clip whose bound follows a quantile of the updates' lengths (Andrew et al. 2021, arXiv 1905.03871, alg. 1).

    Each update brings along whether it was within the bound, as one more number, which gets the same noise as the
    others: it is scaled so that its own noise is ``sigma_b`` updates. The bound then moves by
    ``exp(-learning_rate * (fraction - quantile))``.
    """

    extra: ClassVar[Mapping[str, int]] = {WITHIN: 1}
    name: Literal["adaptive_clip"] = "adaptive_clip"
    initial_norm: float = Field(gt=0, allow_inf_nan=False)
    max_norm: float = Field(gt=0, allow_inf_nan=False)
    """The bound never gets larger."""
    quantile: float = Field(default=0.5, gt=0, lt=1)
    learning_rate: float = Field(default=0.2, gt=0, le=1)
    sigma_b: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Standard deviation of the noise on the *number* of updates within the bound. The smaller, the more of the noise
    multiplier goes into it; needed where there is noise."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.initial_norm > self.max_norm:
            raise ValueError(f"initial_norm {self.initial_norm:g} is above max_norm {self.max_norm:g}")
        return self

    def adapted(self, settings: Mapping[str, float], facts: Facts) -> "Within":
        norm = settings.get(BOUND, self.initial_norm)  # from the driver, which may say anything
        norm = min(norm if norm > facts.least_bound else facts.least_bound, self.max_norm)
        return Within(self, norm, self.scale(facts.noise_multiplier))

    def scale(self, noise_multiplier: float | None) -> float:
        """What one update within the bound adds, in bounds. Raises `BadJob` where ``sigma_b`` leaves nothing over.

        With noise of ``z`` times the length of the longer vector on all of its numbers, ``z_delta = (z^-2 - (2
        sigma_b)^-2)^(-1/2)`` of it, in bounds, is on those of the model, and ``sigma_b`` on the count."""
        if noise_multiplier is None or self.sigma_b is None:
            return 1.0
        z, spare = noise_multiplier, self.sigma_b**2 - noise_multiplier**2 / 4
        if spare <= 0:
            raise BadJob(
                f"adaptive_clip.sigma_b: {self.sigma_b:g} takes up all of noise_multiplier {z:g}: it must be above "
                f"half of it; {z:.3g} leaves 0.87 of the noise's strength, {2 * z:.3g} leaves 0.97"
            )
        return z / math.sqrt(spare)


@dataclass(frozen=True, slots=True)
class Noise:
    """`Gaussian` as it is for one version."""

    spec: Gaussian
    bound: float
    multiplier: float
    min_silos: int

    def encode(self, x: Vector, rng: np.random.Generator) -> Vector:
        if self.spec.where == "silos":
            add_noise(x, self.own_std, self._key(rng))
        return x

    def finish(self, x: Vector, sensitivity: Callable[[float], float], rng: np.random.Generator) -> Vector:
        if self.spec.where == "driver":
            add_noise(x, self.multiplier * sensitivity(self.bound), self._key(rng))
        return x

    def next_settings(self, parts: Parts, total: float) -> dict[str, float]:
        return {}

    @property
    def own_std(self) -> float:
        """Of what each silo adds to its update."""
        return self.multiplier * self.bound / math.sqrt(self.min_silos) if self.spec.where == "silos" else 0.0

    @property
    def reach(self) -> float:
        """An element of an update is larger once in 10^15: what a ring must have room for. What is cut off at a silo
        is no longer the noise that was accounted for."""
        return self.bound + 8 * self.own_std

    def multipliers(self, shares: Sequence[Sequence[float]]) -> list[float]:
        """Noise multiplier of one result for each silo. ``shares``: by silo, those of its updates in the result."""
        own = [math.fsum(each) for each in shares]
        if self.spec.where == "driver":
            return [self.multiplier * max(own) / each for each in own]
        std = math.sqrt(math.fsum(share**2 for each in shares for share in each) / self.min_silos)
        return [self.multiplier * std / each for each in own]

    def _key(self, rng: np.random.Generator) -> bytes:
        seed = self.spec.insecure_test_noise_seed
        return fresh_key() if seed is None else insecure_key(seed, rng)


@dataclass(frozen=True, slots=True)
class Within:
    """`AdaptiveClip` as it is for one version."""

    spec: AdaptiveClip
    norm: float
    """The bound on the strategy's part of the update."""
    scale: float

    @property
    def bound(self) -> float:
        """On the whole of it, rounding included."""
        return self.norm * math.hypot(1.0, self.scale / 2) * (1 + 2**-20)

    def encode(self, x: Vector, rng: np.random.Generator) -> Vector:
        longer = shortened(x[:-1], self.norm)
        x[-1] = self.norm * self.scale * (-0.5 if longer else 0.5)
        return x

    def finish(self, x: Vector, sensitivity: Callable[[float], float], rng: np.random.Generator) -> Vector:
        return x

    def next_settings(self, parts: Parts, total: float) -> dict[str, float]:
        found = float(parts[WITHIN][0]) / (self.norm * self.scale * total) + 0.5
        step = self.spec.learning_rate * (min(max(found, 0.0), 1.0) - self.spec.quantile)
        return {BOUND: min(self.norm * math.exp(-step), self.spec.max_norm)}

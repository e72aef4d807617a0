"""Clipping: no update is longer than the bound."""

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, Field

from orchestrator.core.protocols import Facts
from orchestrator.core.vector import Parts, Vector


class Clip(BaseModel, frozen=True, extra="forbid"):
    """Scales a longer update down to ``max_norm`` (McMahan et al. 2018, arXiv 1710.06963, flat clipping).

    The norm is that of the whole packed vector, so strategies that send a second vector share the bound.
    """

    extra: ClassVar[Mapping[str, int]] = {}
    name: Literal["clip"] = "clip"
    max_norm: float = Field(gt=0)

    def adapted(self, settings: Mapping[str, float], facts: Facts) -> Self:
        return self

    @property
    def bound(self) -> float:
        return self.max_norm

    def encode(self, x: Vector, rng: np.random.Generator) -> Vector:
        shortened(x, self.max_norm)
        return x

    def finish(self, x: Vector, sensitivity: Callable[[float], float], rng: np.random.Generator) -> Vector:
        return x

    def next_settings(self, parts: Parts, total: float) -> Mapping[str, float]:
        return {}


def shortened(x: Vector, bound: float) -> bool:
    """Scales ``x`` down, in place, to the bound on its norm; whether that was needed."""
    norm = norm_of(x)
    if norm > bound:
        # one part in 2^20 below the bound, so that rounding cannot lift the result above it
        x *= np.float32(bound / norm * (1 - 2**-20))
    return norm > bound


def norm_of(x: Vector) -> float:
    """Euclidean norm, summed in float64 over blocks; NaN or infinity in ``x`` make it non-finite."""
    return float(np.sqrt(squared_norm(x)))


def squared_norm(x: Vector, block: int = 1 << 16) -> float:
    """Squared Euclidean norm: float32 products per block, float64 across blocks."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(
            sum(np.float64(np.dot(y, y)) for y in (x[i : i + block] for i in range(0, x.size, block)))
        )

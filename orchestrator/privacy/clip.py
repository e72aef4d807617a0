"""Clipping: no update is longer than the bound."""

from typing import Literal

import numpy as np
from pydantic import BaseModel, Field

from orchestrator.core.vector import Vector


class Clip(BaseModel, frozen=True, extra="forbid"):
    """Scales a longer update down to ``max_norm`` (McMahan et al. 2018, arXiv 1710.06963, flat clipping).

    The norm is that of the whole packed vector, so strategies that send a second vector share the bound.
    """

    name: Literal["clip"] = "clip"
    max_norm: float = Field(gt=0)

    def encode(self, x: Vector, rng: np.random.Generator) -> Vector:
        norm = norm_of(x)
        if norm > self.max_norm:
            # one part in 2^20 below the bound, so that rounding cannot lift the result above it
            x *= np.float32(self.max_norm / norm * (1 - 2**-20))
        return x

    def finish(self, x: Vector, num_updates: int, rng: np.random.Generator) -> Vector:
        return x


def norm_of(x: Vector) -> float:
    """Euclidean norm, summed in float64 over blocks; NaN or infinity in ``x`` make it non-finite."""
    return float(np.sqrt(squared_norm(x)))


def squared_norm(x: Vector, block: int = 1 << 16) -> float:
    """Squared Euclidean norm: float32 products per block, float64 across blocks."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(
            sum(np.float64(np.dot(y, y)) for y in (x[i : i + block] for i in range(0, x.size, block)))
        )

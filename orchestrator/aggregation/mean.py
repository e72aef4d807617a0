"""The weighted mean."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import BaseModel, Field

from orchestrator.core.messages import SiloId
from orchestrator.core.vector import Vector

_CACHED = 1 << 14
"""Elements folded at a time: two float64 buffers of this length stay in a core's L2 cache."""


class Mean(BaseModel, frozen=True, extra="forbid"):
    """Sum of share times update in float64, in silo order, rounded once: the same bits in any arrival order."""

    name: Literal["mean"] = "mean"
    weights: Literal["examples", "uniform"] | dict[SiloId, float] = "examples"
    """``examples`` (McMahan et al. 2017), ``uniform``, or a number for each silo."""
    max_weight: float = Field(default=1e9, gt=0)
    """A larger weight is refused: one silo must not drown the others by a claim."""

    sealed: ClassVar[bool] = False

    def weight(self, silo: SiloId, num_examples: int) -> float:
        if isinstance(self.weights, dict):
            return float(self.weights[silo])
        return float(num_examples) if self.weights == "examples" else 1.0

    def sensitivity(self, clip: float, num_updates: int) -> float | None:
        return 2 * clip / num_updates if self.weights == "uniform" else None

    def merge(self, rows: Sequence[Vector], shares: Sequence[float], out: Vector) -> None:
        total, term = np.empty(_CACHED), np.empty(_CACHED)
        for start in range(0, out.size, _CACHED):
            stop = min(start + _CACHED, out.size)
            acc, tmp = total[: stop - start], term[: stop - start]
            np.multiply(rows[0][start:stop], shares[0], out=acc, dtype=np.float64)
            for row, share in zip(rows[1:], shares[1:], strict=True):
                np.multiply(row[start:stop], share, out=tmp, dtype=np.float64)
                acc += tmp
            out[start:stop] = acc

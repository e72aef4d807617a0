"""The weighted mean."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import BaseModel, Field

from orchestrator.core.messages import SiloId
from orchestrator.core.vector import Vector


class Mean(BaseModel, frozen=True, extra="forbid"):
    """Sum of share times update, element by element in silo order: the same bits in any arrival order and on any
    machine. In float32: the error, at most a float32 step per silo of the *update*, vanishes in the rounding of
    the model that it is added to (``docs/decisions/0003-blocks-in-silo-order.md``)."""

    name: Literal["mean"] = "mean"
    weights: Literal["examples", "uniform"] | dict[SiloId, float] = "examples"
    """``examples`` (McMahan et al. 2017), ``uniform``, or a number for each silo. A silo with most of the rows, or
    with a number far above the others', makes up most of the average, however many silos are in it."""
    max_weight: float = Field(default=1e9, gt=0)
    """A larger weight is refused: one silo must not drown the others by a claim."""

    sealed: ClassVar[bool] = False

    def weight(self, silo: SiloId, num_examples: int) -> float:
        if isinstance(self.weights, dict):
            return float(self.weights[silo])
        return float(num_examples) if self.weights == "examples" else 1.0

    def sensitivity(self, clip: float, shares: Sequence[float]) -> float | None:
        """Numbers of rows are a silo's own, and would have to be hidden as well."""
        return None if self.weights == "examples" else clip * max(shares)

    def merge(self, rows: Sequence[Vector], shares: Sequence[float], out: Vector) -> None:
        np.multiply(rows[0], np.float32(shares[0]), out=out)
        term = np.empty_like(out)
        for row, share in zip(rows[1:], shares[1:], strict=True):
            np.multiply(row, np.float32(share), out=term)
            out += term

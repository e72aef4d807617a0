"""FedProx: a pull towards the model that training started from."""

from typing import Literal

from pydantic import Field

from orchestrator.core.protocols import Array, GradAt, LocalRun
from orchestrator.strategies.base import Averaging


class FedProx(Averaging, frozen=True):
    """Adds ``mu / 2 * |params - anchor|^2`` to the local loss (Li et al. 2020, arXiv 1812.06127)."""

    name: Literal["fedprox"] = "fedprox"
    mu: float = Field(default=0.01, ge=0)

    def direction(self, run: LocalRun, grad_at: GradAt) -> Array:
        gradient = grad_at(run.params)
        if self.mu:
            gradient += self.mu * (run.params - run.anchor)
        return gradient

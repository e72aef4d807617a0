"""Reptile: a small step towards where the silos' trainings lead."""

from typing import Literal

import numpy as np
from pydantic import Field

from orchestrator.core.messages import CohortInfo
from orchestrator.core.protocols import State
from orchestrator.core.vector import Parts
from orchestrator.strategies.base import Averaging


class Reptile(Averaging, frozen=True):
    """``params += epsilon * mean delta`` (Nichol et al. 2018, algorithm 2, arXiv 1803.02999). To the bit this is FedAvg
    with a server rate of ``epsilon``: what makes it meta-learning is that the model is judged after a silo's steps."""

    name: Literal["reptile"] = "reptile"
    epsilon: float = Field(default=0.5, gt=0, le=1)

    def step(self, state: State, mean: Parts, cohort: CohortInfo) -> State:
        delta = mean["delta"]
        delta *= np.float32(self.epsilon)
        return super().step(state, {**mean, "delta": delta}, cohort)

"""FedNova: silos that make different numbers of steps pull with equal strength."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from orchestrator.core.messages import CohortInfo
from orchestrator.core.protocols import LocalRun, Report, State
from orchestrator.core.vector import Parts
from orchestrator.strategies.base import Averaging


class FedNova(Averaging, frozen=True):
    """Deltas divided by their path, the mean multiplied by the mean path (Wang et al. 2020, eq. 4-6, arXiv
    2007.07481). The path contains the learning rate, so silos may differ in it.

    A silo with a tiny path would be blown up without limit (NIID-Bench reports 10 % accuracy under quantity
    skew): its factor is capped at ``max_ratio`` times the mean path of the version before.
    """

    scalars: ClassVar[frozenset[str]] = frozenset({"path", "capped"})
    step_invariant: ClassVar[bool] = True
    name: Literal["fednova"] = "fednova"
    max_ratio: float = Field(default=8.0, ge=1)

    def init(self, model: Parts) -> State:
        return {**super().init(model), "path": np.zeros(1, np.float32)}

    def broadcast(self, state: State) -> Parts:
        return {**super().broadcast(state), "path": state["path"]}

    def report(self, run: LocalRun) -> Report:
        floor = float(run.received["path"][0]) / self.max_ratio
        divisor = max(run.path, floor)
        delta = run.take_delta()
        if divisor > 0:
            delta /= divisor
        return Report({"delta": delta}, {"path": run.path, "capped": float(run.path < floor)})

    def step(self, state: State, mean: Parts, cohort: CohortInfo) -> State:
        path = np.float32(cohort.mean("path"))
        delta = mean["delta"]
        delta *= path
        return {**super().step(state, {**mean, "delta": delta}, cohort), "path": np.array([path])}

"""Meta-SGD: how far each parameter should move at a silo is learnt with the model."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from orchestrator.core.messages import CohortInfo
from orchestrator.core.protocols import Array, GradAt, LocalRun, Report, State
from orchestrator.core.vector import Parts
from orchestrator.strategies.base import Averaging


class MetaSgd(Averaging, frozen=True):
    """As FOMAML with one inner step, whose rate is a vector that silos learn and the driver averages (Li et al. 2017,
    arXiv 1707.09835; over silos Chen et al. 2018, algorithm 1, arXiv 1802.07876). The gradient of the rate is
    ``-g_support * g_query``; that of the model is taken to the first order. Twice the bytes each way.

    With ``alpha_lr`` 0 it is FOMAML; with ``alpha`` 0, too, FedAvg on the second half of every batch.
    """

    halves: ClassVar[bool] = True
    one_gradient: ClassVar[bool] = False
    name: Literal["meta_sgd"] = "meta_sgd"
    alpha: float = Field(default=0.01, ge=0)
    """First value of every rate."""
    alpha_lr: float | None = Field(default=None, ge=0)
    """Rate at which they are learnt; default: the local optimizer's, as in the paper."""

    def init(self, model: Parts) -> State:
        return {**super().init(model), "alpha": np.full_like(model["params"], self.alpha)}

    def broadcast(self, state: State) -> Parts:
        return {**super().broadcast(state), "alpha": state["alpha"]}

    def layout(self, state: State) -> dict[str, int]:
        return {"delta": state["params"].size, "alpha": state["alpha"].size, **super().layout(state)}

    def direction(self, run: LocalRun, grad_at: GradAt) -> Array:
        alpha = run.memo.get("alpha", run.received["alpha"])
        inner = grad_at(run.params, "support") * 1.0
        outer = grad_at(run.params - alpha * inner, "query")
        rate = run.lr if self.alpha_lr is None else self.alpha_lr
        run.memo["alpha"] = alpha + rate * inner * outer
        return outer

    def report(self, run: LocalRun) -> Report:
        alpha = run.received["alpha"]
        learnt = run.memo.get("alpha", alpha) - alpha
        return Report({"delta": run.take_delta(), "alpha": learnt}, {})

    def step(self, state: State, mean: Parts, cohort: CohortInfo) -> State:
        return {**super().step(state, mean, cohort), "alpha": state["alpha"] + mean["alpha"]}

    def adaptation(self, received: Mapping[str, Array]) -> Array | float | None:
        return received["alpha"]

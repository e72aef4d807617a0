"""FedDyn: dynamic regularisation, so that the silos' own optima move to the federation's."""

from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from orchestrator.core.messages import CohortInfo
from orchestrator.core.protocols import Array, GradAt, LocalRun, Report, State
from orchestrator.core.vector import Parts
from orchestrator.strategies.base import Averaging
from orchestrator.strategies.server import Sgd


class FedDyn(Averaging, frozen=True):
    """Each silo minimises ``f_i(y) - <h_i, y> + alpha / 2 * |y - anchor|^2`` and adds what is left of its gradient to
    ``h_i``; the driver keeps the mean of all ``h_i`` and moves on by it (Acar et al. 2021, algorithm 1, arXiv
    2111.04263).

    Exact whatever the number of local steps: where nothing moves any more, ``h_i`` is the silo's gradient and the
    weighted mean of the gradients is zero. Nothing travels besides the delta. In the paper all silos weigh the same;
    with other weights that holds as well, as long as all of them take part in every round.
    """

    step_invariant: ClassVar[bool] = True
    reweighs: ClassVar[bool] = False
    name: Literal["feddyn"] = "feddyn"
    alpha: float = Field(default=0.1, ge=0)
    """How strongly a silo is held to the model that it received; 0: FedAvg."""

    @model_validator(mode="after")
    def _no_server(self) -> Self:
        if self.alpha and self.server != Sgd():
            raise ValueError("feddyn moves the model by a rule of its own; it takes no server optimizer")
        return self

    def init(self, model: Parts) -> State:
        state = super().init(model)
        return {**state, "pull": np.zeros_like(model["params"])} if self.alpha else state

    def direction(self, run: LocalRun, grad_at: GradAt) -> Array:
        gradient = grad_at(run.params)
        if self.alpha:
            gradient -= run.kept["pull"]
            gradient += self.alpha * (run.params - run.anchor)
        return gradient

    def report(self, run: LocalRun) -> Report:
        delta = run.take_delta()
        if self.alpha:
            run.kept["pull"] = run.kept["pull"] - self.alpha * delta
        return Report({"delta": delta}, {})

    def step(self, state: State, mean: Parts, cohort: CohortInfo) -> State:
        if not self.alpha:
            return super().step(state, mean, cohort)
        delta = mean["delta"]
        pull = state["pull"] - np.float32(self.alpha * cohort.share) * delta
        delta -= pull / np.float32(self.alpha)
        return {**super().step(state, mean, cohort), "pull": pull}

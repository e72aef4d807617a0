"""SCAFFOLD: control variates against client drift."""

from typing import ClassVar, Literal

import numpy as np

from orchestrator.core.messages import CohortInfo
from orchestrator.core.protocols import Array, GradAt, LocalRun, Report, State
from orchestrator.core.vector import Parts
from orchestrator.strategies.base import Averaging
from orchestrator.strategies.mean_gradient import mean_gradient, note


class Scaffold(Averaging, frozen=True):
    """Cancels the difference between the silo's and the federation's gradients (Karimireddy et al. 2020,
    algorithm 1 option II, arXiv 1910.06378).

    The divisor is the path ``sum of lr x applied gradients``, which equals ``K * lr`` for plain SGD and stays
    right with local momentum, where ``K * lr`` diverges. With another optimizer than SGD there is no such path, and the
    new control is the mean of the raw gradients, which option II says in other words. Model and control use the same
    weights: with other weights the fixed point is another optimum.
    """

    step_invariant: ClassVar[bool] = True
    reweighs: ClassVar[bool] = False
    name: Literal["scaffold"] = "scaffold"

    def init(self, model: Parts) -> State:
        return {**super().init(model), "control": np.zeros_like(model["params"])}

    def broadcast(self, state: State) -> Parts:
        return {**super().broadcast(state), "control": state["control"]}

    def layout(self, state: State) -> dict[str, int]:
        return {"delta": state["params"].size, "control": state["params"].size, **super().layout(state)}

    def direction(self, run: LocalRun, grad_at: GradAt) -> Array:
        gradient = grad_at(run.params)
        note(run, gradient)
        gradient += run.received["control"]
        gradient -= run.kept["control"]
        return gradient

    def report(self, run: LocalRun) -> Report:
        delta, old = run.take_delta(), run.kept["control"]
        new = self._new(run, delta, old) if run.num_steps else old
        run.kept["control"] = new
        return Report({"delta": delta, "control": new - old}, {})

    def _new(self, run: LocalRun, delta: Array, old: Array) -> Array:
        if not run.exact_path:
            return mean_gradient(run)
        return old - run.received["control"] - delta / run.path

    def step(self, state: State, mean: Parts, cohort: CohortInfo) -> State:
        control = state["control"] + np.float32(cohort.share) * mean["control"]
        return {**super().step(state, mean, cohort), "control": control}

"""FedNova: silos that make different steps, or different numbers of them, pull with equal strength."""

import math
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from orchestrator.core.messages import CohortInfo
from orchestrator.core.protocols import Array, GradAt, LocalRun, Report, State
from orchestrator.core.vector import Parts
from orchestrator.strategies.base import Averaging
from orchestrator.strategies.mean_gradient import mean_gradient, note


class FedNova(Averaging, frozen=True):
    """Deltas divided by their path, the mean multiplied by the mean path (Wang et al. 2020, eq. 4-6, arXiv
    2007.07481), so that silos may differ in learning rate, momentum, batch size and number of steps: the path
    contains them.

    A silo with another optimizer than SGD (Adam, ...) has no such path (Wang et al. 2021, arXiv 2106.02305: its
    objective is another one). It reports the mean of its raw gradients in the delta's place. For plain SGD that is the
    same; for any optimizer the weighted sum of both vanishes at the federation's optimum as the rates go to zero.
    Steps are then as long as those of the silos with SGD, or, where there are none, as the silos' own.

    Rounds of a part of the silos share one mean path, a moving one: in the paper each has its own.

    A silo with a tiny path would be blown up without limit (NIID-Bench reports 10 % accuracy under quantity
    skew): its factor is capped at ``max_ratio`` times the mean path of the version before.
    """

    scalars: ClassVar[frozenset[str]] = frozenset({"path", "capped", "exact", "slope"})
    step_invariant: ClassVar[bool] = True
    name: Literal["fednova"] = "fednova"
    max_ratio: float = Field(default=8.0, ge=1)

    def init(self, model: Parts) -> State:
        return {**super().init(model), "path": np.zeros(1, np.float32)}

    def broadcast(self, state: State) -> Parts:
        return {**super().broadcast(state), "path": state["path"]}

    def direction(self, run: LocalRun, grad_at: GradAt) -> Array:
        gradient = grad_at(run.params)
        note(run, gradient)
        return gradient

    def report(self, run: LocalRun) -> Report:
        if not run.exact_path:
            return _of_gradients(run)
        floor = float(run.received["path"][0]) / self.max_ratio
        divisor = max(run.path, floor)
        delta = run.take_delta()
        if divisor > 0:
            delta /= divisor
        scalars = {"path": run.path, "capped": float(run.path < floor), "exact": 1.0, "slope": 0.0}
        return Report({"delta": delta}, scalars)

    def step(self, state: State, mean: Parts, cohort: CohortInfo) -> State:
        path = np.float32(_usual(float(state["path"][0]), _mean_path(cohort), cohort.share))
        delta = mean["delta"]
        delta *= path
        return {**super().step(state, {**mean, "delta": delta}, cohort), "path": np.array([path])}


def _usual(before: float, now: float, share: float) -> float:
    """The mean path. Where rounds are of a part of the silos, a moving mean over as many updates as there are silos: a
    round of those with short paths must not count for less."""
    return before + share * (now - before) if before and share < 1 else now


def _of_gradients(run: LocalRun) -> Report:
    gradient, moved = mean_gradient(run), _norm(run.take_delta())
    slope = _norm(gradient)
    path = moved / slope if slope else 0.0
    return Report({"delta": -gradient}, {"path": path, "capped": 0.0, "exact": 0.0, "slope": slope})


def _mean_path(cohort: CohortInfo) -> float:
    """Of the silos whose path is exact. Where there are none, weighted by the gradients as well: the step is then never
    longer than the silos' own are on average, however small one silo's gradient is."""
    if all(each["exact"] for each in cohort.scalars):
        return cohort.mean("path")
    known = any(each["exact"] for each in cohort.scalars)
    counted = [
        weight * (each["exact"] if known else each["slope"])
        for weight, each in zip(cohort.weights, cohort.scalars, strict=True)
    ]
    total = sum(counted)
    paths = (each["path"] for each in cohort.scalars)
    return sum(w * path for w, path in zip(counted, paths, strict=True)) / total if total else 0.0


def _norm(vector: Array) -> float:
    return math.sqrt(float(vector @ vector))

"""FedAsync: every local model is mixed into the global one as it comes."""

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from orchestrator.core.messages import CohortInfo
from orchestrator.core.protocols import Array, GradAt, LocalRun, Report, State
from orchestrator.core.vector import Parts
from orchestrator.strategies.base import Averaging
from orchestrator.strategies.server import Sgd


class FedAsync(Averaging, frozen=True):
    """``params = (1 - alpha_t) * params + alpha_t * local``, where ``alpha_t = alpha * s(staleness)`` (Xie et al. 2019,
    algorithm 1 and section 5, arXiv 1903.03934): the local model itself is mixed in, not what changed in it, so that
    a late one also pulls the model back to where it came from.

    As published, to compare with: it converges to the optimum of whoever delivers most often. Several models that
    come at once are mixed in one after the other.
    """

    reweighs: ClassVar[bool] = False
    sends_model: ClassVar[bool] = True
    own_weights: ClassVar[bool] = True
    name: Literal["fedasync"] = "fedasync"
    alpha: float = Field(default=0.6, gt=0, le=1)
    """How much of a fresh local model is mixed in."""
    discount: Literal["constant", "polynomial", "hinge"] = "polynomial"
    """``s``: 1; or ``(1 + staleness) ** -a``; or 1 up to ``b`` and ``1 / (a * (staleness - b) + 1)`` beyond."""
    a: float | None = Field(default=None, gt=0)
    """Default 0.5 for ``polynomial``, 10 for ``hinge``."""
    b: int = Field(default=4, ge=0)
    rho: float = Field(default=0.005, ge=0)
    """Pulls local training towards the model that it started from: ``rho / 2 * |params - anchor|^2``."""

    @model_validator(mode="after")
    def _no_server(self) -> Self:
        if self.server != Sgd():
            raise ValueError("fedasync mixes models; it takes no server optimizer (give 'alpha')")
        return self

    def s(self, staleness: int) -> float:
        """Share of ``alpha`` with which a model so many versions late is mixed in."""
        if self.discount == "polynomial":
            return float((1 + staleness) ** -(0.5 if self.a is None else self.a))
        if self.discount == "hinge" and staleness > self.b:
            return 1 / ((10.0 if self.a is None else self.a) * (staleness - self.b) + 1)
        return 1.0

    def layout(self, state: State) -> dict[str, int]:
        sizes = {"model": state["params"].size}
        return {**sizes, "buffers": state["buffers"].size} if "buffers" in state else sizes

    def direction(self, run: LocalRun, grad_at: GradAt) -> Array:
        gradient = grad_at(run.params)
        if self.rho:
            gradient += self.rho * (run.params - run.anchor)
        return gradient

    def report(self, run: LocalRun) -> Report:
        return Report({"model": run.params}, {})

    def weigh(self, cohort: CohortInfo) -> Sequence[float]:
        """What is left of each model once those after it are mixed in."""
        weights, left = [], 1.0
        for staleness in reversed(cohort.staleness or (0,) * len(cohort.weights)):
            alpha = self.alpha * self.s(staleness)
            weights.append(alpha * left)
            left *= 1 - alpha
        return weights[::-1]

    def step(self, state: State, mean: Parts, cohort: CohortInfo) -> State:
        params = mean["model"]
        kept = 1 - sum(self.weigh(cohort))
        if kept:
            params = params + kept * state["params"]
        moved = {**state, "params": params}
        return {**moved, "buffers": state["buffers"] + mean["buffers"]} if "buffers" in state else moved

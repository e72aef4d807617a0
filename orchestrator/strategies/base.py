"""The halves that the FedAvg family shares; an algorithm overrides what it changes."""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import numpy as np
from pydantic import BaseModel, Field

from orchestrator.core.messages import CohortInfo
from orchestrator.core.protocols import (
    Array,
    GradAt,
    Kept,
    LocalRun,
    Phase,
    PrivateLayers,
    Report,
    State,
)
from orchestrator.core.symmetry import Symmetry
from orchestrator.core.vector import Parts
from orchestrator.strategies.server import Adagrad, Adam, Sgd, Yogi

Server = Annotated[Sgd | Adagrad | Adam | Yogi, Field(discriminator="name")]


class Averaging(BaseModel, frozen=True, extra="forbid"):
    """Local gradient steps, averaged deltas, a server optimizer. ``buffers`` (batch-norm statistics that the
    job shares) are averaged plainly: they are statistics, not parameters, so no optimizer touches them."""

    scalars: ClassVar[frozenset[str]] = frozenset()
    private_layers: ClassVar[PrivateLayers] = "none"
    keeps_optimizer: ClassVar[bool] = False
    contrasts: ClassVar[bool] = False
    shares_logits: ClassVar[bool] = False
    step_invariant: ClassVar[bool] = False
    reweighs: ClassVar[bool] = True
    sends_model: ClassVar[bool] = False
    permutes: ClassVar[bool] = False
    halves: ClassVar[bool] = False
    own_weights: ClassVar[bool] = False
    one_gradient: ClassVar[bool] = True
    server: Server = Sgd()

    @property
    def private_globs(self) -> tuple[str, ...]:
        return ()

    @property
    def whole(self) -> bool:
        return False

    @property
    def alone(self) -> int | None:
        return None

    def init(self, model: Parts) -> State:
        return {**model, **self.server.init(model["params"])}

    def broadcast(self, state: State) -> Parts:
        return {name: state[name] for name in ("params", "buffers") if name in state}

    def step(self, state: State, mean: Parts, cohort: CohortInfo) -> State:
        moved = self.server.apply(state, mean["delta"])
        if "buffers" in state:
            moved = {**moved, "buffers": state["buffers"] + mean["buffers"]}
        return {**state, **moved}

    def weigh(self, cohort: CohortInfo) -> Sequence[float]:
        factors = cohort.factors or (1.0,) * len(cohort.weights)
        return [weight * factor for weight, factor in zip(cohort.weights, factors, strict=True)]

    def fold(
        self,
        state: State,
        updates: Sequence[Parts],
        shares: Sequence[float],
        version: int,
        symmetries: Sequence[Symmetry],
    ) -> Parts:
        """Their weighted mean."""
        terms = [
            {name: np.float32(share) * part for name, part in update.items()}
            for update, share in zip(updates, shares, strict=True)
        ]
        mean = terms[0]
        for term in terms[1:]:
            for name in mean:
                mean[name] += term[name]
        return mean

    def layout(self, state: State) -> dict[str, int]:
        """Names and sizes of the parts that a silo reports, in the order of the packed vector."""
        sizes = {"delta": state["params"].size}
        return {**sizes, "buffers": state["buffers"].size} if "buffers" in state else sizes

    def begin(self, run: LocalRun) -> None:
        pass

    def direction(self, run: LocalRun, grad_at: GradAt) -> Array:
        return grad_at(run.params)

    def report(self, run: LocalRun) -> Report:
        return Report({"delta": run.take_delta()}, {})

    def phases(self, length: Phase) -> tuple[Phase, ...]:
        return (length,)

    def adaptation(self, received: Mapping[str, Array]) -> Array | float | None:
        return None

    def personal(self, kept: Kept, params: Array) -> Array | None:
        return None

"""AREA: asynchronous training whose outcome does not depend on who is fast."""

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from orchestrator.core.messages import CohortInfo
from orchestrator.core.protocols import LocalRun, Report, State
from orchestrator.core.vector import Parts
from orchestrator.strategies.base import Averaging
from orchestrator.strategies.server import Sgd


class Area(Averaging, frozen=True):
    """A silo sends what changed since its last local model that counted; the driver adds that times the silo's share
    (Iakovidou and Kim 2024, arXiv 2405.10123). So the model always is the weighted mean of all silos' last local
    models, the first model standing for those that have not delivered yet. It settles where synchronous FedAvg does, at
    any speeds and without a discount for staleness; like FedAvg, it is drawn to silos that make more local steps.

    The shares must be known from the start (``combine.weights``). A silo's first report is its whole local model, from
    which the driver takes the first model away.
    """

    scalars: ClassVar[frozenset[str]] = frozenset({"first"})
    reweighs: ClassVar[bool] = False
    sends_model: ClassVar[bool] = True
    own_weights: ClassVar[bool] = True
    name: Literal["area"] = "area"
    stretch: float = Field(default=1.0, gt=0)
    """Local models count as if training had gone so many times as far."""

    @model_validator(mode="after")
    def _no_server(self) -> Self:
        if self.server != Sgd():
            raise ValueError("area keeps the model the mean of the silos' own; it takes no server optimizer")
        return self

    def init(self, model: Parts) -> State:
        return {**model, "first": np.array(model["params"])}

    def layout(self, state: State) -> dict[str, int]:
        sizes = {"change": state["params"].size}
        return {**sizes, "buffers": state["buffers"].size} if "buffers" in state else sizes

    def report(self, run: LocalRun) -> Report:
        first, before = float("last" not in run.kept), run.kept["last"]
        last = run.params + (self.stretch - 1) * (run.params - run.anchor)
        run.kept["last"] = last
        return Report({"change": last - before}, {"first": first})

    def weigh(self, cohort: CohortInfo) -> Sequence[float]:
        """Shares of all silos, whoever else is in the round."""
        return [weight * cohort.mass for weight in cohort.weights]

    def step(self, state: State, mean: Parts, cohort: CohortInfo) -> State:
        joining = cohort.mean("first") * cohort.mass
        params = state["params"] + mean["change"]
        if joining:
            params -= np.float32(joining) * state["first"]
        moved = {**state, "params": params}
        return {**moved, "buffers": state["buffers"] + mean["buffers"]} if "buffers" in state else moved

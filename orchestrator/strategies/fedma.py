"""FedMA: units of the silos' networks are matched before they are averaged."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from orchestrator.core.messages import CohortInfo
from orchestrator.core.protocols import Array, GradAt, LocalRun, Report, State
from orchestrator.core.symmetry import Symmetry
from orchestrator.core.vector import Parts
from orchestrator.strategies.base import Averaging
from orchestrator.strategies.layerwise import held, match_layer, place_layers
from orchestrator.strategies.matching import align


class FedMA(Averaging, frozen=True):
    """Averages networks that were trained apart (Wang et al. 2020, arXiv 2002.06440), at fixed width: hidden units and
    channels are permuted so that they lie beside their like.

    ``at: silo``: a silo aligns its network with the received model, by the weights of all layers (`matching.align`),
    and reports the difference. That is additive: sums, codecs and privacy steps apply as they are. ``at: driver``: the
    published procedure, one layer per version. The driver matches a layer of all silos and averages it; the silos hold
    what is matched and train the rest on. It needs every silo's whole update, in the clear. One version more than there
    are layers to match, and it is FedAvg from then on. Class-frequency weights for the last layer are left out: the
    numbers of rows by class do not travel.

    While silos start from one model nothing has to be moved, and both are FedAvg (the second holding layers). They
    matter for networks that were trained apart: give ``alone_epochs``.
    """

    permutes: ClassVar[bool] = True
    scalars: ClassVar[frozenset[str]] = frozenset({"stayed", "leads"})
    """Share of the units that alignment left in their place; whether this update is the reference."""
    name: Literal["fedma"] = "fedma"
    at: Literal["silo", "driver"] = "silo"
    alone_epochs: int | None = Field(default=None, ge=1)
    """In version 0 every silo trains a network of its own, from its own seed, for so many epochs, and goes on from that
    one."""
    reference: str | None = None
    """Silo whose own network is version 1, and with which the others align theirs."""
    sweeps: int = Field(default=10, ge=1)
    """Most passes over the layers."""

    @property
    def whole(self) -> bool:
        return self.at == "driver"

    @property
    def alone(self) -> int | None:
        return self.alone_epochs

    def begin(self, run: LocalRun) -> None:
        if run.buffers is not None and run.version == 0:
            run.memo["buffers"] = run.buffers * 1.0
        if "alone" not in run.kept or not self._goes_on(run):
            return
        run.params[:] = run.kept["alone"]
        if run.buffers is not None:
            run.buffers[:] = run.kept["alone_buffers"]
        if self.whole:
            place_layers(run, run.version)

    def direction(self, run: LocalRun, grad_at: GradAt) -> Array:
        still = held(run.symmetries, run.version) if self._goes_on(run) and self.whole else []
        for part in still:
            run.params[part] = run.anchor[part]
        gradient = grad_at(run.params)
        for part in still:
            gradient[part] = 0.0
        return gradient

    def report(self, run: LocalRun) -> Report:
        leads = float(run.silo == self.reference and self._first(run))
        stayed = 1.0
        if self._first(run) or (self.whole and self._goes_on(run)):
            self._keep(run)
        if self._first(run) and not leads:
            run.params[:] = run.anchor
            if run.buffers is not None:
                run.buffers[:] = run.memo["buffers"]
        elif not self.whole and not leads:
            stayed = align(run.params, run.anchor, run.symmetries, run.buffers, self.sweeps)
        return Report({"delta": run.take_delta()}, {"stayed": stayed, "leads": leads})

    def step(self, state: State, mean: Parts, cohort: CohortInfo) -> State:
        share = np.float32(cohort.mean("leads") if self.alone_epochs else 0.0)
        if not share:
            return super().step(state, mean, cohort)
        moved = {"params": state["params"] + mean["delta"] / share}
        if "buffers" in state:
            moved["buffers"] = state["buffers"] + mean["buffers"] / share
        return {**state, **moved}

    def fold(
        self,
        state: State,
        updates: Sequence[Parts],
        shares: Sequence[float],
        version: int,
        symmetries: Sequence[Symmetry],
    ) -> Parts:
        if version < len(symmetries):
            match_layer(state, updates, shares, symmetries, version, self.sweeps)
        return super().fold(state, updates, shares, version, symmetries)

    def _first(self, run: LocalRun) -> bool:
        """The reference is not yet known."""
        return not self.whole and self.alone_epochs is not None and run.version == 0

    def _goes_on(self, run: LocalRun) -> bool:
        """From the silo's own network instead of the received one."""
        if self.whole:
            return run.version <= len(run.symmetries)
        return run.version == 1

    def _keep(self, run: LocalRun) -> None:
        run.kept["alone"] = run.params * 1.0
        if run.buffers is not None:
            run.kept["alone_buffers"] = run.buffers * 1.0

"""Ditto: beside the common model each silo trains one of its own, which the common one pulls at."""

from typing import ClassVar, Literal

from pydantic import AliasChoices, Field

from orchestrator.core.protocols import Array, GradAt, Kept, LocalRun, Report
from orchestrator.strategies.base import Averaging


class Ditto(Averaging, frozen=True):
    """``v -= lr * (gradient at v + lambda * (v - params received))`` on the batches of the common model's training (Li
    et al. 2021, algorithm 1, arXiv 2012.04221). The common model is FedAvg's to the bit; ``v`` never leaves the silo.
    A training costs twice the time.

    With ``lambda`` 0 a silo's model is what it would learn alone.
    """

    one_gradient: ClassVar[bool] = False
    name: Literal["ditto"] = "ditto"
    pull: float = Field(default=0.1, ge=0, validation_alias=AliasChoices("lambda", "pull"))
    """The paper's ``lambda``, and so it may be called in a job."""
    lr: float | None = Field(default=None, gt=0)
    """Of the silo's own model, which moves by plain gradient steps; default: the local optimizer's."""

    def direction(self, run: LocalRun, grad_at: GradAt) -> Array:
        own = run.memo["model"] if "model" in run.memo else self.personal(run.kept, run.anchor)
        if own is None:
            own = run.anchor
        pulled = grad_at(own) + self.pull * (own - run.anchor)
        run.memo["model"] = own - (self.lr or run.lr) * pulled
        return grad_at(run.params)

    def report(self, run: LocalRun) -> Report:
        if "model" in run.memo:
            run.kept["model"] = run.memo["model"]
        return super().report(run)

    def personal(self, kept: Kept, params: Array) -> Array | None:
        if "model" not in kept:
            return None
        return kept["model"]

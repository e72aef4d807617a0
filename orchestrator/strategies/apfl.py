"""APFL: each silo mixes a model of its own with the common one, and learns the share."""

from typing import ClassVar, Literal

from pydantic import Field

from orchestrator.core.protocols import Array, GradAt, Kept, LocalRun, Report
from orchestrator.strategies.base import Averaging


class Apfl(Averaging, frozen=True):
    """The silo's model is ``alpha * v + (1 - alpha) * params``; ``v`` and ``alpha`` follow the gradient of that model's
    loss (Deng et al. 2020, algorithm 1 and eq. 10, arXiv 2003.13461), and neither leaves the silo. The common model is
    FedAvg's to the bit. A training costs twice the time.

    With ``alpha`` 0, not adaptive, the silo's model is the common one; with 1 what it would learn alone.
    """

    one_gradient: ClassVar[bool] = False
    name: Literal["apfl"] = "apfl"
    alpha: float = Field(default=0.5, ge=0, le=1)
    """First value of the silo's own share."""
    adaptive: bool = True
    """Whether the share is learnt: by one step in every training, the first (as in the authors' code). Later on the
    copy of the common model has become the silo's own, too, and the share would fall for no good reason."""

    def direction(self, run: LocalRun, grad_at: GradAt) -> Array:
        first = "model" not in run.memo
        own, alpha = self._mixture(run)
        gradient = grad_at(alpha * own + (1 - alpha) * run.params)
        run.memo["model"] = own - run.lr * alpha * gradient
        if first and self.adaptive:
            slope = (gradient * (own - run.params)).sum()
            alpha = (alpha - run.lr * slope).clip(0.0, 1.0)
        run.memo["alpha"] = alpha
        return grad_at(run.params)

    def _mixture(self, run: LocalRun) -> tuple[Array, Array]:
        """The silo's model, and its share: a vector of one element."""
        if "model" in run.memo:
            return run.memo["model"], run.memo["alpha"]
        if "model" in run.kept:
            return run.kept["model"], run.kept["alpha"]
        return run.anchor, run.params[:1] * 0 + self.alpha

    def report(self, run: LocalRun) -> Report:
        for name in ("model", "alpha"):
            if name in run.memo:
                run.kept[name] = run.memo[name]
        return super().report(run)

    def personal(self, kept: Kept, params: Array) -> Array | None:
        if "model" not in kept:
            return None
        return kept["alpha"] * kept["model"] + (1 - kept["alpha"]) * params

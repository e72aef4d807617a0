"""MOON: contrastive learning between models."""

from typing import ClassVar, Literal

from pydantic import Field

from orchestrator.core.protocols import Array, Contrast, GradAt, LocalRun, Report
from orchestrator.strategies.base import Averaging


class Moon(Averaging, frozen=True):
    """Adds ``mu * CE([cos(z, z_received), cos(z, z_previous)] / temperature -> 0)`` to the local loss: what the network
    sees in an image stays near to what the received model sees, and leaves what the silo's model of the training
    before saw (Li et al. 2021, eq. 3-4, arXiv 2103.16257).

    ``z`` is the input of the network's last linear layer; the paper puts a projection of two layers before it, which
    is a matter of the job's model. A silo's first training has no model before it, and no such term. Three forward
    passes a step; the silo keeps one model.
    """

    contrasts: ClassVar[bool] = True
    one_gradient: ClassVar[bool] = False
    name: Literal["moon"] = "moon"
    mu: float = Field(default=1.0, ge=0)
    """0: FedAvg. The paper tries 0.1, 1, 5 and 10."""
    temperature: float = Field(default=0.5, gt=0)

    def direction(self, run: LocalRun, grad_at: GradAt) -> Array:
        if not self.mu or "previous" not in run.kept:
            return grad_at(run.params)
        contrast = Contrast(self.mu, self.temperature, near=run.anchor, far=run.kept["previous"])
        return grad_at(run.params, contrast=contrast)

    def report(self, run: LocalRun) -> Report:
        if self.mu:
            run.kept["previous"] = run.params + 0.0  # the delta is computed in the memory of the parameters
        return super().report(run)

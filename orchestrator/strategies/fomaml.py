"""FOMAML: a model from which few steps lead to a good one at each silo."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from orchestrator.core.protocols import Array, GradAt, LocalRun
from orchestrator.strategies.base import Averaging


class Fomaml(Averaging, frozen=True):
    """The gradient on the query half of a batch, at the point to which ``inner_steps`` plain steps of ``alpha`` on its
    support half lead: MAML to the first order (Finn et al. 2017, section 5.2, arXiv 1703.03400), with averaging over
    silos FedMeta (Chen et al. 2018, algorithm 1, arXiv 1802.07876).

    With ``alpha`` 0 it is FedAvg on the second half of every batch. A silo adapts the model by steps of ``alpha``.
    """

    halves: ClassVar[bool] = True
    one_gradient: ClassVar[bool] = False
    name: Literal["fomaml"] = "fomaml"
    alpha: float = Field(default=0.01, ge=0)
    """Rate of the inner steps."""
    inner_steps: int = Field(default=1, ge=1)

    def direction(self, run: LocalRun, grad_at: GradAt) -> Array:
        return grad_at(self._path(run.params, grad_at)[-1], "query")

    def _path(self, params: Array, grad_at: GradAt) -> list[Array]:
        """The points of the inner steps, from ``params`` on."""
        path = [params]
        for _ in range(self.inner_steps):
            path.append(path[-1] - self.alpha * grad_at(path[-1], "support"))
        return path

    def adaptation(self, received: Mapping[str, Array]) -> Array | float | None:
        return self.alpha

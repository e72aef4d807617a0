"""Per-FedAvg: MAML over silos with its second-order term."""

from typing import Literal

from orchestrator.core.protocols import Array, GradAt, LocalRun
from orchestrator.strategies.fomaml import Fomaml

_FAR = 1e-3
"""Length of the finite difference, relative to 1 + |params|: long enough for float32, short enough for curvature."""


class PerFedAvg(Fomaml, frozen=True):
    """The gradient of the loss after the inner steps, ``(I - alpha H) g`` for one of them: the Hessian of the support
    half times the query half's gradient, by a central difference of two gradients (Fallah et al. 2020, algorithm 1 and
    section 5: HF, arXiv 2002.07948).

    With ``hessian: false`` it is Per-FedAvg (FO), which is `Fomaml`; with ``alpha`` 0, FedAvg on the second half of
    every batch.
    """

    name: Literal["per_fedavg"] = "per_fedavg"  # type: ignore[assignment]
    hessian: bool = True

    def direction(self, run: LocalRun, grad_at: GradAt) -> Array:
        if not self.hessian or not self.alpha:
            return super().direction(run, grad_at)
        path = self._path(run.params, grad_at)
        gradient = grad_at(path[-1], "query") * 1.0
        own = None if run.own_gradient is None else run.own_gradient * 1.0
        for point in reversed(path[:-1]):
            gradient = gradient - self.alpha * _curved(point, gradient, grad_at)
        if run.own_gradient is not None:
            run.own_gradient[:] = own  # of the query half, too
        return gradient


def _curved(point: Array, vector: Array, grad_at: GradAt) -> Array:
    """The support half's Hessian at ``point`` times ``vector``."""
    length = float(vector @ vector) ** 0.5
    if not length:
        return vector
    step = _FAR * (1.0 + float(point @ point) ** 0.5) / length
    ahead = grad_at(point + step * vector, "support") * 1.0
    return (ahead - grad_at(point - step * vector, "support")) / (2.0 * step)

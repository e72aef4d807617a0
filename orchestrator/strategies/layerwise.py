"""FedMA's layers, one after the other: what is compared, what is matched by now, what the silos hold.

A layer is a group of units. Where a tensor leads from units to units, it can be compared once the former are matched.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from orchestrator.core.protocols import LocalRun, State
from orchestrator.core.symmetry import Axis, Symmetry
from orchestrator.core.vector import Parts, Vector
from orchestrator.strategies.matching import assigned, likeness, permute


def match_layer(
    state: State,
    updates: Sequence[Parts],
    shares: Sequence[float],
    symmetries: Sequence[Symmetry],
    layer: int,
    sweeps: int,
) -> None:
    """Permute the layer's units in all ``updates`` (``delta``, ``buffers``), in place: first as the silo of the largest
    share has them, then as their mean has them, until nothing moves."""
    symmetry, axes = symmetries[layer], incoming(symmetries, layer)
    models = [state["params"] + update["delta"] for update in updates]
    target = models[int(np.argmax(shares))].copy()
    for _ in range(sweeps):
        moved = False
        for model, update in zip(models, updates, strict=True):
            order = assigned(likeness(model, target, axes, symmetry.size))
            if order is not None:
                buffers = state["buffers"] + update["buffers"] if "buffers" in state else None
                permute(symmetry, order, model, buffers)
                _replace(update, state, model, buffers)
                moved = True
        if not moved:
            return
        target = np.einsum("i,ij->j", np.asarray(shares, np.float32), models)


def _replace(update: Parts, state: State, model: Vector, buffers: Vector | None) -> None:
    np.subtract(model, state["params"], out=update["delta"])
    if buffers is not None:
        np.subtract(buffers, state["buffers"], out=update["buffers"])


def place_layers(run: LocalRun, num_layers: int) -> None:
    """The silo's own network as the matched layers of the received one have it: units in their order, and their
    weights."""
    for layer, symmetry in enumerate(run.symmetries[:num_layers]):
        axes = incoming(run.symmetries, layer)
        order = assigned(likeness(run.params, run.anchor, axes, symmetry.size))
        if order is not None:
            permute(symmetry, order, run.params, run.buffers)
        for part in held(run.symmetries, layer + 1):
            run.params[part] = run.anchor[part]


def incoming(symmetries: Sequence[Symmetry], layer: int) -> list[Axis]:
    """Weights that lead to the layer's units from units that are matched before, or from the inputs."""
    later = {axis.start for each in symmetries[layer + 1 :] for axis in each.axes if not axis.buffer}
    weights = [axis for axis in symmetries[layer].axes if not axis.buffer]
    times = Counter(axis.start for axis in weights)
    return [axis for axis in weights if axis.axis == 0 and axis.start not in later and times[axis.start] == 1]


def held(symmetries: Sequence[Symmetry], num_layers: int) -> list[slice]:
    """Where the weights of the first layers lie: those that lead to their units, and from nowhere else than units of
    matched layers."""
    later = {axis.start for each in symmetries[num_layers:] for axis in each.axes if not axis.buffer}
    axes = [axis for each in symmetries[:num_layers] for axis in each.axes if not axis.buffer]
    done = [axis for axis in axes if axis.axis == 0 and axis.start not in later]
    return [slice(axis.start, axis.start + int(np.prod(axis.shape))) for axis in done]

"""Matching the units of networks: which unit of one does what a unit of another does.

Units are compared by all weights that lead to them and away from them (Ainsworth et al. 2023, algorithm 1, arXiv
2209.04836); the best assignment of a layer is found exactly, layer after layer until nothing moves.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.core.protocols import Array
from orchestrator.core.symmetry import Axis, Symmetry

Places = NDArray[np.intp]
"""Which unit comes to each place."""


def align(
    params: Array,
    reference: Array,
    symmetries: Sequence[Symmetry],
    buffers: Array | None = None,
    sweeps: int = 10,
) -> float:
    """Permute the units of ``params``, and of ``buffers`` with them, so that they lie as near to ``reference`` as
    sweeps over the layers find; in place. Share of the units that stay where they are, 1 where there are none."""
    places = [np.arange(each.size) for each in symmetries]
    for _ in range(sweeps):
        moved = False
        for i, symmetry in enumerate(symmetries):
            order = assigned(likeness(params, reference, weights_of(symmetry), symmetry.size))
            if order is not None:
                permute(symmetry, order, params, buffers)
                places[i] = places[i][order]
                moved = True
        if not moved:
            break
    stayed = [place == np.arange(place.size) for place in places]
    return float(np.concatenate(stayed).mean()) if stayed else 1.0


def weights_of(symmetry: Symmetry) -> list[Axis]:
    """Its axes in the parameters: statistics say how large a unit's values are, not what it does."""
    return [axis for axis in symmetry.axes if not axis.buffer]


def likeness(params: Array, reference: Array, axes: Sequence[Axis], size: int) -> NDArray[np.float64]:
    """Inner products of units, ``[unit of the reference, unit of params]``, over the given axes."""
    total = np.zeros((size, size))
    for axis in axes:
        total += np.asarray((_units(reference, axis, size) @ _units(params, axis, size).T).tolist())
    return total


def assigned(alike: NDArray[np.float64]) -> Places | None:
    """The unit for each place of the reference that makes the sum of likenesses largest; None where every unit is
    best where it is."""
    from scipy.optimize import linear_sum_assignment  # not on the way of every command

    if (alike.diagonal() >= alike.max(axis=1)).all():
        return None
    order: Places = linear_sum_assignment(alike, maximize=True)[1]
    return None if (order == np.arange(order.size)).all() else order


def permute(symmetry: Symmetry, order: Places, params: Array, buffers: Array | None = None) -> None:
    """Put unit ``order[i]`` in place i; in place."""
    for axis in symmetry.axes:
        vector = buffers if axis.buffer else params
        assert vector is not None
        along = _along(vector, axis)
        blocks = along.reshape(symmetry.size, axis.repeat, -1)
        along[:] = blocks[order].reshape(along.shape)


def _units(vector: Array, axis: Axis, size: int) -> Array:
    """One row per unit."""
    return _along(vector, axis).reshape(size, -1)


def _along(vector: Array, axis: Axis) -> Array:
    """The tensor, a view, with the units' axis first."""
    stop = axis.start + int(np.prod(axis.shape))
    return vector[axis.start : stop].reshape(axis.shape).swapaxes(0, axis.axis)

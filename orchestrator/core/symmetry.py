"""Units of a network that may change places: where their numbers lie in the flat vectors.

The hidden units of a layer, or the channels of a convolution, have no order of their own: permute them, and with them
all that leads to them and away from them, and the network computes the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of one tensor, along which the units lie."""

    start: int
    """First element of the tensor in the flat vector."""
    shape: tuple[int, ...]
    axis: int
    repeat: int = 1
    """Consecutive entries per unit: a channel is ``height * width`` inputs of the linear layer behind a flatten."""
    buffer: bool = False
    """In the flat vector of the buffers, not of the parameters."""


@dataclass(frozen=True, slots=True)
class Symmetry:
    """Units that are permuted together, wherever they occur."""

    size: int
    """Number of units."""
    axes: tuple[Axis, ...]


_SYMMETRIES = TypeAdapter(tuple[Symmetry, ...])


def read(described: Any, num_params: int, num_buffers: int) -> tuple[Symmetry, ...]:
    """Symmetries as a silo describes them. Raises ValueError for what does not fit vectors of these sizes."""
    found: Sequence[Symmetry] = _SYMMETRIES.validate_python(described, strict=False)
    for symmetry in found:
        for axis in symmetry.axes:
            if not _fits(axis, symmetry.size, num_buffers if axis.buffer else num_params):
                raise ValueError(f"{axis} holds no {symmetry.size} units")
    return tuple(found)


def _fits(axis: Axis, size: int, length: int) -> bool:
    if axis.start < 0 or min(axis.shape, default=0) < 1 or axis.start + math.prod(axis.shape) > length:
        return False
    return 0 <= axis.axis < len(axis.shape) and axis.shape[axis.axis] == size * axis.repeat

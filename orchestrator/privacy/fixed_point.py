"""Updates as whole numbers in a ring: the one representation in which sums are exact, so that masked, encrypted and
plain sums are equal bit for bit.

A silo's coordinates are ``round(x / quantum)`` times its weight, a whole number; then the weight itself, the number of
elements that did not fit the range, how small they all are, and the silo's metrics in limbs. Whoever holds the sum
divides by the sum of the weights, and nobody needs a single silo's. Nothing ever wraps around: that the ring has room
for all silos is checked on the job (`FixedPoint.room`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.core.metrics import MetricSums, Sums
from orchestrator.core.vector import Vector, blocks

Ring = Literal["uint16", "uint32"]
RingVector = NDArray[np.uint16] | NDArray[np.uint32]
"""One-dimensional, modulo 2^16 or 2^32."""

Shapes = Sequence[tuple[str, str, int]]
"""Names, kinds and sizes of metrics."""

LIMB_BITS = 8
LIMBS = 8
MOST_FIGURES = 1 << 16
"""Numbers of one silo's metrics in a sum, and letters of their names."""
METRIC_QUANTUM = 2.0**-20
"""A metric is a signed 64-bit multiple of this, in eight limbs of eight bits, lowest first."""
SMALL = (4, 32)
"""Where the range follows the updates, one says whether its largest element is above the range divided by these."""
FIXED = 2 + len(SMALL)
"""Coordinates behind the vector's, besides metrics."""
CACHED = 1 << 16
"""Elements at a time: what one step leaves in a core's cache, the next one reads."""


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """How a vector becomes whole numbers."""

    ring: Ring
    value_bits: int
    """Of a coordinate before it is multiplied with the weight, the sign included."""
    max_weight: int
    """Largest weight of one update."""
    max_updates: int
    """Most updates in a sum."""
    range: float
    """Largest magnitude of an element; a larger one is cut to it, and counted."""
    tells_size: bool = True
    """Whether an update says how much of the range it needs, by which the range of the next version is found."""

    @property
    def bits(self) -> int:
        return 16 if self.ring == "uint16" else 32

    @property
    def levels(self) -> int:
        """Largest whole number of an element."""
        return (1 << (self.value_bits - 1)) - 1

    @property
    def quantum(self) -> float:
        return self.range / self.levels

    @property
    def headroom(self) -> int:
        """Bits of the sum that are left over; negative where a sum could wrap around."""
        largest = self.levels * self.max_weight * self.max_updates
        return self.bits - 1 - largest.bit_length()

    @property
    def room(self) -> bool:
        """Whether no sum can wrap around: of values, of weights and of limbs."""
        limbs = (2**LIMB_BITS - 1) * self.max_updates
        return self.headroom >= 0 and max(limbs, self.max_weight * self.max_updates) < 1 << self.bits

    @property
    def most_cut(self) -> int:
        """Largest number of cut elements that one update reports: as large as any of its coordinates may be."""
        return self.levels * self.max_weight

    def encode(self, x: Vector, weight: int, metrics: MetricSums, shapes: Shapes) -> RingVector:
        """All coordinates of one update: ``x.size + extra(shapes)``. Raises ValueError for NaN or infinity in ``x``,
        and for a weight out of bounds."""
        if not 1 <= weight <= self.max_weight:
            raise ValueError(f"weight {weight} is not in [1, {self.max_weight}]")
        signed: type[np.signedinteger[np.typing.NBitBase]] = np.int16 if self.bits == 16 else np.int32  # type: ignore[assignment]
        out = np.empty(x.size + extra(shapes), self.ring)
        values = out[: x.size].view(signed)
        scale, most = np.float32(1 / self.quantum), np.float32(self.levels)
        scaled, cut, magnitude = np.empty(min(CACHED, x.size), np.float32), 0, 0.0
        for low, high in blocks(x.size, CACHED):
            block, into = scaled[: high - low], values[low:high]
            np.multiply(x[low:high], scale, out=block)
            np.rint(block, out=block)
            least, largest = float(block.min()), float(block.max())
            if not (math.isfinite(least) and math.isfinite(largest)):
                raise ValueError("the update holds NaN or infinity")
            magnitude = max(magnitude, -least, largest)
            if least < -most or largest > most:
                cut += int(np.count_nonzero(np.abs(block) > most))
                np.clip(block, -most, most, out=block)
            np.copyto(into, block, casting="unsafe")
            if weight > 1:
                np.multiply(into, signed(weight), out=into)
        out[x.size] = weight
        out[x.size + 1] = min(cut, self.most_cut)
        out[x.size + 2 : x.size + FIXED] = [
            self.tells_size and magnitude > self.levels / part for part in SMALL
        ]
        out[x.size + FIXED :] = limbs_of(metrics, shapes)
        return out

    def decode(self, total: RingVector, size: int, out: Vector) -> "Total":
        """The weighted mean of what was encoded, from the sum of the coordinates, into ``out`` of ``size`` elements."""
        weight = int(total[size])
        if not weight:
            raise ValueError("a sum of no weight at all")
        factor = np.float32(self.quantum / weight)
        signed = total[:size].view(np.int16 if self.bits == 16 else np.int32)
        for low, high in blocks(size, CACHED):
            np.copyto(out[low:high], signed[low:high], casting="unsafe")
            out[low:high] *= factor
        over = tuple(int(count) for count in total[size + 2 : size + FIXED])
        return Total(weight, int(total[size + 1]), over, total[size + FIXED :])


@dataclass(frozen=True, slots=True)
class Total:
    """What a sum says besides the mean."""

    weight: int
    """Of all updates together."""
    cut: int
    """Elements that did not fit the range, at all silos; at least."""
    over: tuple[int, ...]
    """Updates whose largest element is above the range divided by each of `SMALL`."""
    limbs: RingVector
    """Of the metrics."""


def extra(shapes: Shapes) -> int:
    """Coordinates behind those of the vector."""
    return FIXED + LIMBS * sum(size for _, _, size in shapes)


def fits(shapes: Shapes, num_silos: int = 1) -> bool:
    """Whether metrics of these shapes are of a size that so many silos may have."""
    sizes, most = [size for _, _, size in shapes], MOST_FIGURES * num_silos
    letters = sum(len(name) for name, _, _ in shapes)
    return all(size > 0 for size in sizes) and sum(sizes) <= most and letters <= most


def shapes_of(metrics: MetricSums) -> tuple[tuple[str, str, int], ...]:
    """Names, kinds and sizes."""
    return tuple((name, sums.kind, len(sums.values)) for name, sums in sorted(metrics.items()))


def limbs_of(metrics: MetricSums, shapes: Shapes) -> NDArray[np.uint8]:
    """The metrics of these shapes in limbs; one that is missing, or of another shape, adds nothing."""
    values: list[float] = []
    for name, kind, size in shapes:
        sums = metrics.get(name)
        fits = sums is not None and sums.shape == (kind, size) and all(map(math.isfinite, sums.values))
        values += sums.values if sums is not None and fits else (0.0,) * size
    whole = np.rint(np.clip(np.asarray(values, np.float64) / METRIC_QUANTUM, -(2.0**55), 2.0**55))
    return whole.astype("<i8").view(np.uint8)


def metrics_of(limbs: RingVector, shapes: Shapes) -> dict[str, Sums]:
    """The silos' metrics together."""
    places = limbs.astype(np.uint64).reshape(-1, LIMBS)
    whole = np.zeros(len(places), np.uint64)
    for place in range(LIMBS):
        whole += places[:, place] << np.uint64(LIMB_BITS * place)
    values = iter((whole.view(np.int64) * METRIC_QUANTUM).tolist())
    return {name: Sums(kind, tuple(next(values) for _ in range(size))) for name, kind, size in shapes}  # type: ignore[arg-type]

"""The section ``combine`` of a job whose updates are summed as whole numbers, and the plain one of that kind."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, Field

from orchestrator.aggregation.groups import Groups
from orchestrator.core.messages import SiloId
from orchestrator.core.vector import blocks
from orchestrator.privacy.fixed_point import CACHED, SMALL, FixedPoint, Ring, RingVector, Total
from orchestrator.privacy.sealing import (
    Answers,
    Fields,
    Flow,
    Gather,
    Identity,
    Memory,
    Opened,
    Questions,
    Rules,
    SiloHalf,
    SumFailed,
    SumHeader,
    SumRefused,
)

MOST_BITS = 24
"""Of a value: float32 has no more."""
FEWEST_BITS = 4
"""Of a value where the job leaves their number open: fewer would say little more than the sign."""


class UnfitPacket(ValueError):
    """A sealed packet that cannot be added to the others."""

    def __init__(self, index: int, reason: str) -> None:
        """``index``: of the packet among those to be added."""
        super().__init__(reason)
        self.index = index


class RingSum(BaseModel, frozen=True, extra="forbid", json_schema_extra={"required": ["name"]}):
    """What the sums have in common."""

    ring: Ring = "uint32"
    """``uint16`` halves what is sent, and leaves fewer bits to each value."""
    value_bits: int | None = Field(default=None, ge=2, le=MOST_BITS)
    """Of an element, sign included; default: as many as have room."""
    range: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Largest magnitude of an element of an update; larger ones are cut to it, and counted. ``auto`` begins with
    ``first_range`` and follows the updates: it grows after some were cut, and shrinks once all of them are small. How
    many are, in the sum, is all that the driver learns of them."""
    first_range: float = Field(default=4.0, gt=0)
    weights: Literal["uniform", "examples"] | dict[SiloId, float] = "uniform"
    """``examples``: by training rows, in whole numbers of ``max_examples / max_weight``; nobody learns a silo's. Or a
    number for each silo."""
    max_examples: int | None = Field(default=None, ge=1)
    """Rows of the largest silo, with ``weights: examples``; a silo with more counts as having so many."""
    weight_levels: int = Field(default=255, ge=1, le=65535)
    """Largest whole number that stands for a weight, unless all are equal."""

    groups: Groups | None = None
    """Sums of random groups, and a robust rule over their means, in place of one sum of all."""

    name: str
    sealed: ClassVar[bool] = True
    protects: ClassVar[bool] = True
    """Nobody sees a single update; False for the plain sum of this kind."""
    max_weight: ClassVar[float] = 1e9

    def weight(self, silo: SiloId, num_examples: int) -> float:
        """A silo's share before normalising, as far as it is told in the clear."""
        if isinstance(self.weights, dict):
            return float(self.weights[silo])
        return float(num_examples) if self.weights == "examples" else 1.0

    def level(self, silo: SiloId, num_examples: int) -> int:
        """The whole number that stands for a silo's weight."""
        if self.weights == "uniform":
            return 1
        most = max(self.weights.values()) if isinstance(self.weights, dict) else float(self.max_examples or 1)
        share = min(1.0, self.weight(silo, num_examples) / most)
        return max(1, round(share * self.weight_levels))

    def sensitivity(self, clip: float, shares: Sequence[float]) -> float | None:
        """Numbers of rows are a silo's own, and would have to be hidden as well. Of a robust rule over groups no bound
        is known."""
        return None if self.weights == "examples" or self.groups is not None else clip * max(shares)

    def merge(self, rows: Sequence[Any], shares: Sequence[float], out: Any) -> None:
        raise TypeError("sealed updates are not merged one by one")

    @property
    def weighing(self) -> str:
        """All that silos' weights follow from, besides their rows."""
        if self.weights == "uniform":
            return ""
        return json.dumps([self.weights, self.max_examples, self.weight_levels], sort_keys=True)

    @property
    def most_level(self) -> int:
        """Largest whole number that stands for a weight."""
        return 1 if self.weights == "uniform" else self.weight_levels

    @property
    def least(self) -> int:
        """Fewest members of a sum."""
        return 1

    def enough(self, num_members: int) -> int:
        """How many of so many members must be left for a sum to be opened."""
        return self.least

    @property
    def helpers(self) -> frozenset[SiloId]:
        """Silos that take part in the protocol of every sum, also where they bring nothing."""
        return frozenset()

    def fixed_point(self, max_updates: int, settings: Any = None) -> FixedPoint:
        """As it is for a version with these settings, in which so many updates may be summed."""
        range_ = self.first_range if self.range == "auto" else self.range
        made = FixedPoint(
            self.ring,
            self.value_bits or 2,
            self.most_level,
            max_updates,
            (settings or {}).get("range", range_),
            tells_size=self.range == "auto",
        )
        if self.value_bits is not None:
            return made
        fitting = (replace(made, value_bits=bits) for bits in range(self.bits_for_values(made), 2, -1))
        return next((point for point in fitting if point.room), made)

    def bits_for_values(self, made: FixedPoint) -> int:
        """Most bits of a value that this kind of sum has room for, besides the ring."""
        return MOST_BITS

    def next_settings(self, now: FixedPoint, total: Total) -> dict[str, float]:
        """The range of the next version: more where elements were cut, less where none was above a small part of it."""
        if self.range != "auto":
            return {}
        if total.cut:
            return {"range": min(now.range * 4, 2.0**20)}
        needless = [part for part, over in zip(SMALL, total.over, strict=True) if not over]
        return {"range": max(now.range * 2 / max(needless), 2.0**-40) if needless else now.range}

    # the sealed packet: one array, whose elements the driver adds up block by block

    @property
    def dtype(self) -> str:
        """Of the sealed packet."""
        return self.ring

    grain: ClassVar[int] = 1
    """Blocks of a packet are of a multiple of so many elements."""
    sum_grain: ClassVar[int] = 1
    """Elements of the sum for each ``grain`` of a packet."""

    def sealed_size(self, header: SumHeader) -> int:
        """Elements of a packet."""
        return header.length

    def packet_bytes(self, length: int, point: FixedPoint) -> int:
        """Of a packet of so many coordinates."""
        return np.dtype(self.dtype).itemsize * length

    def add(self, rows: Sequence[Any]) -> Any:
        """The sum of the same block of all packets. Raises `UnfitPacket`."""
        total = np.empty_like(rows[0])
        for low, high in blocks(total.size, CACHED):
            piece = total[low:high]
            np.copyto(piece, rows[0][low:high])
            for row in rows[1:]:
                np.add(piece, row[low:high], out=piece)
        return total

    # the protocol

    def ready(self) -> None:
        """Before a run, on the driver and at every silo: raises `BadInput` where something is missing there."""

    def set_up(self, silos: Sequence[SiloId], number: int) -> Flow:
        """Done once for these silos, where sums need keys. Raises `SumFailed`."""
        yield from ()

    def open(self, header: SumHeader) -> Flow:
        """From the fixed cohort to the sum of its ring vectors (`Opened`). Raises `SumFailed`."""
        raise NotImplementedError

    def half(self, identity: Identity, memory: Memory, rules: Rules, run_id: str) -> SiloHalf:
        """The silo's side."""
        raise NotImplementedError


class FixedPointSum(RingSum, frozen=True):
    """The plain sum of whole numbers: what the driver sees, anybody there can read. It is what the others are compared
    with."""

    name: Literal["fixed_point_sum"] = "fixed_point_sum"
    protects: ClassVar[bool] = False

    def open(self, header: SumHeader) -> Flow:
        asked = Questions("seal", {silo: {"header": header.fields()} for silo in header.silos})
        answers: Answers = yield asked
        gathered: Answers = yield Gather(list(answers.fields))
        lost = {**answers.lost, **gathered.lost}
        survivors = [silo for silo in header.silos if silo not in lost]
        if not survivors:
            raise SumFailed(lost)
        return Opened(gathered.total, survivors, lost)

    def half(self, identity: Identity, memory: Memory, rules: Rules, run_id: str) -> SiloHalf:
        return _Plain()


class _Plain:
    rules = Rules()

    def answer(
        self, step: str, fields: Fields, header: SumHeader | None, vector: Callable[[], RingVector]
    ) -> tuple[Fields, RingVector | None]:
        if step != "seal":
            raise SumRefused(f"a plain sum has no step '{step}'")
        return {}, vector()

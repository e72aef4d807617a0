"""Codecs that send every element: raw float32 and bfloat16."""

from collections.abc import Mapping, MutableMapping
from typing import ClassVar, Literal

import numpy as np
from pydantic import BaseModel

from orchestrator.core.vector import Packet, Vector


class Raw(BaseModel, frozen=True, extra="forbid"):
    """The vector itself."""

    name: Literal["raw"] = "raw"
    linear: ClassVar[bool] = True
    contractive: ClassVar[bool] = True
    bytes_per_element: ClassVar[float] = 4.0
    arrays: ClassVar[Mapping[str, type[np.generic]]] = {"values": np.float32}

    def encode(self, x: Vector, kept: MutableMapping[str, Vector], seed: int) -> Packet:
        return {"values": x}

    def decode(self, packet: Packet, size: int, seed: int) -> Vector:
        values: Vector = packet["values"]  # type: ignore[assignment]
        return values


class Bf16(BaseModel, frozen=True, extra="forbid"):
    """The upper 16 bits of each float32, rounded to nearest even: relative error at most 2^-8, half the bytes.

    Rounding may lengthen a vector by that much, so it is not contractive. NaN stays NaN.
    """

    name: Literal["bf16"] = "bf16"
    linear: ClassVar[bool] = False
    contractive: ClassVar[bool] = False
    bytes_per_element: ClassVar[float] = 2.0
    arrays: ClassVar[Mapping[str, type[np.generic]]] = {"values": np.uint16}

    def encode(self, x: Vector, kept: MutableMapping[str, Vector], seed: int) -> Packet:
        packed = np.empty(x.size, np.uint16)
        for start in range(0, x.size, 1 << 16):
            packed[start : start + (1 << 16)] = _rounded(x[start : start + (1 << 16)])
        return {"values": packed}

    def decode(self, packet: Packet, size: int, seed: int) -> Vector:
        return (packet["values"].astype(np.uint32) << np.uint32(16)).view(np.float32)


def _rounded(x: Vector) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    bits = x.view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    upper = ((bits + np.uint32(0x7FFF) + even) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), upper)

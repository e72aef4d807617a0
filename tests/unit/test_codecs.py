"""Codecs: raw is the identity; bfloat16 keeps its bounds (oracle 30)."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from orchestrator.compression.plain import Bf16, Raw
from orchestrator.core.vector import Vector

vectors = hnp.arrays(np.float32, st.integers(1, 300), elements=st.floats(width=32, allow_subnormal=True))
finite = hnp.arrays(np.float32, st.integers(1, 300), elements=st.floats(-(2.0**127), 2.0**127, width=32))


def through(codec: Raw | Bf16, x: Vector) -> Vector:
    packet = codec.encode(x, {}, 0)
    assert sum(array.nbytes for array in packet.values()) == codec.bytes_per_element * x.size
    return codec.decode(packet, x.size, 0)


@given(vectors)
def test_raw_changes_no_bit(x: Vector) -> None:
    assert through(Raw(), x).tobytes() == x.tobytes()


@given(finite)
def test_bf16_is_within_half_a_step(x: Vector) -> None:
    """8 significant bits, nearest: relative error at most 2^-8, or half a subnormal step (2^-134)."""
    y = through(Bf16(), x)
    with np.errstate(invalid="ignore"):
        error = np.abs(y.astype(np.float64) - x.astype(np.float64))
    assert (error <= np.maximum(np.abs(x.astype(np.float64)) * 2.0**-8, 2.0**-134)).all()


@given(vectors)
def test_bf16_rounds_as_torch_does(x: Vector) -> None:
    y = through(Bf16(), x)
    reference = torch.from_numpy(x.copy()).bfloat16().float().numpy()
    same = y.view(np.uint32) == reference.view(np.uint32)
    assert (same | (np.isnan(x) & np.isnan(y))).all()


def test_what_bf16_holds_exactly() -> None:
    exact = np.array([0.0, -0.0, 1.0, -2.0, 0.5, 2.0**100, 2.0**-100, 255.0, np.inf, -np.inf], np.float32)
    assert through(Bf16(), exact).tobytes() == exact.tobytes()
    assert not through(Bf16(), np.zeros(70000, np.float32)).any()


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0x7FFFFFFF])
def test_nan_stays_nan(bits: int) -> None:
    assert np.isnan(through(Bf16(), np.array([bits], np.uint32).view(np.float32))).all()


def test_ties_go_to_even() -> None:
    below, above = np.float32(1 + 2.0**-8), np.float32(1 + 3 * 2.0**-8)
    assert through(Bf16(), np.array([below, above])).tolist() == [1.0, 1 + 4 * 2.0**-8]


@pytest.mark.parametrize("codec", [Raw(), Bf16()])
def test_a_slice_of_the_packet_decodes_to_that_slice(codec: Raw | Bf16) -> None:
    x = np.random.default_rng(0).standard_normal(1 << 17, np.float32)
    packet = codec.encode(x, {}, 0)
    whole = codec.decode(packet, x.size, 0)
    piece = {name: array[1000:70000] for name, array in packet.items()}
    assert codec.decode(piece, 69000, 0).tobytes() == whole[1000:70000].tobytes()


def test_bf16_may_lengthen_a_vector_and_says_so() -> None:
    x = np.full(100, 1 + 3 * 2.0**-8 / 2, np.float32)
    assert np.linalg.norm(through(Bf16(), x)) > np.linalg.norm(x) and not Bf16.contractive and Raw.contractive

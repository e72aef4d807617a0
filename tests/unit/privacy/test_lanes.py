"""Numbers in slots: what goes in comes out, also as a sum, also at the bounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.privacy.bfv import PLAIN_BITS, SLOTS
from orchestrator.privacy.lanes import Lanes


@pytest.mark.parametrize(
    ("bound", "num_updates", "bits", "per_slot"),
    [
        (2**15 - 1, 8, 19, 2),  # 16 bits of value, uniform weights
        (2**15 - 1, 64, 22, 2),
        (2**15 - 1, 65, 23, 1),
        (255 * (2**15 - 1), 8, 27, 1),  # with 8 bits of weight
        (1, 3, 3, 2),
    ],
)
def test_as_many_lanes_as_fit(bound: int, num_updates: int, bits: int, per_slot: int) -> None:
    lanes = Lanes(bound, num_updates)
    assert (lanes.bits, lanes.per_slot) == (bits, per_slot)
    assert 2 * bound * num_updates < 1 << lanes.bits and lanes.bits * lanes.per_slot < PLAIN_BITS


@given(
    ring=st.sampled_from([np.uint16, np.uint32]),
    num=st.integers(1, 9),
    size=st.sampled_from([1, 5, SLOTS - 1, SLOTS, SLOTS + 1, 2 * SLOTS]),
    bits=st.sampled_from([1, 9, 12, 17, 27]),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_the_sum_of_slots_is_the_sum_in_the_ring(
    ring: type, num: int, size: int, bits: int, seed: int
) -> None:
    bound = min((1 << bits) - 1, (1 << (np.dtype(ring).itemsize * 8 - 1)) - 1)
    lanes, kind, rng = Lanes(bound, num), np.dtype(ring), np.random.default_rng(seed)
    size = min(size, lanes.per_chunk)
    rows = rng.integers(-bound, bound, (num, size), endpoint=True)
    rows[:, 0], rows[:, -1] = -bound, bound
    sent = [row.astype(ring) for row in rows]
    slots = np.sum([lanes.packed(lanes.lifted(each)) for each in sent], axis=0, dtype=np.uint64)
    assert int(slots.max()) < 1 << (PLAIN_BITS - 1)
    total = lanes.lowered(lanes.unpacked(slots)[:size], num, kind)
    assert total.dtype == kind
    assert np.array_equal(total, np.sum(sent, axis=0, dtype=ring))


@pytest.mark.parametrize("wrong", [-101, 101, 2**31 - 1, -(2**31)])
def test_a_number_beyond_the_bound_is_refused(wrong: int) -> None:
    ring = np.array([0, 100, -100, wrong], np.int32).view(np.uint32)
    lanes = Lanes(100, 3)
    assert lanes.lifted(ring[:3]).tolist() == [100, 200, 0]
    with pytest.raises(ValueError, match="not within ±100"):
        lanes.lifted(ring)

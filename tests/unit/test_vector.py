"""Packing named vectors and cutting ranges, against hand arithmetic."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.vector import Layout, blocks

sizes = st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 9), min_size=1, max_size=5)


@given(sizes)
def test_what_is_packed_is_unpacked(sizes: dict[str, int]) -> None:
    rng = np.random.default_rng(0)
    parts = {name: rng.standard_normal(size, np.float32) for name, size in sizes.items()}
    layout = Layout.of(parts)
    packed = layout.pack(parts)
    assert packed.dtype == np.float32 and packed.size == layout.size == sum(sizes.values())
    unpacked = layout.unpack(packed)
    assert list(unpacked) == list(parts)
    assert all(np.array_equal(unpacked[name], parts[name]) for name in parts)


def test_a_single_part_is_not_copied_and_pieces_are_views() -> None:
    one = np.arange(4, dtype=np.float32)
    assert Layout.of({"delta": one}).pack({"delta": one}) is one
    two = Layout(("a", "b"), (1, 3))
    pieces = two.unpack(one)
    pieces["b"][0] = 7
    assert one.tolist() == [0, 7, 2, 3]


@given(st.integers(0, 200), st.integers(1, 50))
def test_blocks_cover_a_range_once_and_in_order(size: int, length: int) -> None:
    cut = list(blocks(size, length))
    assert [i for start, stop in cut for i in range(start, stop)] == list(range(size))
    assert all(0 < stop - start <= length for start, stop in cut)

"""Whole numbers in a ring: as many bits for a value as have room, and not one more."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from orchestrator.privacy.ring_sum import MOST_BITS, FixedPointSum


@pytest.mark.parametrize("ring", ["uint16", "uint32"])
@pytest.mark.parametrize(
    "weights", [{}, {"weights": "examples", "max_examples": 9, "weight_levels": 6}, {"weights": {"a": 3.0}}]
)
def test_the_default_has_room_for_any_number_of_updates(ring: Any, weights: dict[str, Any]) -> None:
    combine = FixedPointSum(ring=ring, **weights)
    for num in range(1, 101):
        point = combine.fixed_point(num)
        more = replace(point, value_bits=point.value_bits + 1)
        assert point.room or point.value_bits == 2
        assert point.value_bits == MOST_BITS or not more.room


@pytest.mark.parametrize("num", [3, 5, 8, 50])
def test_the_largest_values_do_not_wrap_around(num: int) -> None:
    point = FixedPointSum(ring="uint16").fixed_point(num)
    x = np.full(3, point.range, np.float32)
    total = np.sum([point.encode(x, 1, {}, ()) for _ in range(num)], axis=0, dtype=np.uint16)
    out = np.empty(3, np.float32)
    assert point.decode(total, 3, out).weight == num and np.allclose(out, point.range)


def test_more_elements_are_cut_than_can_be_counted() -> None:
    """The count stops where an element's number would, so that it has room wherever these have."""
    point = FixedPointSum(ring="uint16").fixed_point(8)
    assert point.most_cut == point.levels
    total = np.sum(
        [point.encode(np.full(9_000, 99, np.float32), 1, {}, ()) for _ in range(8)], axis=0, dtype=np.uint16
    )
    assert point.decode(total, 9_000, np.empty(9_000, np.float32)).cut == 8 * point.levels

"""Whole numbers in a ring: what is lost is half a quantum an element, and nothing wraps around."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.metrics import Sums
from orchestrator.privacy.fixed_point import FixedPoint, extra, metrics_of, shapes_of
from orchestrator.privacy.ring_sum import FixedPointSum

LOSS = {"loss": Sums("mean", (12.3456789, 100.0)), "auc": Sums("auc", (1.0, 0.0, 3.0, 1e9))}


def point(
    ring: str = "uint32", bits: int = 20, weight: int = 1, updates: int = 3, range: float = 2.0
) -> FixedPoint:
    return FixedPoint(ring, bits, weight, updates, range)  # type: ignore[arg-type]


def summed(
    made: FixedPoint, xs: Sequence[Any], weights: Sequence[int] = (1, 1, 1), metrics: Any = None
) -> Any:
    shapes = shapes_of(metrics or {})
    rows = [
        made.encode(np.asarray(x, np.float32), w, metrics or {}, shapes)
        for x, w in zip(xs, weights, strict=False)
    ]
    total = rows[0].copy()
    for row in rows[1:]:
        total += row
    out = np.empty(len(xs[0]), np.float32)
    return out, made.decode(total, out.size, out)


@pytest.mark.parametrize("ring, bits, weight", [("uint32", 20, 255), ("uint16", 10, 10), ("uint32", 24, 1)])
def test_the_mean_is_right_to_half_a_quantum(ring: str, bits: int, weight: int) -> None:
    made, rng = point(ring, bits, weight), np.random.default_rng(0)
    assert made.room
    xs, weights = rng.uniform(-2, 2, (3, 70_000)).astype(np.float32), (1, weight, max(1, weight // 3))
    mean, total = summed(made, xs, weights)
    exact = np.average(xs.astype(np.float64), axis=0, weights=weights)
    assert np.abs(mean - exact).max() <= made.quantum / 2 + 2**-22
    assert (total.weight, total.cut) == (sum(weights), 0)


@pytest.mark.parametrize(
    "ring, bits, weight, updates", [("uint32", 20, 255, 16), ("uint16", 13, 1, 8), ("uint16", 8, 15, 17)]
)
def test_the_largest_values_add_up_exactly_and_one_bit_more_has_no_room(
    ring: str, bits: int, weight: int, updates: int
) -> None:
    made = point(ring, bits, weight, updates)
    assert made.room and made.headroom == 0
    for sign in (1, -1):
        mean, total = summed(made, [[sign * 2.0] * 3] * updates, [weight] * updates)
        np.testing.assert_allclose(mean, sign * 2.0, rtol=2**-22)
        assert total.weight == weight * updates
    assert not point(ring, bits + 1, weight, updates).room
    assert not point(ring, bits, weight, updates * 2).room


def test_what_does_not_fit_is_cut_and_counted() -> None:
    mean, total = summed(point(), [[2.5, 0.0, -9.0], [0.0, 0.0, 0.0], [2.0, 1.0, -2.0]])
    np.testing.assert_allclose(mean, [4 / 3, 1 / 3, -4 / 3], atol=1e-5)
    assert total.cut == 2 and total.over == (2, 2)


@pytest.mark.parametrize("largest, over", [(0.06, (0, 0)), (0.1, (0, 3)), (0.6, (3, 3))])
def test_updates_say_whether_they_are_small(largest: float, over: tuple[int, int]) -> None:
    made = point()
    total = summed(made, [[largest, 0.0]] * 3)[1]
    assert total.over == over
    after = FixedPointSum().next_settings(made, total)["range"]
    assert largest <= after <= made.range and (after < made.range) == (over != (3, 3))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        summed(point(), [[1.0, bad]])


def test_metrics_come_back_as_sums() -> None:
    _, total = summed(point("uint16", 8, 1, 3), [[0.0]] * 3, metrics=LOSS)
    together = metrics_of(total.limbs, shapes_of(LOSS))
    for name, sums in LOSS.items():
        np.testing.assert_allclose(together[name].values, [3 * value for value in sums.values], atol=2e-6)
        assert together[name].kind == sums.kind


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.integers(3, 200))
def test_metrics_of_many_silos(values: list[float], times: int) -> None:
    made = point("uint16", 2, 1, times)
    metrics = {"m": Sums("mean", tuple(values))}
    row = made.encode(np.zeros(1, np.float32), 1, metrics, shapes_of(metrics))
    total = np.zeros_like(row)
    for _ in range(times):
        total += row
    found = metrics_of(total[1 + extra(()) :], shapes_of(metrics))["m"].values
    np.testing.assert_allclose(found, [times * value for value in values], atol=times * 2.0**-20)


def test_a_metric_that_is_missing_adds_nothing() -> None:
    shapes = shapes_of(LOSS)
    row = point().encode(np.zeros(1, np.float32), 1, {"auc": Sums("auc", (1.0, 2.0))}, shapes)
    assert not row[1 + extra(()) :].any() and row.size == 1 + extra(shapes)


def test_a_weight_out_of_bounds_is_refused() -> None:
    for weight in (0, 6, -1):
        with pytest.raises(ValueError, match="not in"):
            point(weight=5).encode(np.zeros(1, np.float32), weight, {}, ())


@given(st.integers(1, 400), st.integers(1, 65535), st.sampled_from(["uint16", "uint32"]))
def test_a_value_gets_as_many_bits_as_have_room(updates: int, levels: int, ring: str) -> None:
    sums = FixedPointSum(ring=ring, weights="examples", max_examples=1, weight_levels=levels)
    made = sums.fixed_point(updates)
    assert made.room or made.value_bits == 2
    assert made.value_bits in (2, 24) or not replace(made, value_bits=made.value_bits + 1).room

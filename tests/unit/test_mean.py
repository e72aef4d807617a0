"""The weighted mean: exact sums, the order of the rows, blocks, and how far one update moves it."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.aggregation.mean import _CACHED, Mean


def rows_of(seed: int, num_rows: int, size: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.integers(-6, 6, (num_rows, 1))
    return list((rng.standard_normal((num_rows, size)) * scale).astype(np.float32))


def merged(rows: list[np.ndarray], shares: list[float]) -> np.ndarray:
    out = np.full(rows[0].size, np.nan, np.float32)
    Mean().merge(rows, shares, out)
    return out


@given(st.integers(0, 999), st.integers(1, 9), st.integers(1, 40))
def test_the_sum_is_exact_but_for_one_rounding(seed: int, num_rows: int, size: int) -> None:
    """float64 accumulation is far below half a float32 step, unless the exact sum lies at a tie or the terms
    cancel: so at most one float32 step of the largest term, and mostly none."""
    rows = rows_of(seed, num_rows, size)
    shares = (np.random.default_rng(seed).dirichlet(np.ones(num_rows))).tolist()
    out = merged(rows, shares)
    for i in range(size):
        exact = sum(
            Fraction(share) * Fraction(float(row[i])) for share, row in zip(shares, rows, strict=True)
        )
        largest = max(abs(share * float(row[i])) for share, row in zip(shares, rows, strict=True))
        assert (
            abs(float(exact) - float(out[i]))
            <= np.spacing(np.float32(abs(float(exact)))) / 2 * (1 + 1e-6) + 1e-14 * largest
        )


@pytest.mark.parametrize("size", [1, _CACHED - 1, _CACHED, _CACHED + 1, 3 * _CACHED + 5])
def test_the_cut_into_blocks_changes_no_bit(size: int) -> None:
    rows, shares = rows_of(1, 5, size), [0.1, 0.2, 0.3, 0.15, 0.25]
    whole = merged(rows, shares)
    assert not np.isnan(whole).any()
    cut = size // 3
    first, second = (
        merged([r[:cut] for r in rows], shares) if cut else np.empty(0),
        merged([r[cut:] for r in rows], shares),
    )
    assert np.concatenate([first, second]).astype(np.float32).tobytes() == whole.tobytes()


@settings(max_examples=30)
@given(st.permutations(range(6)))
def test_only_the_order_of_the_rows_could_change_bits(order: list[int]) -> None:
    """The driver always sums by silo name; this shows that the order does matter, so that sorting must be tested."""
    rows, shares = rows_of(3, 6, 4000), [0.11, 0.23, 0.17, 0.19, 0.21, 0.09]
    straight = merged(rows, shares)
    other = merged([rows[i] for i in order], [shares[i] for i in order])
    assert np.abs(straight - other).max() <= 2e-7 * np.abs(np.array(rows)).max()


def test_equal_updates_are_their_own_mean() -> None:
    row = rows_of(0, 1, 100)[0]
    assert merged([row] * 4, [0.25] * 4).tobytes() == row.tobytes()
    assert merged([row], [1.0]).tobytes() == row.tobytes()


def test_weights() -> None:
    assert Mean().weight("a", 30) == 30.0
    assert Mean(weights="uniform").weight("a", 30) == 1.0
    assert Mean(weights={"a": 2, "b": 5}).weight("b", 30) == 5.0


def test_declared_sensitivity_is_met_exactly() -> None:
    """Replacing one update of norm C by its opposite moves a uniform mean of n by 2 C / n, and not further."""
    rng = np.random.default_rng(0)
    rows = [row / np.linalg.norm(row) for row in rng.standard_normal((4, 50)).astype(np.float32)]
    moved = merged(rows, [0.25] * 4) - merged([-rows[0], *rows[1:]], [0.25] * 4)
    assert np.linalg.norm(moved) == pytest.approx(Mean(weights="uniform").sensitivity(1.0, 4), rel=1e-6)
    assert Mean().sensitivity(1.0, 4) is None, "with example weights one silo may have any share"

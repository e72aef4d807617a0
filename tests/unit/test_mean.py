"""The weighted mean: how exact it is, the order of the rows, blocks, and how far one update moves it."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.aggregation.mean import Mean


def rows_of(seed: int, num_rows: int, size: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.integers(-6, 6, (num_rows, 1))
    return list((rng.standard_normal((num_rows, size)) * scale).astype(np.float32))


def merged(rows: list[np.ndarray], shares: list[float]) -> np.ndarray:
    out = np.full(rows[0].size, np.nan, np.float32)
    Mean().merge(rows, shares, out)
    return out


@given(st.integers(0, 999), st.integers(1, 9), st.integers(1, 40))
def test_the_error_is_at_most_a_float32_step_per_silo(seed: int, num_rows: int, size: int) -> None:
    """Three roundings a row, of the share, the product and the sum, each half a step of the sum of magnitudes."""
    rows = rows_of(seed, num_rows, size)
    shares = (np.random.default_rng(seed).dirichlet(np.ones(num_rows))).tolist()
    out = merged(rows, shares)
    for i in range(size):
        terms = [Fraction(share) * Fraction(float(row[i])) for share, row in zip(shares, rows, strict=True)]
        bound = (num_rows + 2) * 2.0**-24 * float(sum(abs(term) for term in terms)) + 1e-44
        assert abs(float(sum(terms) - Fraction(float(out[i])))) <= bound


def test_the_sum_is_the_one_that_a_loop_over_silos_would_make() -> None:
    """Each element by itself, in the order of the rows, rounded after each operation: no machine may do it
    otherwise (a fused multiply-add or a tree of sums would)."""
    rows, shares = rows_of(2, 7, 5000), np.random.default_rng(2).dirichlet(np.ones(7)).tolist()
    expected = []
    for i in range(5000):
        total = np.float32(0)
        for share, row in zip(shares, rows, strict=True):
            total = np.float32(total + np.float32(np.float32(share) * row[i]))
        expected.append(total)
    np.testing.assert_array_equal(merged(rows, shares), np.array(expected, np.float32))


@pytest.mark.parametrize("size", [1, 15, 4096, 65_537])
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
    """The driver always sums by silo name, in whatever order the updates came."""
    rows, shares = rows_of(3, 6, 4000), [0.11, 0.23, 0.17, 0.19, 0.21, 0.09]
    straight = merged(rows, shares)
    other = merged([rows[i] for i in order], [shares[i] for i in order])
    assert np.abs(straight - other).max() <= 5e-7 * np.abs(np.array(rows)).max()


def test_order_does_matter_so_that_sorting_must_be_tested() -> None:
    rows, shares = rows_of(3, 6, 4000), [1 / 6] * 6
    assert (merged(rows, shares) != merged(rows[::-1], shares)).any()


def test_equal_updates_are_their_own_mean() -> None:
    row = rows_of(0, 1, 100)[0]
    assert merged([row] * 4, [0.25] * 4).tobytes() == row.tobytes()
    assert merged([row], [1.0]).tobytes() == row.tobytes()


def test_weights() -> None:
    assert Mean().weight("a", 30) == 30.0
    assert Mean(weights="uniform").weight("a", 30) == 1.0
    assert Mean(weights={"a": 2, "b": 5}).weight("b", 30) == 5.0


def test_declared_sensitivity_is_met_exactly() -> None:
    """Zeros in place of one update of norm C move a uniform mean of n by C / n, its opposite by twice that."""
    rng = np.random.default_rng(0)
    rows = [row / np.linalg.norm(row) for row in rng.standard_normal((4, 50)).astype(np.float32)]
    shares = [0.25] * 4
    declared = Mean(weights="uniform").sensitivity(1.0, shares)
    for instead, times in ((0 * rows[0], 1), (-rows[0], 2)):
        moved = merged(rows, shares) - merged([instead, *rows[1:]], shares)
        assert np.linalg.norm(moved) == pytest.approx(times * declared, rel=1e-6)
    assert Mean(weights={"a": 3, "b": 1}).sensitivity(2.0, [0.75, 0.25]) == 1.5
    assert Mean().sensitivity(1.0, shares) is None, "with example weights one silo may have any share"

"""Robust rules against loops over all rows, and against rows that want to move them."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.aggregation import robust
from orchestrator.core.random import rng_of


def rows_of(seed: int, count: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)


def nearest(value: Fraction, got: float) -> bool:
    return abs(Fraction(got) - value) <= abs(value) * Fraction(1, 2**23)


@given(st.integers(0, 999), st.integers(1, 9), st.integers(1, 30))
@settings(max_examples=40)
def test_the_median_is_the_middle_of_each_column(seed: int, count: int, size: int) -> None:
    rows = rows_of(seed, count, size)
    got = robust.median(rows)
    for column, value in zip(rows.T, got, strict=True):
        ordered = sorted(Fraction(float(x)) for x in column)
        wanted = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
        assert nearest(wanted, float(value))


@given(st.integers(0, 999), st.integers(0, 3), st.integers(1, 5), st.integers(1, 30))
@settings(max_examples=40)
def test_the_trimmed_mean_leaves_out_the_extremes(seed: int, trim: int, more: int, size: int) -> None:
    rows = rows_of(seed, 2 * trim + more, size)
    got = robust.trimmed_mean(rows, trim)
    for column, value in zip(rows.T, got, strict=True):
        left = [Fraction(float(x)) for x in sorted(column)]
        for _ in range(trim):
            left.remove(max(left))
            left.remove(min(left))
        assert abs(float(sum(left) / len(left)) - float(value)) <= 1e-7 * max(1, float(abs(max(left))))


@given(st.integers(0, 999), st.integers(0, 2), st.integers(0, 4), st.integers(1, 20))
@settings(max_examples=40)
def test_krum_is_what_trying_all_neighbours_finds(seed: int, trim: int, more: int, size: int) -> None:
    count = 2 * trim + 3 + more
    rows = rows_of(seed, count, size)
    exact = rows.astype(np.float64)
    scores = []
    for i in range(count):
        others = [j for j in range(count) if j != i]
        scores.append(
            min(
                sum(((exact[i] - exact[j]) ** 2).sum() for j in chosen)
                for chosen in itertools.combinations(others, count - trim - 2)
            )
        )
    order = sorted(range(count), key=scores.__getitem__)
    assert robust.krum_order(rows, trim) == order
    assert np.array_equal(robust.krum(rows, trim), rows[order[0]])
    kept = exact[order[: count - trim]]
    np.testing.assert_allclose(robust.multi_krum(rows, trim), kept.mean(axis=0), rtol=0, atol=1e-6)


def test_krum_tells_close_rows_apart_far_from_zero() -> None:
    """Dot products of such rows, in float32, gave a third of the squared distances below zero."""
    rng = np.random.default_rng(0)
    rows = (1400 / 100**0.5 + rng.standard_normal((9, 100)) * 1e-3).astype(np.float32)
    rows[4] = rows[:4].mean(axis=0)
    rows[7] += np.float32(0.01)
    order = robust.krum_order(rows, 1)
    assert order[0] == 4 and order[-1] == 7


@pytest.mark.parametrize("far", [1e3, 1e30, 3e38])
@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "krum", "multi_krum"])
def test_as_many_bad_rows_as_declared_do_not_move_it_beyond_the_others(rule: str, far: float) -> None:
    honest = rows_of(5, 5, 200)
    low, high = honest.min(axis=0), honest.max(axis=0)
    for bad in (np.full((2, 200), far), np.stack([np.full(200, far), np.full(200, -far)])):
        rows = np.concatenate([bad.astype(np.float32), honest])
        got = robust.median(rows) if rule == "median" else getattr(robust, rule)(rows, 2)
        assert ((got >= low) & (got <= high)).all()


def test_one_more_than_declared_does_move_it() -> None:
    """Else the test before could not fail."""
    rows = np.concatenate([np.full((3, 4), 1e6), np.zeros((2, 4))]).astype(np.float32)
    assert (robust.median(rows) == 1e6).all()
    assert (robust.trimmed_mean(rows, 1) > 1e5).all()


def test_too_few_rows_are_refused() -> None:
    rows = rows_of(0, 4, 3)
    with pytest.raises(ValueError, match="it needs 5"):
        robust.krum(rows, 1)
    with pytest.raises(ValueError, match="it needs 5"):
        robust.trimmed_mean(rows, 2)


def test_blocks_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(1, 7, 1000)
    whole = robust.median(rows), robust.trimmed_mean(rows, 2), robust.multi_krum(rows, 2)
    monkeypatch.setattr(robust, "_BLOCK", 64)
    for before, after in zip(
        whole, (robust.median(rows), robust.trimmed_mean(rows, 2), robust.multi_krum(rows, 2)), strict=True
    ):
        assert before.tobytes() == after.tobytes()


@given(st.integers(1, 50), st.integers(3, 6), st.integers(0, 99))
def test_everybody_is_in_one_group_of_enough(count: int, size: int, version: int) -> None:
    names = [f"silo-{i}" for i in range(count)]
    groups = robust.drawn(names, size, rng_of(0, "groups", version))
    assert sorted(itertools.chain(*groups)) == sorted(names)
    lengths = sorted(map(len, groups))
    assert count < size or lengths[0] >= size
    assert lengths[-1] - lengths[0] <= 1 and lengths[-1] < 2 * size
    assert robust.drawn(names[::-1], size, rng_of(0, "groups", version)) == groups


def test_groups_are_drawn_anew_and_evenly() -> None:
    names = [f"s{i}" for i in range(9)]
    together = np.zeros((9, 9))
    for version in range(600):
        for group in robust.drawn(names, 3, rng_of(1, "groups", version)):
            for a, b in itertools.combinations(group, 2):
                together[int(a[1]), int(b[1])] += 1
    pairs = together[np.triu_indices(9, 1)] / 600
    assert abs(pairs - 0.25).max() < 0.08

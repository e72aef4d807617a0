"""Clipping (oracle 35): a short update is untouched, a long one ends at the bound and never above it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.random import rng_of
from orchestrator.privacy.clip import Clip, norm_of, squared_norm


def clipped(x: np.ndarray, bound: float) -> np.ndarray:
    return Clip(max_norm=bound).encode(x.copy(), rng_of(0))


@given(st.integers(0, 10**6), st.integers(1, 3000), st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_no_update_is_longer_than_the_bound(seed: int, size: int, scale: float, bound: float) -> None:
    x = (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)
    y = clipped(x, bound)
    norm = np.linalg.norm(y.astype(np.float64))
    assert norm <= bound
    if np.linalg.norm(x.astype(np.float64)) <= bound * (1 - 1e-6):
        assert y.tobytes() == x.tobytes()
    else:
        assert norm == pytest.approx(bound, rel=1e-4)
        assert np.dot(x.astype(np.float64), y) >= 0.999999 * np.linalg.norm(x.astype(np.float64)) * norm


def test_nothing_is_added_on_the_driver() -> None:
    x = np.arange(3, dtype=np.float32)
    assert Clip(max_norm=1).finish(x, float, rng_of(0)) is x


def test_norms() -> None:
    x = np.random.default_rng(0).standard_normal(200_000, np.float32)
    assert norm_of(x) == pytest.approx(np.linalg.norm(x.astype(np.float64)), rel=1e-6)
    assert squared_norm(np.array([3.0, 4.0], np.float32)) == 25.0
    assert norm_of(np.empty(0, np.float32)) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_one_bad_number_makes_the_norm_non_finite(bad: float) -> None:
    x = np.ones(100_000, np.float32)
    x[77_777] = bad
    assert not np.isfinite(norm_of(x))

"""Keyed randomness: the same key gives the same draw in any process, another key another one."""

import os
import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.random import rng_of, seed_of

keys = st.lists(st.integers(0, 99) | st.text(max_size=5), max_size=4)


def test_seeds_are_those_of_every_release() -> None:
    """Pinned numbers: a change here changes every run's cohorts, batches and resumed rounds."""
    assert seed_of(0) == 0x5FECEB66FFC86F38 >> 1
    assert seed_of(7, "cohort", 3) == 8974988334519396687


def test_another_process_draws_the_same() -> None:
    code = (
        "from orchestrator.core.random import rng_of; "
        "print(rng_of(1, 'order', 's0', 2).integers(0, 1 << 60, 4).tolist())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "123"}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == str(rng_of(1, "order", "s0", 2).integers(0, 1 << 60, 4).tolist())


@given(st.integers(0, 1 << 40), keys)
def test_a_seed_has_63_bits(seed: int, key: list[int | str]) -> None:
    assert 0 <= seed_of(seed, *key) < 1 << 63


def test_parts_of_a_key_do_not_run_together() -> None:
    seeds = {
        seed_of(0, "ab", "c"),
        seed_of(0, "a", "bc"),
        seed_of(0, "abc"),
        seed_of(0, "ab", "c", ""),
        seed_of(1, "ab", "c"),
    }
    assert len(seeds) == 5
    assert len({seed_of(seed, v, silo) for seed in range(10) for v in range(20) for silo in "abcde"}) == 1000


def test_draws_of_different_keys_are_independent() -> None:
    draws = np.array([rng_of(0, "noise", silo).standard_normal(4000) for silo in range(8)])
    off_diagonal = np.corrcoef(draws) - np.eye(8)
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(4000)

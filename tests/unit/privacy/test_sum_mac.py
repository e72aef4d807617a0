"""The mark on a sum: it fits the honest sum of these silos and nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.privacy.sum_mac import COPIES, P, SumMac, added_marks

SECRET, CONTEXT = bytes(range(32)), b"a sum"
SILOS = ("a", "b", "c", "d")


@pytest.fixture
def mac() -> SumMac:
    return SumMac(SECRET, CONTEXT)


def numbers(size: int = 1000) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {silo: rng.integers(0, 1 << 30, size, np.uint64) for silo in SILOS}


def summed(rows: dict[str, np.ndarray], silos: tuple[str, ...] = SILOS) -> np.ndarray:
    return np.sum([rows[silo] for silo in silos], axis=0, dtype=np.uint64)


def marks_of(
    mac: SumMac, rows: dict[str, np.ndarray], silos: tuple[str, ...] = SILOS, chunk: int = 0
) -> np.ndarray:
    return added_marks([mac.marks(silo, chunk, rows[silo]) for silo in silos])


def test_p_is_a_prime_above_32_bits() -> None:
    assert P > 2**32 and all(P % n for n in range(2, 1 << 17))


@given(
    size=st.sampled_from([0, 1, 17, 8192, 16384]),
    num=st.integers(1, 4),
    chunk=st.sampled_from([0, 1, 999_999]),
)
@settings(max_examples=30, deadline=None)
def test_honest_sums_fit(size: int, num: int, chunk: int) -> None:
    mac, rows, silos = SumMac(SECRET, CONTEXT), numbers(size), SILOS[:num]
    assert mac.fits(frozenset(silos), chunk, summed(rows, silos), marks_of(mac, rows, silos, chunk))


def test_the_largest_numbers_of_the_longest_chunk_do_not_overflow(mac: SumMac) -> None:
    """Against whole numbers in Python."""
    row = np.full(1 << 15, 2**32 - 1, np.uint64)
    zeros = mac.marks("a", 5, np.zeros(1 << 15, np.uint64))
    ones = [mac.marks("a", 5, np.eye(1, 1 << 15, i, np.uint64)[0]) for i in (0, 1, (1 << 15) - 1)]
    whole = mac.marks("a", 5, np.ones(1 << 15, np.uint64))
    for copy in range(COPIES):
        alphas = [(int(one[copy]) - int(zeros[copy])) % P for one in ones]
        assert len(set(alphas)) == 3
        total = (int(whole[copy]) - int(zeros[copy])) % P
        assert (int(mac.marks("a", 5, row)[copy]) - int(zeros[copy])) % P == total * (2**32 - 1) % P


def test_nothing_else_fits(mac: SumMac) -> None:
    rows = numbers()
    honest, total, everybody = marks_of(mac, rows), summed(rows), frozenset(SILOS)
    assert mac.fits(everybody, 0, total, honest)
    one = mac.marks("a", 0, rows["a"])
    assert not mac.fits(everybody, 0, rows["a"], one)  # one silo alone
    assert not mac.fits(everybody, 0, 4 * rows["a"], 4 * one % np.uint64(P))  # four times the same
    twice = added_marks([honest, honest])
    assert not mac.fits(everybody, 0, 2 * total, twice)
    three = SILOS[:3]
    assert not mac.fits(everybody, 0, summed(rows, three), marks_of(mac, rows, three))
    assert not mac.fits(frozenset(three), 0, total, honest)
    assert not mac.fits(everybody | {"e"}, 0, total, honest)
    assert not mac.fits(everybody, 1, total, honest)
    assert not mac.fits(everybody, 0, total, marks_of(mac, rows, chunk=1))
    assert not SumMac(SECRET, b"another sum").fits(everybody, 0, total, honest)
    assert not SumMac(bytes(32), CONTEXT).fits(everybody, 0, total, honest)


@given(st.integers(0, 999), st.integers(1, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_one_changed_number_does_not_fit(place: int, change: int) -> None:
    mac, rows = SumMac(SECRET, CONTEXT), numbers()
    total, honest = summed(rows), marks_of(mac, rows)
    total[place] = (int(total[place]) + change) % 2**32
    assert not mac.fits(frozenset(SILOS), 0, total, honest)


def test_a_number_that_is_the_same_modulo_p_does_not_fit(mac: SumMac) -> None:
    rows = numbers()
    total, honest = summed(rows), marks_of(mac, rows)
    total[7] += np.uint64(P)
    assert not mac.fits(frozenset(SILOS), 0, total, honest)


def test_every_copy_is_looked_at(mac: SumMac) -> None:
    rows = numbers()
    for copy in range(COPIES):
        marks = marks_of(mac, rows)
        marks[copy] += np.uint64(1)
        assert not mac.fits(frozenset(SILOS), 0, summed(rows), marks)


def test_marks_of_zeros_say_nothing_of_alpha(mac: SumMac) -> None:
    """They are the pads alone, all different: of silos, chunks and copies, and of sums."""
    zeros = np.zeros(10, np.uint64)
    seen = [int(mark) for s in "ab" for c in range(50) for mark in mac.marks(s, c, zeros)]
    seen += [int(mark) for mark in SumMac(SECRET, b"x").marks("a", 0, zeros)]
    assert len(set(seen)) == 2 * 50 * COPIES + COPIES

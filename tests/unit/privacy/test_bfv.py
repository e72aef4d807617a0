"""BFV for sums: exact, checked at start, and of no use to whoever has no key."""

import sys

import numpy as np
import pytest
from scipy import stats

from orchestrator.core.errors import BadInput
from orchestrator.privacy.bfv import (
    PLAIN_BITS,
    SEALED_BYTES,
    SLOTS,
    SUM_BYTES,
    NoCiphertext,
    Parameters,
    SecretKey,
    padded,
    self_test,
)

TOP = (1 << (PLAIN_BITS - 1)) - 1


@pytest.fixture(scope="module")
def parameters() -> Parameters:
    return self_test(64)


@pytest.fixture(scope="module")
def key(parameters: Parameters) -> SecretKey:
    return SecretKey(parameters)


@pytest.mark.parametrize("num", [1, 3, 50])
def test_sums_are_exact_up_to_the_largest_number(parameters: Parameters, key: SecretKey, num: int) -> None:
    rng = np.random.default_rng(num)
    rows = [rng.integers(0, TOP // num, SLOTS, np.uint64, endpoint=True) for _ in range(num)]
    for row in rows:
        row[:3] = 0, TOP // num, TOP // num
    sealed = [key.encrypted(row) for row in rows]
    total = parameters.added(sealed)
    assert (key.decrypted(total) == np.sum(rows, axis=0, dtype=np.uint64)).all()
    assert key.budget(total) >= 3
    assert max(map(len, sealed)) <= SEALED_BYTES and len(total) <= SUM_BYTES


def test_parameters_that_do_not_hold_are_caught() -> None:
    """56 bits of plain modulus under a chain of 120 bits: said to be fine, and wrong."""
    with pytest.raises(BadInput, match="not exact"):
        self_test(50, 56)
    self_test(500)
    with pytest.raises(BadInput, match="not exact"):
        self_test(3000)


def test_another_key_reads_nothing(parameters: Parameters, key: SecretKey) -> None:
    slots = np.full(SLOTS, 12345, np.uint64)
    sealed = key.encrypted(slots)
    wrong = SecretKey(parameters).decrypted(sealed)
    assert np.intersect1d(wrong, slots).size == 0
    again = SecretKey(parameters, key.dumped())
    assert (again.decrypted(sealed) == slots).all()


def test_zeros_look_like_anything_else(key: SecretKey) -> None:
    """By the low bytes of the coefficients: one that is not uniform would tell something."""
    rng = np.random.default_rng(0)
    for slots in (np.zeros(SLOTS, np.uint64), rng.integers(0, TOP, SLOTS, np.uint64)):
        sealed = b"".join(key.encrypted(slots)[-SLOTS * 8 - 64 : -64] for _ in range(8))
        low = np.frombuffer(sealed, np.uint8)
        counts = np.bincount(low[: low.size // 8 * 8].reshape(-1, 8)[:, 2:6].ravel(), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-6


def test_two_encryptions_of_the_same_have_nothing_in_common(key: SecretKey) -> None:
    slots = np.zeros(SLOTS, np.uint64)
    one, two = (np.frombuffer(key.encrypted(slots)[200:], np.uint64, 8000) for _ in range(2))
    assert (one != two).all()


def test_what_is_no_ciphertext_is_not_read(parameters: Parameters, key: SecretKey) -> None:
    sealed = key.encrypted(np.zeros(SLOTS, np.uint64))
    other = Parameters(40)
    headless = bytes(16) + sealed[16:]
    for bad in (
        b"",
        sealed[:1000],
        sealed[:-1],
        headless,
        key.dumped(),
        SecretKey(other).encrypted(np.zeros(SLOTS, np.uint64)),
    ):
        with pytest.raises(NoCiphertext):
            parameters.added([sealed, bad])
        with pytest.raises(NoCiphertext):
            key.decrypted(bad)
    with pytest.raises(ValueError, match="no secret key"):
        SecretKey(parameters, sealed)


def test_what_follows_a_ciphertext_does_not_count(parameters: Parameters, key: SecretKey) -> None:
    slots = np.arange(SLOTS, dtype=np.uint64)
    sealed = padded(key.encrypted(slots), SEALED_BYTES)
    assert sealed.size == SEALED_BYTES
    assert (key.decrypted(sealed.tobytes()) == slots).all()
    with pytest.raises(BadInput, match="another TenSEAL"):
        padded(bytes(SEALED_BYTES + 1), SEALED_BYTES)


def test_without_tenseal_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tenseal", None)
    with pytest.raises(BadInput, match=r"siloray\[encrypted\]"):
        Parameters()

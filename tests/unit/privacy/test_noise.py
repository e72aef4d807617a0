"""Noise that is normal, secret, new each time, and rounded to where nothing shows through."""

import math

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from orchestrator.core.random import rng_of
from orchestrator.privacy import noise
from orchestrator.privacy.noise import CACHED, GRID_BITS, Normals, add_noise, fresh_key, insecure_key

KEY = bytes(range(32))


def drawn(size: int, key: bytes = KEY, std: float = 1.0) -> np.ndarray:
    x = np.zeros(size, np.float32)
    add_noise(x, std, key)
    return x


def test_a_known_answer() -> None:
    """FIPS 197, appendix C.3, is the first block of this keystream but for its input; so both halves are checked by
    hand: the keystream with the library's other mode, and Box and Muller with Python's own arithmetic."""
    counters = b"".join(i.to_bytes(16, "big") for i in range(3))
    ecb = Cipher(algorithms.AES256(KEY), modes.ECB()).encryptor()
    words = np.frombuffer(ecb.update(counters), "<u8")
    radius = [math.sqrt(-2 * math.log(((int(word) >> 11) + 1) / 2**53)) for word in words[:3]]
    angle = [2 * math.pi * (int(word) >> 11) / 2**53 for word in words[3:]]
    by_hand = [r * math.cos(a) for r, a in zip(radius, angle, strict=True)]
    by_hand += [r * math.sin(a) for r, a in zip(radius, angle, strict=True)]
    assert Normals(KEY).take(6).tolist() == pytest.approx(by_hand, rel=1e-12)
    assert Normals(KEY).take(5).tolist() == pytest.approx(by_hand[:5], rel=1e-12)


def test_it_is_normal() -> None:
    samples = drawn(1_000_000).astype(np.float64)
    assert stats.kstest(samples, "norm").pvalue > 0.01
    assert abs(samples.std() - 1) < 3e-3 and abs(samples.mean()) < 4e-3
    for beyond in (1, 2, 3, 4):
        expected = 2 * stats.norm.sf(beyond) * samples.size
        assert np.sum(np.abs(samples) > beyond) == pytest.approx(expected, abs=4 * math.sqrt(expected))
    assert abs(stats.kurtosis(samples)) < 0.02
    for lag in (1, 2, CACHED // 2, CACHED):
        assert abs(np.corrcoef(samples[:-lag], samples[lag:])[0, 1]) < 4e-3


@pytest.mark.parametrize("size", [1, 2, CACHED - 1, CACHED, CACHED + 1, 3 * CACHED + 7])
def test_any_size(size: int) -> None:
    samples = drawn(size)
    assert len(set(samples.tolist())) > 0.99 * size
    assert samples[:100].tobytes() == drawn(size + 2)[: min(100, size)].tobytes() or size <= CACHED


def test_it_is_added_to_what_is_there() -> None:
    x = np.linspace(-5, 5, 1001, dtype=np.float32)
    y = x.copy()
    add_noise(y, 0.25, KEY)
    assert y - x == pytest.approx(drawn(1001, std=0.25), abs=1e-6)


def test_a_new_draw_each_time_and_the_same_one_in_a_test() -> None:
    assert fresh_key() != fresh_key()
    assert not np.array_equal(drawn(100, fresh_key()), drawn(100, fresh_key()))
    keys = [insecure_key(1, rng_of(0, version)) for version in (1, 1, 2)] + [insecure_key(2, rng_of(0, 1))]
    assert keys[0] == keys[1] and len(set(keys)) == 3


@pytest.mark.parametrize("std", [1e-6, 0.3, 1.0, 7.0])
def test_results_lie_on_a_grid_that_only_the_noise_makes(std: float) -> None:
    """So the gaps between neighbouring results are the same whatever lies below (Mironov 2012)."""
    grid = 2.0 ** (math.frexp(std)[1] - GRID_BITS)
    assert std * 2.0**-24 <= grid <= std * 2.0**-22
    for below in (0.0, 1e-3 * std, std):
        x = np.full(4000, below, np.float32)
        add_noise(x, std, KEY)
        steps = x.astype(np.float64) / grid
        assert np.array_equal(steps, np.rint(steps))
        assert np.count_nonzero(np.abs(x) < std / 1000) > 0 or below == std


def test_the_tests_would_see_a_bad_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug: only 16 bits of each word are used."""
    right = Normals.take

    def coarse(self: Normals, count: int) -> np.ndarray:
        return np.round(right(self, count), 2)

    monkeypatch.setattr(noise.Normals, "take", coarse)
    with pytest.raises(AssertionError):
        test_it_is_normal()


@pytest.mark.parametrize("num_silos, steps", [(3, 2.0), (8, 2.0), (8, 40.0)])
def test_sums_of_rounded_noise_hide_as_much_as_the_noise(num_silos: int, steps: float) -> None:
    """In a ring each silo rounds its own noised numbers. From two steps of the ring on, the sum tells no more than the
    Gaussian of the same variance would, at any epsilon: exact probabilities, worst offset of the data to the ring."""
    reach = math.ceil(12 * steps)
    offsets = np.linspace(0, 1, 9)[:-1]
    std, moved = steps * math.sqrt(num_silos), steps * 0.75 * math.sqrt(num_silos)

    def law(offset: float, extra: int) -> np.ndarray:
        """Probabilities of the sum, from ``-extra`` steps on."""
        edges = np.arange(-reach, reach + 2) - 0.5
        one = np.diff(stats.norm.cdf(edges, scale=steps))
        first = np.diff(stats.norm.cdf(edges, loc=offset, scale=steps))
        total = first
        for _ in range(num_silos - 1):
            total = np.convolve(total, one)
        return np.pad(total, (extra, extra))

    for offset in offsets:
        whole, rest = divmod(offset + moved, 1.0)
        a = law(offset, int(whole))
        b = np.roll(law(rest, int(whole)), int(whole))
        for epsilon in (0.0, 0.5, 1.0, 2.0):
            mu = moved / std
            exact = stats.norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * stats.norm.cdf(
                -mu / 2 - epsilon / mu
            )
            for p, q in ((a, b), (b, a)):
                assert np.maximum(p - math.exp(epsilon) * q, 0).sum() <= exact + 1e-9

"""Noise and clips of whole silos: the numbers of the papers, and what is refused."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from orchestrator.aggregation.mean import Mean
from orchestrator.core.errors import BadJob
from orchestrator.core.protocols import Facts
from orchestrator.core.random import rng_of
from orchestrator.privacy.accountant import Query, epsilon
from orchestrator.privacy.clip import norm_of
from orchestrator.privacy.mechanisms import BOUND, WITHIN, AdaptiveClip, Gaussian, Noise, Within

RNG = rng_of(0)


def noise(multiplier: float = 1.0, bound: float = 2.0, min_silos: int = 8, **spec: Any) -> Noise:
    made = Gaussian(noise_multiplier=multiplier, **spec)
    return made.adapted({}, Facts(min_silos=min_silos, noise_multiplier=multiplier, bound=bound))


def within(norm: float = 1.0, multiplier: float | None = None, **spec: Any) -> Within:
    made = AdaptiveClip(initial_norm=norm, **{"max_norm": 100.0, **spec})
    return made.adapted({}, Facts(min_silos=3, noise_multiplier=multiplier))


def test_the_drivers_noise_is_that_of_the_largest_share() -> None:
    """Oracle 35: within 2 % of sigma * C * max share over 1e5 draws."""
    step = noise(multiplier=1.5, bound=2.0)
    for shares in ([0.125] * 8, [0.6, 0.2, 0.1, 0.1]):
        combine = Mean(weights="uniform")
        x = step.finish(np.zeros(100_000, np.float32), partial(combine.sensitivity, shares=shares), RNG)
        assert x.std() == pytest.approx(1.5 * 2.0 * max(shares), rel=0.02)
    x = np.arange(4, dtype=np.float32)
    assert step.encode(x, RNG) is x and np.array_equal(x, np.arange(4))


def test_the_silos_noise_adds_up_to_it() -> None:
    step = noise(multiplier=1.5, bound=2.0, min_silos=6, where="silos")
    for num_silos in (6, 10):
        rows = [step.encode(np.zeros(50_000, np.float32), RNG) for _ in range(num_silos)]
        total = np.sum(rows, axis=0)
        assert total.std() == pytest.approx(1.5 * 2.0 * math.sqrt(num_silos / 6), rel=0.02)
        assert abs(np.corrcoef(rows)[0, 1]) < 0.02
        multipliers = step.multipliers([[1 / num_silos]] * num_silos)
        assert multipliers == pytest.approx([1.5 * math.sqrt(num_silos / 6)] * num_silos)
    x = np.ones(3, np.float32)
    assert np.array_equal(step.finish(x, lambda bound: bound, RNG), np.ones(3))
    assert step.reach == 2.0 + 8 * step.own_std


def test_each_silo_is_accounted_for_by_its_own_share() -> None:
    step = noise(multiplier=1.0)
    assert step.multipliers([[0.5], [0.25], [0.125, 0.125]]) == [1.0, 2.0, 2.0]
    silos = noise(multiplier=1.0, min_silos=4, where="silos")
    two = silos.multipliers([[0.2], [0.2], [0.2], [0.2, 0.2]])
    assert two == pytest.approx([math.sqrt(5 / 4)] * 3 + [math.sqrt(5 / 4) / 2])


def test_noise_is_new_each_time_but_in_tests_that_ask_for_it() -> None:
    def drawn(step: Noise, version: int) -> bytes:
        return step.finish(np.zeros(9, np.float32), lambda bound: bound, rng_of(0, version)).tobytes()

    assert drawn(noise(), 1) != drawn(noise(), 1)
    seeded = noise(insecure_test_noise_seed=3)
    assert drawn(seeded, 1) == drawn(seeded, 1) != drawn(seeded, 2)
    with pytest.raises(ValidationError, match="with a target the noise must be secret"):
        Gaussian(target_epsilon=1, insecure_test_noise_seed=3)


def test_a_target_or_a_multiplier() -> None:
    for given in ({}, {"noise_multiplier": 1, "target_epsilon": 3}):
        with pytest.raises(ValidationError, match="give noise_multiplier, or target_epsilon"):
            Gaussian(**given)
    z = Gaussian(target_epsilon=3, delta=1e-5).multiplier(40)
    assert 2.99 < epsilon([Query(1, z, 40)], 1e-5) <= 3
    assert Gaussian(noise_multiplier=0.7).multiplier(40) == 0.7


def test_noise_needs_a_bound() -> None:
    with pytest.raises(BadJob, match="without a clip before it is no privacy"):
        Gaussian(noise_multiplier=1).adapted({}, Facts(min_silos=3, noise_multiplier=1.0))


@pytest.mark.parametrize("z, sigma_b", [(1.0, 2.0), (1.0, 0.6), (0.3, 0.4), (5.0, 10.0)])
def test_what_the_count_takes_of_the_noise(z: float, sigma_b: float) -> None:
    """Andrew et al. 2021, theorem 1: z_delta = (z^-2 - (2 sigma_b)^-2)^(-1/2)."""
    clip = within(norm=3.0, multiplier=z, sigma_b=sigma_b)
    std = noise(multiplier=z, bound=clip.bound).multiplier * clip.bound
    assert std / clip.norm == pytest.approx((z**-2 - (2 * sigma_b) ** -2) ** -0.5, rel=1e-5)
    assert std / (clip.norm * clip.scale) == pytest.approx(sigma_b, rel=1e-5)
    if (z, sigma_b) == (1.0, 2.0):
        assert std / clip.norm == pytest.approx(1.0328, abs=1e-4)


@pytest.mark.parametrize("sigma_b", [0.4, 0.5])
def test_a_count_that_would_take_all_of_it(sigma_b: float) -> None:
    """The usual m / 20 is 0.4 with 8 silos."""
    with pytest.raises(BadJob, match=r"takes up all of noise_multiplier 1: .* half of it; 1 leaves 0\.87"):
        within(multiplier=1.0, sigma_b=sigma_b)
    for better, left in ((1.0, 0.87), (2.0, 0.97)):
        clip = within(multiplier=1.0, sigma_b=better)
        assert clip.norm / clip.bound == pytest.approx(left, abs=0.01)


@pytest.mark.parametrize("length", [0.0, 0.5, 1.0, 1.5, 1e6])
def test_no_update_leaves_longer_than_the_bound(length: float) -> None:
    clip = within(norm=1.0, multiplier=1.0, sigma_b=0.7)
    x = np.append(np.random.default_rng(0).standard_normal(999), 0).astype(np.float32)
    x *= np.float32(length / norm_of(x))
    y = clip.encode(x.copy(), RNG)
    assert norm_of(y) <= clip.bound and norm_of(y[:-1]) == pytest.approx(min(length, 1.0), rel=1e-5)
    assert y[-1] == np.float32(clip.scale * (0.5 if length <= 1.0 else -0.5))


def follow(norms: np.ndarray, clip: AdaptiveClip, z: float | None, rounds: int) -> list[float]:
    """The bound over the rounds, of silos whose updates have these lengths."""
    facts, settings, bounds = Facts(min_silos=3, noise_multiplier=z), {}, []
    share = 1 / norms.size
    for _ in range(rounds):
        step = clip.adapted(settings, facts)
        x = sum(share * step.encode(np.array([norm, 0], np.float32), RNG) for norm in norms)
        if z is not None:
            after = Gaussian(noise_multiplier=z).adapted({}, Facts(3, z, step.bound))
            x = after.finish(x, lambda bound: bound * share, RNG)
        settings = step.next_settings({WITHIN: x[1:]}, 1.0)
        bounds.append(settings[BOUND])
    return bounds


@pytest.mark.parametrize("start", [0.01, 50.0])
@pytest.mark.parametrize("quantile", [0.5, 0.9])
@pytest.mark.parametrize("z", [None, 1.0])
def test_the_bound_finds_the_quantile(start: float, quantile: float, z: float | None) -> None:
    norms = np.random.default_rng(1).lognormal(0, 1, 40)
    clip = AdaptiveClip(initial_norm=start, max_norm=100, quantile=quantile, sigma_b=2.0)
    bounds = np.array(follow(norms, clip, z, 120 if start < 1 else 160))[-30:]
    below = np.mean(norms[None] <= bounds[:, None])
    assert below == pytest.approx(quantile, abs=0.05 if z is None else 0.09)


def test_the_bound_keeps_its_limit_whatever_the_driver_says() -> None:
    clip = AdaptiveClip(initial_norm=1, max_norm=2, quantile=0.99)
    assert max(follow(np.full(5, 1e3), clip, None, 30)) == 2.0
    for said, used in (
        (1e9, 2.0),
        (math.inf, 2.0),
        (1.5, 1.5),
        (0.1, 0.5),
        (0, 0.5),
        (-1e9, 0.5),
        (math.nan, 0.5),
    ):
        assert clip.adapted({BOUND: said}, Facts(min_silos=3, least_bound=0.5)).norm == used
    with pytest.raises(ValidationError, match="initial_norm 3 is above max_norm 2"):
        AdaptiveClip(initial_norm=3, max_norm=2)

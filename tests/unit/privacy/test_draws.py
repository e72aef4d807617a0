"""Noise and draws of DP-SGD: the law that they follow, and that they repeat only where a test asks for it."""

import numpy as np
import pytest
import torch
from scipy import stats

from silos.draws import Draws


def noise(draws: Draws, size: int, deviation: float = 1.0) -> np.ndarray:
    vector = torch.zeros(size)
    draws.add_normal(vector, deviation)
    return vector.numpy().astype(np.float64)


def test_noise_is_gaussian() -> None:
    found = noise(Draws.insecure(1), 1 << 20, 2.5) / 2.5
    assert abs(found.std() - 1) < 0.005 and abs(found.mean()) < 0.005
    assert stats.kstest(found, "norm").pvalue > 1e-3
    assert abs(stats.kurtosis(found)) < 0.05
    assert 4.5 < abs(found).max() < 6.5
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.005


@pytest.mark.parametrize("size", [1, 2, 7, (1 << 17) - 1, (1 << 17) + 1])
def test_every_element_gets_noise_of_its_own(size: int) -> None:
    found = noise(Draws.fresh(), size)
    assert len(found) == size and found.all()
    assert len(np.unique(found)) > 0.99 * size


def test_noise_is_added() -> None:
    vector = torch.full((1 << 16,), 3.0)
    Draws.fresh().add_normal(vector, 0.1)
    assert abs(float(vector.mean()) - 3.0) < 0.01 and abs(float(vector.std()) - 0.1) < 0.005


def test_each_unit_is_taken_on_its_own() -> None:
    """Numbers taken are binomial, and so is how often any one is."""
    draws, num, q, times = Draws.insecure(2), 400, 0.05, 4000
    taken = [draws.chosen(num, q) for _ in range(times)]
    sizes = np.array([len(each) for each in taken])
    assert abs(sizes.mean() - num * q) < 5 * (num * q * (1 - q) / times) ** 0.5
    assert abs(sizes.var() / (num * q * (1 - q)) - 1) < 0.1
    often = np.bincount(torch.cat(taken).numpy(), minlength=num)
    assert abs(often.var() / (times * q * (1 - q)) - 1) < 0.3
    assert all((each[1:] > each[:-1]).all() for each in taken)


def test_all_and_none() -> None:
    draws = Draws.fresh()
    assert draws.chosen(100, 1.0).tolist() == list(range(100))
    assert not len(draws.chosen(100, 0.0))
    assert sum(len(draws.chosen(3, 0.01)) == 0 for _ in range(50)) > 30


def test_some_of_a_patients_records() -> None:
    draws, rows = Draws.insecure(3), torch.arange(10, 20)
    assert torch.equal(draws.some_of(rows, 10), rows)
    often = np.bincount(np.concatenate([draws.some_of(rows, 3).numpy() for _ in range(2000)]), minlength=20)
    assert not often[:10].any() and abs(often[10:] / 600 - 1).max() < 0.15


def test_only_insecure_draws_repeat() -> None:
    assert (noise(Draws.insecure(1, "a"), 9) == noise(Draws.insecure(1, "a"), 9)).all()
    assert not (noise(Draws.insecure(1, "a"), 9) == noise(Draws.insecure(1, "b"), 9)).any()
    assert not (noise(Draws.fresh(), 9) == noise(Draws.fresh(), 9)).any()
    torch.manual_seed(0)
    np.random.seed(0)
    one = noise(Draws.fresh(), 9)
    torch.manual_seed(0)
    np.random.seed(0)
    assert not (one == noise(Draws.fresh(), 9)).any()

"""Membership inference against a silo's training: who was in it shows, without noise; with DP-SGD it does not."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from orchestrator.privacy.accountant import Query, epsilon
from silos.trainer import TorchTrainer
from tests.support.quadratic import job_of
from tests.support.records import Rows, order_of

pytestmark = pytest.mark.slow
DP = {"name": "dp_sgd", "max_grad_norm": 1.0, "insecure_test_noise_seed": 0}


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


class Digits(Rows):
    """Scikit-learn's digits, a fifth of them with a label drawn at random: half of them to train on, and the other half
    to tell apart from these."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(perceptron)
        datasets = pytest.importorskip("sklearn.datasets")
        pixels, labels = datasets.load_digits(return_X_y=True)
        rng = np.random.default_rng(seed)
        drawn = rng.random(len(labels)) < 0.2
        labels = np.where(drawn, rng.integers(0, 10, len(labels)), labels)
        order = rng.permutation(len(labels))
        halves = {"train": order[: len(order) // 2], "test": order[len(order) // 2 :]}
        self.data = {
            split: (torch.from_numpy(pixels[rows] / 16).float(), torch.from_numpy(labels[rows]))
            for split, rows in halves.items()
        }


def losses(module: nn.Module, batch: tuple[torch.Tensor, ...]) -> np.ndarray:
    module.eval()
    with torch.no_grad():
        return functional.cross_entropy(module(batch[0]), batch[1], reduction="none").numpy()


def attacked(steps: int, lr: float, privacy: list[dict[str, Any]]) -> tuple[float, float]:
    """Area under the curve of telling members by their smaller loss; accuracy on the members."""
    local = {"steps": steps, "batch_size": 64, "optimizer": {"lr": lr, "momentum": 0.9}}
    task = Digits()
    made = TorchTrainer(job_of(["a"], local=local, privacy=privacy), "a", task, "cpu")
    trained = made.train(order_of(made))
    with torch.no_grad():
        made.flat.shared.copy_(torch.from_numpy(made.initial()["params"] + trained.parts["delta"]))
    module = made.flat.module
    members, strangers = losses(module, task.data["train"]), losses(module, task.data["test"])
    smaller = (members[:, None] < strangers).mean() + 0.5 * (members[:, None] == strangers).mean()
    right = (module(task.data["train"][0]).argmax(1) == task.data["train"][1]).float().mean()
    return float(smaller), float(right)


def test_a_training_without_noise_shows_who_was_in_it() -> None:
    area, right = attacked(5000, 0.05, [])
    assert area >= 0.65 and right > 0.95


@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_one_with_noise_does_not(sigma: float) -> None:
    area, right = attacked(600, 0.05, [{**DP, "noise_multiplier": sigma}])
    assert area <= 0.57 and right > 0.6
    assert epsilon([Query(64 / 898, sigma, 600)], 1e-5) < 14


def test_cutting_alone_is_no_protection() -> None:
    """The noise does it, and not the bound."""
    area, _ = attacked(4000, 0.5, [{**DP, "noise_multiplier": 1e-9}])
    assert area >= 0.65

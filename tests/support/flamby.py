"""FLamby's Fed-Heart-Disease, with its own initial weights and order of batches (shared/data/README.md)."""

import csv
import random
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from orchestrator.task import Tabular
from silos.tasks.tabular import TabularTask
from silos.tasks.task import At, Batch
from tests.support.shared_data import folder

SHARED = folder("heart_disease")
HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
SEEDS = (42, 43, 44, 45, 46)
NUMERIC = ("age", "sex", "trestbps", "chol", "fbs", "thalach", "exang", "oldpeak")
SPEC = {
    "name": "tabular",
    "dataset": "heart",
    "target": "disease",
    "features": [*NUMERIC, "cp", "restecg"],
    "categories": {"cp": [1, 2, 3, 4], "restecg": [0, 1, 2]},
}


@cache
def schedule() -> dict[str, np.ndarray]:
    with np.load(SHARED / "flamby_schedule.npz") as file:
        return dict(file)


@cache
def published() -> dict[tuple[str, int], tuple[float, ...]]:
    """(rule, seed) -> accuracy at each of the four hospitals."""
    with (SHARED / "flamby_published.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {
        (row["method"], int(row["seed"])): tuple(float(row[f"site{i}"]) for i in range(4)) for row in rows
    }


class ScheduledTask(TabularTask):
    """The heart task with FLamby's weights and batches instead of seeded ones.

    Every training waits up to ``pause_s`` seconds, as chance has it; that of version ``slow`` waits ``slow_s``.
    """

    def __init__(
        self, data: Any, seed: int, pause_s: float = 0.0, slow: int | None = None, slow_s: float = 1.0
    ) -> None:
        super().__init__(Tabular.model_validate(SPEC), data)
        self._seed, self._pause_s, self._slow = seed, pause_s, {slow: slow_s}

    def model(self) -> nn.Module:
        model = nn.Linear(13, 1)
        initial = torch.from_numpy(schedule()[f"init_s{self._seed}"])
        with torch.no_grad():
            model.weight.copy_(initial[:13])
            model.bias.copy_(initial[13:])
        return model

    def train_batches(self, at: At, batch_size: int) -> Iterator[Batch]:
        inputs, labels = self._tensors["train"]
        time.sleep(self._slow.get(at.version, random.SystemRandom().uniform(0, self._pause_s)))
        for rows in schedule()[f"order_s{self._seed}_site{HOSPITALS.index(at.silo)}"][at.version]:
            chosen = torch.from_numpy(rows[rows != 255].astype(np.int64))
            yield inputs[chosen], labels[chosen]


ADAPTIVE = {"beta1": 0.9, "tau": 1e-8}
RULES: dict[str, tuple[dict[str, Any], float]] = {
    "FedAvg": ({"name": "fedavg"}, 0.001),
    "FedProx": ({"name": "fedprox", "mu": 0.01}, 0.001),
    "Scaffold": ({"name": "scaffold"}, 0.001),
    "FedAdam": ({"name": "fedavg", "server": {"name": "adam", "lr": 0.01, "beta2": 0.999, **ADAPTIVE}}, 0.01),
    "FedYogi": (
        {"name": "fedavg", "server": {"name": "yogi", "lr": 0.01, "beta2": 0.999, **ADAPTIVE}},
        10**-2.5,
    ),
    "FedAdagrad": ({"name": "fedavg", "server": {"name": "adagrad", "lr": 10**-0.5, **ADAPTIVE}}, 10**-2.5),
}


def job(
    rule: str, seed: int, lr: float | None = None, options: dict[str, Any] | None = None, **sections: Any
) -> dict[str, Any]:
    """The job document of one published run; ``options`` are the task's."""
    strategy, local_lr = RULES[rule]
    given = {"seed": seed, **(options or {})}
    return {
        "name": f"flamby-{rule.lower()}-{seed}",
        "task": {"name": "tests.support.flamby:ScheduledTask", "dataset": "heart", "options": given},
        "silos": list(HOSPITALS),
        "rounds": {"total": 15, "patience_s": 30, **sections.pop("rounds", {})},
        "strategy": strategy,
        "local": {"steps": 100, "batch_size": 4, "optimizer": {"name": "sgd", "lr": lr or local_lr}},
        "stop": {"metric": "accuracy"},
        "report": {"silos": False},  # the schedule has no batches for more than its fifteen rounds
        **sections,
    }

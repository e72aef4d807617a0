"""Eight silos with unequal labels, in memory: the synthetic set of notes/algorithms.md section 3.5.

Ten classes of four Gaussian clusters each in 32 dimensions; labels are Dirichlet(.3) over silos whose sizes differ.
``rare``: three classes lie only with the two slowest silos. Everything is drawn with the seed.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.open_site import OpenSite
from orchestrator.core.metrics import MetricSums, Sums, values
from orchestrator.core.vector import Parts
from orchestrator.job import Job
from orchestrator.simulation.loop import now
from silos.silo import Silo
from silos.site import Order
from silos.tasks.order import shuffled
from silos.tasks.task import At, Batch, Split
from silos.trainer import TorchTrainer

SILOS = tuple(f"silo-{i}" for i in range(8))
SLOWEST = (3, 7)
"""Of `PROFILES["dm"]`, whose four speeds the silos have in turn."""
RARE = (7, 8, 9)
CLASSES, CLUSTERS, SIZE = 10, 4, 32
SCALE, SPREAD = 0.5, 0.575
"""Standard deviations: of the clusters' centres, and of a cluster about its centre."""
TRAIN, TEST, OWN_TEST = 8_000, 4_000, 400


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(SIZE, 64), nn.ReLU(), nn.Linear(64, CLASSES))


@dataclass
class Rows:
    """A task on rows in memory (`silos.tasks.task.Task`)."""

    train: Batch
    test: Batch

    def model(self) -> nn.Module:
        return network()

    def num_examples(self, split: Split) -> int:
        return len(getattr(self, split)[1])

    def train_batches(self, at: At, batch_size: int) -> Iterator[Batch]:
        for rows in shuffled(len(self.train[1]), at, batch_size):
            yield self.train[0][rows], self.train[1][rows]

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        yield from zip(*(part.split(batch_size) for part in self.test), strict=True)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1])

    @torch.no_grad()
    def measure(self, model: nn.Module, batch: Batch) -> MetricSums:
        right = float((model(batch[0]).argmax(1) == batch[1]).sum().item())
        return {"accuracy": Sums("mean", (right, float(len(batch[1]))))}


class Federation:
    """The silos' rows, and test rows of all classes alike."""

    def __init__(self, seed: int, rare: bool = False) -> None:
        rng = np.random.default_rng(seed)
        self._centres = SCALE * rng.standard_normal((CLASSES * CLUSTERS, SIZE))
        train, test = self._draw(rng, _labels(rng, TRAIN)), self._draw(rng, _labels(rng, TEST))
        owner = _owners(rng, train[1].numpy(), rare)
        self.pooled = Rows(train, test)
        self.silos = {name: self._of(rng, owner == i, train) for i, name in enumerate(SILOS)}

    def _of(self, rng: np.random.Generator, own: np.ndarray, train: Batch) -> Rows:
        """With test rows of the silo's own mix of classes."""
        rows = torch.from_numpy(np.flatnonzero(own))
        x, y = train[0][rows], train[1][rows]
        return Rows((x, y), self._draw(rng, rng.choice(y.numpy(), OWN_TEST)))

    def _draw(self, rng: np.random.Generator, labels: np.ndarray) -> Batch:
        centre = self._centres[labels * CLUSTERS + rng.integers(CLUSTERS, size=len(labels))]
        x = centre + SPREAD * rng.standard_normal(centre.shape)
        return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(labels.astype(np.int64))

    def makers(self, folder: Path) -> dict[str, Callable[[], Silo]]:
        return {name: partial(Silo, OpenSite(name, task, folder), now) for name, task in self.silos.items()}

    def judge(self, job: Job) -> Callable[[int, Parts], Mapping[str, float]]:
        trainer = TorchTrainer(job, "judge", self.pooled, "cpu")
        return lambda version, model: values(trainer.evaluate(_order(version, model)))

    def by_silo(self, job: Job, model: Parts) -> dict[str, float]:
        """Accuracy on each silo's own mix of classes."""
        trainers = {name: TorchTrainer(job, name, task, "cpu") for name, task in self.silos.items()}
        return {name: values(t.evaluate(_order(0, model)))["accuracy"] for name, t in trainers.items()}

    def centralised(self, job: Job, epochs: int = 60) -> float:
        """Accuracy after training on all rows, the mean of the last ten epochs."""
        torch.manual_seed(job.seed)
        model, found = network(), []
        optimizer = torch.optim.SGD(model.parameters(), job.local.optimizer.lr)
        for epoch in range(epochs):
            for batch in self.pooled.train_batches(At(0, "pooled", epoch, 0), job.local.batch_size):
                optimizer.zero_grad()
                self.pooled.loss(model, batch).backward()
                optimizer.step()
            found.append(self.pooled.measure(model, self.pooled.test)["accuracy"].value or 0.0)
        return float(np.mean(found[-10:]))


def _order(version: int, model: Parts) -> Order:
    return Order(version=version, received=model, state={}, tick=lambda *_: None)


def _labels(rng: np.random.Generator, num_rows: int) -> np.ndarray:
    return rng.permutation(np.arange(num_rows) % CLASSES)


def _owners(rng: np.random.Generator, labels: np.ndarray, rare: bool) -> np.ndarray:
    """The silo of each row: a class is spread by Dirichlet(.3) times the silos' sizes."""
    sizes, owner = rng.dirichlet([2.0] * len(SILOS)), np.zeros(len(labels), int)
    for label in range(CLASSES):
        rows = np.flatnonzero(labels == label)
        shares = rng.dirichlet([0.3] * len(SILOS)) * sizes
        if rare and label in RARE:
            shares = np.where(np.isin(np.arange(len(SILOS)), SLOWEST), shares + 1e-3, 0)
        owner[rows] = rng.choice(len(SILOS), len(rows), p=shares / shares.sum())
    return owner

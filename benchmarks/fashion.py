"""Fashion-MNIST between ten silos, in this process and in memory: the real driver, silos and trainer.

The files are those of ``../shared/data/fashion_mnist``: images, and which silo owns which (``partitions/``). Model,
optimiser, initial weights and the order of a silo's images are those of notes/learning_targets.md, 3.3, so that
figures can be held against the reference's. Silos compute one after another, whatever the number of cores.
"""

import gzip
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.open_site import OpenSite
from orchestrator.core.metrics import MetricSums, Sums
from orchestrator.job import Job
from silos.silo import Silo
from silos.site import Order, Trained
from silos.tasks.task import At, Batch, Split
from silos.tasks.vision_models import SmallCnn
from silos.trainer import TorchTrainer

SILOS = tuple(f"silo-{i}" for i in range(10))
PARTITIONS = ("iid", "dir0.5", "lab2")
ROOT = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "fashion_mnist"
_ONE_AT_A_TIME = threading.Lock()


class Images:
    """The whole data set, decoded once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def train(self) -> Batch:
        """Pixels in [0, 1] ``[60000, 1, 28, 28]`` and labels."""
        return self._read("train")

    @cached_property
    def test(self) -> Batch:
        return self._read("t10k")

    def owners(self, partition: str, seed: int) -> np.ndarray:
        """The number of the silo that each training image belongs to."""
        with np.load(self.root / "partitions" / f"{partition}_10_seed{seed}.npz") as file:
            return np.array(file["owner"])

    def _read(self, split: str) -> Batch:
        images = _idx(self.root / "FashionMNIST" / "raw" / f"{split}-images-idx3-ubyte.gz")
        labels = _idx(self.root / "FashionMNIST" / "raw" / f"{split}-labels-idx1-ubyte.gz")
        pixels = torch.from_numpy(images.astype(np.float32) / 255).unsqueeze(1)
        return pixels, torch.from_numpy(labels.astype(np.int64))


def _idx(file: Path) -> np.ndarray:
    """An array of the publisher's format."""
    data = gzip.decompress(file.read_bytes())
    sizes = struct.unpack(f">{data[3]}i", data[4 : 4 + 4 * data[3]])
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(sizes)


@dataclass
class OneSilosImages:
    """A task: the silo's own training images, and every tenth test image, so that the federation's pooled accuracy
    is that of the whole test set; ``whole``: all of them."""

    images: Images
    rows: Tensor
    """Training images of this silo."""
    number: int
    """Which silo, from 0."""
    seed: int = 0
    """Of the order of images."""
    norm: str = "none"
    whole: bool = False

    def model(self) -> nn.Module:
        return SmallCnn(1, (28, 28), 10, self.norm)

    def num_examples(self, split: Split) -> int:
        if split == "train":
            return len(self.rows)
        # The same for its last figure, on the whole test set: else the silo would be another one.
        return len(self.images.test[1][self.number :: len(SILOS)])

    def train_batches(self, at: At, batch_size: int) -> Iterator[Batch]:
        """In the stated order; a second epoch of a round has another one."""
        start = 1000003 * self.seed + 1009 * at.version + self.number + 104729 * at.epoch
        order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(start))
        pixels, labels = self.images.train
        for rows in self.rows[order].split(batch_size):
            yield pixels[rows], labels[rows]

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        pixels, labels = (part[self._tested] for part in self.images.test)
        yield from zip(pixels.split(batch_size), labels.split(batch_size), strict=True)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1])

    @torch.no_grad()
    def measure(self, model: nn.Module, batch: Batch) -> MetricSums:
        logits, count = model(batch[0]), float(len(batch[1]))
        loss = functional.cross_entropy(logits, batch[1], reduction="sum").item()
        right = float((logits.argmax(dim=1) == batch[1]).sum().item())
        return {"loss": Sums("mean", (loss, count)), "accuracy": Sums("mean", (right, count))}

    @property
    def _tested(self) -> slice:
        return slice(None) if self.whole else slice(self.number, None, len(SILOS))


class _Trainer(TorchTrainer):
    """Silos take turns. A silo whose model differs from the others' measures its last one on the whole test set."""

    def train(self, order: Order) -> Trained:
        with _ONE_AT_A_TIME:
            return super().train(order)

    def evaluate(self, order: Order) -> MetricSums:
        with _ONE_AT_A_TIME:
            self.task.whole = bool(self.flat.private.numel())  # type: ignore[attr-defined]
            return super().evaluate(order)


def makers(
    images: Images, partition: str, seed: int, folder: Path, norm: str = "none"
) -> dict[str, Callable[[], Silo]]:
    """Ten silos by name, for a `LocalChannel`; what they write lies under ``folder``."""
    owners = images.owners(partition, seed)
    tasks = [
        OneSilosImages(images, torch.from_numpy(np.flatnonzero(owners == i)), i, seed, norm)
        for i in range(len(SILOS))
    ]
    return {
        name: lambda name=name, task=task: Silo(OpenSite(name, task, folder, _Trainer))
        for name, task in zip(SILOS, tasks, strict=True)
    }


def job(strategy: dict[str, Any], rounds: int, epochs: int = 1, **sections: Any) -> Job:
    """NIID-Bench's optimiser. ``channels_last`` is another order of the same sums, and half as long."""
    return Job.model_validate(
        {
            "name": "fashion",
            "task": {"name": "benchmarks.fashion:OneSilosImages", "dataset": "fashion"},
            "silos": list(SILOS),
            "rounds": {"total": rounds, "patience_s": 36000},
            "strategy": strategy,
            "local": {
                "epochs": epochs,
                "batch_size": 64,
                "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-5},
                "channels_last": True,
            },
            "stop": {"metric": "accuracy"},
            "report": {"silos": False},
            **sections,
        }
    )

"""A small image task in memory: two classes of noisy 8x8 images, told apart by where they are bright."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.core.metrics import MetricSums, Sums
from silos.tasks.order import shuffled
from silos.tasks.task import At, Batch, Split


class Net(nn.Module):
    """A CNN with batch normalisation and, if asked for, dropout."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(dropout)
        self.body = nn.Linear(144, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(functional.relu(self.bn(self.conv(x)))).flatten(1)
        return self.head(functional.relu(self.body(x)))


class Blobs:
    """A `silos.tasks.task.Task`; silos differ in their seed."""

    def __init__(self, seed: int = 0, rows: int = 40, dropout: float = 0.0) -> None:
        draw = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 2, (rows + 20,), generator=draw)
        images = torch.randn(rows + 20, 1, 8, 8, generator=draw) * 0.5
        images[labels == 1, :, :4] += 1.0
        self.data = {
            "train": (images[:rows], labels[:rows]),
            "test": (images[rows:], labels[rows:]),
        }
        self.dropout = dropout

    def model(self) -> nn.Module:
        return Net(self.dropout)

    def num_examples(self, split: Split) -> int:
        return len(self.data[split][1])

    def train_batches(self, at: At, batch_size: int) -> Iterator[Batch]:
        images, labels = self.data["train"]
        for rows in shuffled(len(labels), at, batch_size):
            yield images[rows], labels[rows]

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        images, labels = self.data["test"]
        yield from zip(images.split(batch_size), labels.split(batch_size), strict=True)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1])

    @torch.no_grad()
    def measure(self, model: nn.Module, batch: Batch) -> MetricSums:
        logits, count = model(batch[0]).float(), float(len(batch[1]))
        loss = functional.cross_entropy(logits, batch[1], reduction="sum").item()
        right = float((logits.argmax(1) == batch[1]).sum().item())
        return {"loss": Sums("mean", (loss, count)), "accuracy": Sums("mean", (right, count))}


def plain_epoch(model: nn.Module, task: Blobs, at: At, batch_size: int, optimizer: Any) -> None:
    """The same work without us."""
    model.train()
    for batch in task.train_batches(at, batch_size):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()

"""A small image task in memory: two classes of noisy 8x8 images, told apart by where they are bright."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from silos.tasks.task import At
from tests.support.in_memory import InMemory


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


class Blobs(InMemory):
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


def plain_epoch(model: nn.Module, task: Blobs, at: At, batch_size: int, optimizer: Any) -> None:
    """The same work without us."""
    model.train()
    for batch in task.train_batches(at, batch_size):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()

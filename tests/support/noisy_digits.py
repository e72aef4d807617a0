"""Scikit-learn's digits for a perceptron; a fifth of the labels are random, so that fitting them means to remember."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.core.metrics import MetricSums, Sums
from silos.tasks.order import shuffled
from silos.tasks.task import At, Batch, Split


class NoisyDigits:
    """A `silos.tasks.task.Task` of 300 training and 300 test rows; silos differ in their number."""

    def __init__(self, silo: int = 0, rows: int = 300, noise: float = 0.2, hidden: int = 64) -> None:
        draw = torch.Generator().manual_seed(silo)
        pixels, digits = (torch.from_numpy(each) for each in load_digits(return_X_y=True))
        chosen = torch.randperm(len(digits), generator=draw)[: rows + 300]
        images, labels = (pixels[chosen] / 16).float(), digits[chosen].long()
        wrong = torch.rand(len(labels), generator=draw) < noise
        labels = torch.where(wrong, torch.randint(0, 10, labels.shape, generator=draw), labels)
        self.data = {"train": (images[:rows], labels[:rows]), "test": (images[rows:], labels[rows:])}
        self.hidden = hidden

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(64, self.hidden), nn.ReLU(), nn.Linear(self.hidden, 10))

    def num_examples(self, split: Split) -> int:
        return len(self.data[split][1])

    def train_batches(self, at: At, batch_size: int) -> Iterator[Batch]:
        images, labels = self.data["train"]
        for rows in shuffled(len(labels), at, batch_size):
            yield images[rows], labels[rows]

    def train_rows(self, rows: Sequence[Tensor], seed: int) -> Iterator[Batch]:
        images, labels = self.data["train"]
        return ((images[each], labels[each]) for each in rows)

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        images, labels = self.data["test"]
        yield from zip(images.split(batch_size), labels.split(batch_size), strict=True)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1])

    @torch.no_grad()
    def measure(self, model: nn.Module, batch: Batch) -> MetricSums:
        logits: Any = model(batch[0]).float()
        count = float(len(batch[1]))
        loss = functional.cross_entropy(logits, batch[1], reduction="sum").item()
        right = float((logits.argmax(1) == batch[1]).sum().item())
        sure = float(logits.softmax(1).amax(1).sum().item())
        return {
            "loss": Sums("mean", (loss, count)),
            "accuracy": Sums("mean", (right, count)),
            "confidence": Sums("mean", (sure, count)),
        }

"""Scikit-learn's digits for a perceptron; a fifth of the labels are random, so that fitting them means to remember."""

from collections.abc import Iterator, Sequence

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from orchestrator.core.metrics import MetricSums, Sums
from silos.tasks.task import Batch
from tests.support.in_memory import InMemory


class NoisyDigits(InMemory):
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

    def train_rows(self, rows: Sequence[Tensor], seed: int) -> Iterator[Batch]:
        images, labels = self.data["train"]
        return ((images[each], labels[each]) for each in rows)

    @torch.no_grad()
    def measure(self, model: nn.Module, batch: Batch) -> MetricSums:
        sure = float(model(batch[0]).float().softmax(1).amax(1).sum().item())
        return {**super().measure(model, batch), "confidence": Sums("mean", (sure, float(len(batch[1]))))}

"""Classification of tensors in memory."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.core.metrics import MetricSums, Sums
from silos.tasks.order import shuffled
from silos.tasks.task import At, Batch, Split


class InMemory:
    """All of a `silos.tasks.task.Task` but its model."""

    data: Mapping[Split, tuple[Tensor, Tensor]]

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

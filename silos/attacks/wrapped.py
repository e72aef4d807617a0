"""A task that is another one but for its training rows."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from orchestrator.core.metrics import MetricSums
from orchestrator.core.random import rng_of
from silos.attacks.rows import chunks, rows_at
from silos.tasks.task import At, Batch, Split, Task


class Wrapped:
    """The task, as it is."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def model(self) -> nn.Module:
        return self.task.model()

    def num_examples(self, split: Split) -> int:
        return self.task.num_examples(split)

    def train_batches(self, at: At, batch_size: int) -> Iterator[Batch]:
        return self.task.train_batches(at, batch_size)

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        return self.task.test_batches(batch_size)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.task.loss(model, batch)

    def measure(self, model: nn.Module, batch: Batch) -> MetricSums:
        return self.task.measure(model, batch)


class Watched(Wrapped):
    """The task, and the training rows that it gave."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.seen: list[Batch] = []

    def train_batches(self, at: At, batch_size: int) -> Iterator[Batch]:
        for batch in self.task.train_batches(at, batch_size):
            self.seen.append(batch)
            yield batch


class Only(Wrapped):
    """The task, with these training rows and no others."""

    def __init__(self, task: Task, rows: Batch) -> None:
        super().__init__(task)
        self._rows = rows

    def num_examples(self, split: Split) -> int:
        return len(self._rows[0]) if split == "train" else self.task.num_examples(split)

    def train_batches(self, at: At, batch_size: int) -> Iterator[Batch]:
        order = rng_of(at.seed, "only", at.silo, at.version, at.epoch).permutation(len(self._rows[0]))
        return chunks(rows_at(self._rows, order), batch_size)

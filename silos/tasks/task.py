"""What a task is: a model, batches of private data, a loss and metrics. A user's own task has these methods."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from orchestrator.core.metrics import MetricSums

Split = Literal["train", "test"]

Batch = tuple[Tensor, ...]
"""Tensors with one row per example; the first is what the model is called with."""


class At(NamedTuple):
    """Where in the job a batch is drawn: with the same place, the same batches in the same order."""

    seed: int
    """The job's seed."""
    silo: str
    version: int
    """Model version that is trained from."""
    epoch: int
    """Local epoch, from 0."""


class Task(Protocol):
    """Built once per job at the silo, with the silo's data. Never sees the driver or the network."""

    def model(self) -> nn.Module:
        """A new model. The caller seeds torch before, so that every silo starts from the same weights."""
        ...

    def num_examples(self, split: Split) -> int:
        """Rows of a split."""
        ...

    def train_batches(self, at: At, batch_size: int) -> Iterator[Batch]:
        """One epoch of training batches, on the CPU, shuffled by ``at``."""
        ...

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        """The test split in its own order."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss over the batch, to be differentiated."""
        ...

    def measure(self, model: nn.Module, batch: Batch) -> MetricSums:
        """Sums of the metrics over the batch (``loss`` and what the task is judged by); no gradient is kept."""
        ...


class ByRow(Task, Protocol):
    """A task whose training rows can be had by their numbers, from 0: differential privacy (``dp_sgd``) draws them
    itself."""

    def train_rows(self, rows: Sequence[Tensor], seed: int) -> Iterator[Batch]:
        """A batch for each tensor of row numbers, on the CPU, in the order given; ``seed`` draws what is random in
        their preparation, for each row apart."""
        ...

    def train_groups(self, column: str) -> NDArray[np.int64]:
        """For each training row, in their order, the number from 0 of whom it is about, as this column says. Only
        asked for where a whole patient is protected; raises `BadInput`."""
        ...

"""Losses of a model, row by row. A task gives mean losses of batches: its model's outputs are kept from one pass over
the rows, and its loss is taken of each output alone."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from silos.tasks.task import Batch, Task

CHUNK = 256
MOST = 2_000
"""Rows of a kind that an attack looks at."""


def losses(
    model: nn.Module, task: Task, batches: Iterable[Batch], done: Callable[[int], None] = lambda _: None
) -> NDArray[np.float64]:
    """The task's loss of each row, the model in evaluation mode. ``done`` is told the number of rows so far."""
    model.eval()
    found: list[float] = []
    with torch.no_grad():
        for batch in batches:
            found += _of_batch(model, task, batch)
            done(len(found))
    return np.asarray(found, np.float64)


def _of_batch(model: nn.Module, task: Task, batch: Batch) -> list[float]:
    said: list[Any] = []
    watch = model.register_forward_hook(lambda module, inputs, output: said.append(output))
    try:
        whole = task.loss(model, batch)
    finally:
        watch.remove()
    (output,) = said if len(said) == 1 else (None,)
    if not isinstance(output, Tensor) or output.dim() == 0 or len(output) != len(batch[0]):
        return [float(task.loss(model, row)) for row in _single(batch)]
    single = [float(task.loss(_Known(output[i : i + 1]), row)) for i, row in enumerate(_single(batch))]
    if abs(float(np.mean(single)) - float(whole)) > 1e-3 * max(1.0, abs(float(whole))):
        return [float(task.loss(model, row)) for row in _single(batch)]  # the loss asks for more than outputs
    return single


class _Known(nn.Module):
    """Says what is known already."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self._output = output

    def forward(self, *inputs: Any) -> Tensor:
        return self._output


def _single(batch: Batch) -> Iterator[Batch]:
    for i in range(len(batch[0])):
        yield tuple(each[i : i + 1] for each in batch)


def gathered(batches: Iterable[Batch], most: int) -> Batch:
    """The first ``most`` rows as one batch; empty for none."""
    taken: list[Batch] = []
    count = 0
    for batch in batches:
        taken.append(tuple(each[: most - count] for each in batch))
        count += len(taken[-1][0])
        if count >= most:
            break
    return tuple(torch.cat(column) for column in zip(*taken, strict=True)) if taken else ()


def chunks(rows: Batch, size: int = CHUNK) -> Iterator[Batch]:
    """The rows in batches."""
    for start in range(0, len(rows[0]) if rows else 0, size):
        yield tuple(each[start : start + size] for each in rows)


def rows_at(rows: Batch, where: NDArray[Any]) -> Batch:
    """The rows at these places."""
    index = torch.from_numpy(np.asarray(where))
    return tuple(each[index] for each in rows)

"""Gradients of the task's loss on one batch."""

import torch
from torch import Tensor

from orchestrator.core.protocols import Contrast, Part
from silos.network import Network
from silos.precision import LossScale
from silos.tasks.task import Batch, Task


class Gradient:
    """Gradient of one batch's loss at any point of the shared parameters (`GradAt`)."""

    def __init__(self, network: Network, task: Task, batch: Batch, scale: LossScale | None = None) -> None:
        self._network, self._task, self._batch, self._scale = network, task, batch, scale
        self.loss: Tensor = torch.zeros(())

    def __call__(self, point: Tensor, part: Part = "all", contrast: Contrast | None = None) -> Tensor:
        flat, batch = self._network.flat, _part_of(self._batch, part)
        if point.data_ptr() == flat.shared.data_ptr():
            return self._backward(batch)
        here = flat.shared.clone()
        flat.shared.copy_(point)
        gradient = self._backward(batch)
        flat.shared.copy_(here)
        return gradient

    def _backward(self, batch: Batch) -> Tensor:
        flat = self._network.flat
        flat.clear_gradient()
        with self._network.autocast():
            loss = self._task.loss(self._network.call, batch)
        if self._scale is None:
            loss.backward()
        else:
            (loss * self._scale.factor).backward()
            flat.gradient.div_(self._scale.factor)
        self.loss = loss.detach()
        return flat.gradient[: flat.num_shared]


def _part_of(batch: Batch, part: Part) -> Batch:
    """The rows of a part; a batch of one row is its own support and query."""
    half = (len(batch[0]) + 1) // 2
    if part == "all" or len(batch[0]) == 1:
        return batch
    rows = slice(None, half) if part == "support" else slice(half, None)
    return tuple(tensor[rows] for tensor in batch)

"""Gradients of the task's loss on one batch."""

import torch
from torch import Tensor

from orchestrator.core.protocols import Contrast, Part
from silos.contrast import contrasted
from silos.network import Network
from silos.precision import LossScale, Overflow
from silos.tasks.task import Batch, Task


class Gradient:
    """Gradient of one batch's loss at any point of the shared parameters (`GradAt`). Raises `Overflow`."""

    def __init__(self, network: Network, task: Task, batch: Batch, scale: LossScale | None = None) -> None:
        self._network, self._task, self._batch, self._scale = network, task, batch, scale
        self.loss: Tensor = torch.zeros(())
        """The task's, at the last call."""

    @property
    def num_rows(self) -> int:
        """That ``loss`` is of."""
        return len(self._batch[0])

    def __call__(self, point: Tensor, part: Part = "all", contrast: Contrast | None = None) -> Tensor:
        flat, batch = self._network.flat, _part_of(self._batch, part)
        if point.data_ptr() == flat.shared.data_ptr():
            return self._backward(batch, contrast)
        here = flat.shared.clone()
        flat.shared.copy_(point)
        try:
            return self._backward(batch, contrast)
        finally:
            flat.shared.copy_(here)

    def _backward(self, batch: Batch, contrast: Contrast | None) -> Tensor:
        flat, scale = self._network.flat, self._scale
        flat.clear_gradient()
        with self._network.autocast():
            whole = self._loss(batch, contrast)
        (whole if scale is None else whole * scale.factor).backward()
        if scale is not None:
            flat.gradient.div_(scale.factor)
            if not scale.accepts(flat.gradient):
                raise Overflow
        return flat.gradient[: flat.num_shared]

    def _loss(self, batch: Batch, contrast: Contrast | None) -> Tensor:
        if contrast is None:
            loss = self._task.loss(self._network.call, batch)
            self.loss = loss.detach()
            return loss
        loss, term = contrasted(self._network.flat, self._task, batch, contrast)
        self.loss = loss.detach()
        return loss + term


def _part_of(batch: Batch, part: Part) -> Batch:
    """The rows of a part; a batch of one row is its own support and query."""
    half = (len(batch[0]) + 1) // 2
    if part == "all" or len(batch[0]) == 1:
        return batch
    rows = slice(None, half) if part == "support" else slice(half, None)
    return tuple(tensor[rows] for tensor in batch)

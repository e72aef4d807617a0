"""MOON's term of the loss: what the network sees in a batch, against what two frozen copies of it see."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.core.errors import BadJob
from orchestrator.core.protocols import Contrast
from silos.flat_model import FlatModel
from silos.tasks.task import Batch, Task


def last_linear(module: nn.Module) -> nn.Linear:
    """The layer whose input is what the network sees; `BadJob` for a network without, or without anything before."""
    linear = [each for each in module.modules() if isinstance(each, nn.Linear)]
    last = set(linear[-1].parameters()) if linear else set()
    if not linear or all(param in last for param in module.parameters()):
        raise BadJob("strategy: a contrast needs a network with layers to train before its last linear one")
    return linear[-1]


def contrasted(flat: FlatModel, task: Task, batch: Batch, contrast: Contrast) -> tuple[Tensor, Tensor]:
    """The task's loss, and ``mu * CE([cos(z, near), cos(z, far)] / temperature -> 0)``."""
    layer = last_linear(flat.module)
    with _watched(layer) as seen:
        loss = task.loss(flat.module, batch)
        here = seen[-1]
    near, far = (_seen_at(flat, layer, point, batch[0]) for point in (contrast.near, contrast.far))
    alike = torch.stack([functional.cosine_similarity(here, each) for each in (near, far)], dim=1)
    first = torch.zeros(len(here), dtype=torch.long, device=here.device)
    return loss, contrast.mu * functional.cross_entropy(alike.float() / contrast.temperature, first)


def _seen_at(flat: FlatModel, layer: nn.Module, point: Tensor, inputs: Tensor) -> Tensor:
    """Without a gradient, by the network with other shared parameters: in evaluation mode, so that it neither drops
    anything nor moves a statistic."""
    training = [each for each in flat.module.modules() if each.training]
    flat.module.eval()
    try:
        with torch.no_grad(), _watched(layer) as seen:
            torch.func.functional_call(flat.module, flat.named(point), (inputs,))
            return seen[-1]
    finally:
        for each in training:
            each.training = True


@contextmanager
def _watched(layer: nn.Module) -> Iterator[list[Tensor]]:
    """What goes into the layer, a row per example."""
    seen: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0].flatten(1))

    handle = layer.register_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()

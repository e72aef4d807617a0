"""A silo's network on flat memory, as it is called: compiled or not, in which precision, on which device."""

import contextlib
from typing import Any

import torch
from torch import nn

from orchestrator.local import Local
from silos.flat_model import FlatModel
from silos.tasks.task import Batch


class Network:
    """``flat`` holds the parameters; ``call`` is the module, compiled where the job says so."""

    def __init__(self, flat: FlatModel, local: Local, device: torch.device) -> None:
        self.flat, self.local, self.device = flat, local, device
        self.call: nn.Module = torch.compile(flat.module) if local.compile else flat.module  # type: ignore[assignment]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Mixed precision as the job asks for it."""
        if self.local.precision == "float32":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.local.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=dtype)

    def on_device(self, batch: Batch) -> Batch:
        """The batch on the network's device."""
        moved = tuple(tensor.to(self.device, non_blocking=True) for tensor in batch)
        if self.local.channels_last and moved[0].dim() == 4:
            moved = (moved[0].contiguous(memory_format=torch.channels_last), *moved[1:])
        return moved

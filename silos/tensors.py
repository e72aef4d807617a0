"""From NumPy vectors to tensors on the training device, and back."""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orchestrator.core.vector import Parts, Vector
from silos.state import Kept


def device_of(wish: str) -> torch.device:
    """The device that ``silo.yaml`` names, or the best one here for ``auto``."""
    if wish != "auto":
        return torch.device(wish)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def on_device(parts: Parts, device: torch.device) -> dict[str, Tensor]:
    """On a CPU in the arrays' own memory: received models are read-only, and nothing here writes to them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return {name: torch.from_numpy(part).to(device) for name, part in parts.items()}


def to_numpy(tensor: Any) -> Vector:
    """A flat float32 vector; on a CPU it may be the tensor's own memory."""
    vector: Vector = tensor.detach().to("cpu").reshape(-1).float().numpy()
    return vector


class DeviceKept:
    """A strategy's memory, as tensors on the training device."""

    def __init__(self, kept: Kept, device: torch.device) -> None:
        self._kept, self._device = kept, device
        self._tensors: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._tensors:
            self._tensors[name] = torch.from_numpy(np.array(self._kept[name])).to(self._device)
        return self._tensors[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        self._tensors[name] = value
        self._kept[name] = to_numpy(value)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors or name in self._kept

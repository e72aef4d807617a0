"""Networks for matching, and copies of them that compute the same with their units in other places."""

import copy
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.core.symmetry import Symmetry
from orchestrator.strategies.matching import permute
from silos.flat_model import FlatModel
from silos.symmetries import symmetries_of


class Residual(nn.Module):
    """Convolutions with batch normalisation, a residual stream of channels, and a linear layer behind a flatten."""

    def __init__(self, width: int = 6, hidden: int = 5) -> None:
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(2, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv1, self.bn1 = nn.Conv2d(width, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden)
        self.conv2, self.bn2 = nn.Conv2d(hidden, width, 3, padding=1), nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(2)
        self.fc1, self.fc2 = nn.Linear(width * 9, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem_bn(self.stem(x)))
        x = torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        x = self.pool(x)
        return self.fc2(functional.relu(self.fc1(x.view(x.size(0), -1))))


def mlp(*widths: int) -> nn.Sequential:
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    return nn.Sequential(*[each for layer in layers for each in (layer, nn.Tanh())][:-1])


def drawn(module: nn.Module, seed: int) -> nn.Module:
    """With random numbers in every tensor, statistics included, so that nothing is like its neighbour."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point():
                scale = 1.0 / max(1, tensor[0].numel()) ** 0.5 if tensor.dim() > 1 else 1.0
                tensor.copy_(torch.randn(tensor.shape, generator=draw) * scale)
                if name.endswith("var"):
                    tensor.abs_().add_(0.5)
    return module.eval()


class Flattened:
    """A network as flat vectors of any precision."""

    def __init__(self, module: nn.Module, dtype: torch.dtype = torch.float64) -> None:
        self.flat, self.dtype = FlatModel(module), dtype
        self.symmetries = symmetries_of(self.flat)
        self.params, self.buffers = self.flat.shared.to(dtype), self.flat.buffers.to(dtype)

    def permuted(self, seed: int) -> tuple[Tensor, Tensor]:
        params, buffers = self.params.clone(), self.buffers.clone()
        shuffle(self.symmetries, params, buffers, seed)
        return params, buffers

    def output(self, params: Tensor, buffers: Tensor, x: Tensor) -> Tensor:
        """Of the network with these numbers."""
        module = copy.deepcopy(self.flat.module).to(self.dtype)
        tensors = {**dict(module.named_buffers()), **dict(module.named_parameters())}
        for kind, vector in (("param", params), ("buffer", buffers)):
            start = 0
            for entry in (each for each in self.flat.entries if each.kind == kind):
                size = int(np.prod(entry.shape))
                tensors[entry.name].data = vector[start : start + size].reshape(entry.shape)
                start += size
        with torch.no_grad():
            return module(x.to(self.dtype))


def shuffle(symmetries: Sequence[Symmetry], params: Tensor, buffers: Tensor, seed: int) -> None:
    """In place."""
    rng = np.random.default_rng(seed)
    for each in symmetries:
        permute(each, rng.permutation(each.size), params, buffers)

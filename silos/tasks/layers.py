"""Networks of linear layers."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn


def mlp(num_inputs: int, hidden: Sequence[int], num_outputs: int) -> nn.Module:
    """Linear layers ``linear1``, ``linear2``, ..., ``head`` with ReLU between them."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, width in enumerate(hidden, start=1):
        layers[f"linear{number}"] = nn.Linear(num_inputs, width)
        layers[f"relu{number}"] = nn.ReLU()
        num_inputs = width
    layers["head"] = nn.Linear(num_inputs, num_outputs)
    return nn.Sequential(layers)

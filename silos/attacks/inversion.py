"""Gradient inversion in closed form: of a linear layer that the input enters, ``dW_i / db_i`` is the input itself.

Exact for one record, and for each record of a batch, or of a sum of several silos' batches, that is alone in
moving some unit of the layer. (Phong et al. 2017; Geiping et al. 2020, proposition 3.1.)
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from silos.attacks.statistics import cosine, psnr


@dataclass(frozen=True, slots=True)
class Inverted:
    """The record that came out best."""

    psnr: float
    """In dB, for the range of the records' values."""
    cosine: float
    row: int


def entrance(module: nn.Module, inputs: Tensor) -> str | None:
    """Name of the linear layer with a bias that the input enters as it is; None where the first layer is another."""
    seen: list[tuple[str, nn.Module, Any]] = []
    watches = [
        each.register_forward_pre_hook(
            lambda _, given, name=name, each=each: seen.append((name, each, given))
        )
        for name, each in module.named_modules()
        if next(each.parameters(recurse=False), None) is not None
    ]
    try:
        with torch.no_grad():
            module(inputs)
    finally:
        for watch in watches:
            watch.remove()
    if not seen or not isinstance(seen[0][1], nn.Linear) or seen[0][1].bias is None:
        return None
    given = seen[0][2][0]
    same = given.numel() == inputs.numel() and torch.equal(given.reshape(-1), inputs.reshape(-1))
    return seen[0][0] if same else None


def inputs_of(weight: NDArray[Any], bias: NDArray[Any]) -> NDArray[np.float64]:
    """``weight [units, inputs]``, ``bias [units]``: their changes. One candidate for each unit that moved."""
    size = np.abs(bias.astype(np.float64))
    moved = size > 1e-9 * max(float(size.max(initial=0.0)), 1e-30)
    found: NDArray[np.float64] = weight[moved].astype(np.float64) / bias[moved, None].astype(np.float64)
    return found


def best(candidates: NDArray[np.float64], records: NDArray[Any]) -> Inverted:
    """Over all candidates and records, both one a row; what lies outside of the records' range is cut off, as whoever
    knows what such data look like would do."""
    low, high = float(records.min()), float(records.max())
    peak = max(high - low, 1e-12)
    found = Inverted(-np.inf, 0.0, -1)
    for candidate in np.clip(np.nan_to_num(candidates), low, high):
        errors = ((records.astype(np.float64) - candidate) ** 2).mean(axis=1)
        row = int(errors.argmin())
        value = psnr(candidate, records[row], peak)
        if value > found.psnr:
            found = Inverted(value, cosine(candidate, records[row]), row)
    return found

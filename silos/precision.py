"""Loss scaling for half precision."""

import torch
from torch import Tensor

_FIRST = 4096.0
_GROWTH = 200
"""Good gradients in a row after which the factor doubles."""


class Overflow(Exception):
    """A gradient in half precision is not finite: the batch is to be left out."""


class LossScale:
    """Multiplies the loss, so that float16 gradients do not vanish. Where they overflow the batch is left out and
    the factor halves: torch's ``GradScaler``, for one flat gradient. It starts anew with every training, so that
    an update depends on the received model alone."""

    def __init__(self) -> None:
        self.factor = _FIRST
        self.good = 0
        """Good gradients in a row."""

    def accepts(self, gradient: Tensor) -> bool:
        """Whether the gradient may be applied; adapts the factor."""
        if not bool(torch.isfinite(gradient).all()):
            self.factor, self.good = self.factor / 2, 0
            return False
        self.good += 1
        if self.good % _GROWTH == 0:
            self.factor *= 2
        return True

"""Networks of single silos for ``fedmd.yaml``: 8 x 8 grey levels in, ten logits out."""

from torch import nn


class Perceptron(nn.Sequential):
    """For a machine that cannot run convolutions fast."""

    def __init__(self, width: int = 64) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


class Deep(nn.Sequential):
    """Three convolutions of 3 x 3."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__(
            *_block(1, channels),
            *_block(channels, channels),
            nn.MaxPool2d(2),
            *_block(channels, 2 * channels),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * channels, 10),
        )


def _block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()

"""Image models: the small CNN, a vision transformer of any size, torchvision's classification models by name."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.core.errors import BadInput, BadJob
from orchestrator.task import TorchvisionModel, Vit
from silos.files import nearest
from silos.tasks import own

_SMALL = 16
"""Shortest side in pixels that two 5x5 convolutions with pooling leave something of."""


class SmallCnn(nn.Module):
    """Two 5x5 convolutions (6, 16 channels) with ReLU and 2x2 pooling, then 120, 84, classes: NIID-Bench's
    ``simple-cnn``, 44,426 parameters for 1x28x28 and 10 classes.

    On images with a side under 16 pixels the convolutions are padded by 2, so that they keep the size. ``norm``:
    ``batch`` normalises each channel after a convolution, ``none`` has neither its parameters nor its statistics.
    """

    def __init__(self, channels: int, size: tuple[int, int], num_classes: int, norm: str = "none") -> None:
        super().__init__()
        if min(size) < 4:
            remedy = "give a larger task.size"
            what = f"cnn: images of {size[0]}x{size[1]} pixels are too small; {remedy}"
            raise BadInput(what, f"cnn: images are too small; {remedy}")
        padding = 0 if min(size) >= _SMALL else 2
        height, width = (_halved_twice(side, padding) for side in size)
        self.conv1 = nn.Conv2d(channels, 6, 5, padding=padding)
        self.norm1 = _normalisation(norm, 6)
        self.conv2 = nn.Conv2d(6, 16, 5, padding=padding)
        self.norm2 = _normalisation(norm, 16)
        self.fc1 = nn.Linear(16 * height * width, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, channels, height, width]`` to logits ``[batch, classes]``."""
        x = functional.max_pool2d(functional.relu(self.norm1(self.conv1(x))), 2)
        x = functional.max_pool2d(functional.relu(self.norm2(self.conv2(x))), 2).flatten(1)
        return self.fc3(functional.relu(self.fc2(functional.relu(self.fc1(x)))))


def _normalisation(norm: str, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.Identity()


def _halved_twice(side: int, padding: int) -> int:
    for _ in range(2):
        side = (side - 4 + 2 * padding) // 2
    return side


def vision_transformer(spec: Vit, num_classes: int, channels: int, size: tuple[int, int]) -> nn.Module:
    """A new one. Raises `BadInput` for images that are not square, or no whole number of patches."""
    from torchvision.models import VisionTransformer

    if size[0] != size[1] or size[0] % spec.patch:
        remedy = f"give a task.size of equal sides that {spec.patch} (model.patch) divides"
        what = f"vit: images of {size[0]}x{size[1]} pixels do not fit; {remedy}"
        raise BadInput(what, f"vit: the images do not fit; {remedy}")
    model = VisionTransformer(
        image_size=size[0],
        patch_size=spec.patch,
        num_layers=spec.depth,
        num_heads=spec.heads,
        hidden_dim=spec.width,
        mlp_dim=spec.mlp,
        num_classes=num_classes,
    )
    if channels == 1:
        _make_grey(model)
    return model


def torchvision_model(spec: TorchvisionModel, num_classes: int, channels: int) -> nn.Module:
    """A new model without pretrained weights. With one channel its first convolution sums over colours: the
    same function as the colour model on the grey image given three times."""
    from torchvision import models  # costs seconds, and most jobs do without

    known = models.list_models(module=models)
    if spec.name not in known:
        raise BadJob(
            f"task.model: torchvision has no classification model '{spec.name}'{nearest(spec.name, known)}"
        )
    fetched = sorted(name for name in spec.options if name.startswith(("weights", "pretrained")))
    if fetched:
        raise BadJob(
            f"task.model.options.{fetched[0]}: a silo fetches no weights from the network; training starts anew"
        )
    arguments: dict[str, Any] = {**spec.options, "weights": None, "num_classes": num_classes}
    model: nn.Module = own.call(spec.name, models.get_model, spec.name, **arguments)
    if channels == 1:
        _make_grey(model)
    return model


def _make_grey(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, _grey(module))
            return


def _grey(colour: nn.Conv2d) -> nn.Conv2d:
    with torch.random.fork_rng(devices=[]):  # the replaced weights must not cost draws
        grey = nn.Conv2d(
            *(1, colour.out_channels, colour.kernel_size, colour.stride, colour.padding, colour.dilation),  # type: ignore[arg-type]
            bias=colour.bias is not None,
        )
    with torch.no_grad():
        grey.weight.copy_(colour.weight.sum(dim=1, keepdim=True))
        if colour.bias is not None and grey.bias is not None:
            grey.bias.copy_(colour.bias)
    return grey

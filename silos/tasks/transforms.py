"""Image transforms by the names of ``torchvision.transforms.v2``, with random draws that repeat."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.core.errors import BadJob
from silos.files import nearest
from silos.tasks import own

Transform = Callable[[Tensor], Tensor]
"""uint8 ``[channels, height, width]`` to uint8 or float."""


def composed(entries: Sequence[dict[str, dict[str, Any]]]) -> Transform | None:
    """The transforms in a row, None for no entry. `BadInput` for an unknown name or wrong arguments."""
    if not entries:
        return None
    steps = [_transform(name, arguments) for entry in entries for name, arguments in entry.items()]
    return nn.Sequential(*steps)


def _transform(name: str, arguments: dict[str, Any]) -> nn.Module:
    from torchvision.transforms import v2  # costs seconds, and most jobs do without

    known = [each for each in dir(v2) if _is_transform(getattr(v2, each))]
    if name not in known:
        raise BadJob(f"task.transforms: torchvision.transforms.v2 has no '{name}'{nearest(name, known)}")
    made: nn.Module = own.call(f"task.transforms: {name}", getattr(v2, name), **_typed(arguments))
    return made


def _is_transform(candidate: Any) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, nn.Module)


def _typed(arguments: dict[str, Any]) -> dict[str, Any]:
    """YAML has no enumerations: ``interpolation: bilinear``, ``dtype: float32``."""
    from torchvision.transforms import InterpolationMode

    typed = dict(arguments)
    if isinstance(typed.get("interpolation"), str):
        typed["interpolation"] = own.call("interpolation", InterpolationMode, typed["interpolation"])
    if isinstance(typed.get("dtype"), str):
        typed["dtype"] = getattr(torch, typed["dtype"], typed["dtype"])
    return typed


def each_seeded(transform: Transform, images: Tensor, seed: int) -> Tensor:
    """Every image transformed with draws of its own; the same seed repeats them all.

    `BadInput` when a transform fails or gives images of several sizes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stacked: Tensor = own.call(
            "task.transforms", lambda: torch.stack([transform(each) for each in images])
        )
        return stacked

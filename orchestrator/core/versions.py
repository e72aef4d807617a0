"""Versions of what the bits of a training depend on."""

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

NAMES = ("siloray", "torch", "torchvision", "numpy", "ray")


def versions() -> dict[str, str]:
    """Python and the packages that are installed; nothing is imported."""
    return {"python": platform.python_version(), **{name: _version(name) for name in NAMES}}


@cache
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"

"""Named arrays in a safetensors file: numbers and a header, nothing that is run when it is read."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.numpy
from numpy.typing import NDArray


def write_tensors(
    path: Path, tensors: Mapping[str, NDArray[Any]], said: dict[str, str] | None = None
) -> None:
    """With ``said`` in its header: durable before it returns, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    safetensors.numpy.save_file(dict(tensors), temporary, said)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.rename(path)
    _fsync_folder(path.parent)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

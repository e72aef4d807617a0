"""Named arrays in a safetensors file: numbers and a header, nothing that is run when it is read."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.numpy
from numpy.typing import NDArray

from orchestrator import at_rest
from orchestrator.at_rest import Key
from orchestrator.tensor_bytes import Arrays, packed, unpacked

REMEDY = "its key is 'at_rest' in silo.yaml"


def write_tensors(
    path: Path,
    tensors: Mapping[str, NDArray[Any]],
    said: dict[str, str] | None = None,
    key: Key | None = None,
) -> None:
    """With ``said`` in its header: durable before it returns, whole or not at all; encrypted where there is a key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    if key is None:
        safetensors.numpy.save_file(dict(tensors), temporary, said)
    else:
        with temporary.open("wb") as file:
            file.writelines(at_rest.sealed(key, [packed(tensors, said)], _what(path)))
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.rename(path)
    _fsync_folder(path.parent)


def read_bytes(path: Path, key: Key | None) -> bytes:
    """Of the safetensors file in it. Raises OSError, `NotOpened`, and `BadInput` for the wrong key or none."""
    return at_rest.opened(key, path.read_bytes(), _what(path), path, REMEDY)


def read_tensors(path: Path, key: Key | None = None) -> tuple[Arrays, dict[str, str]]:
    """What `write_tensors` was given. Raises as `read_bytes`, and `SafetensorError`."""
    return unpacked(read_bytes(path, key))


def _what(path: Path) -> str:
    """``runs/ID/v000003.safetensors``: kind of file, run and step."""
    return "/".join(path.absolute().parts[-3:])


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

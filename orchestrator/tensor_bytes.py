"""Named arrays and a few words as the bytes of a safetensors file, for files that are encrypted as a whole."""

import json
from collections.abc import Mapping
from typing import Any

import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

Arrays = dict[str, NDArray[Any]]


def packed(arrays: Mapping[str, NDArray[Any]], said: Mapping[str, str] | None = None) -> bytes:
    """With ``said`` in the header."""
    return safetensors.numpy.save(dict(arrays), dict(said) if said else None)


def unpacked(data: bytes) -> tuple[Arrays, dict[str, str]]:
    """Arrays and words. Raises `SafetensorError` for anything else."""
    arrays: Arrays = safetensors.numpy.load(data)
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return arrays, dict(header.get("__metadata__", {}))
    except (ValueError, AttributeError) as error:
        raise SafetensorError(f"no header: {error}") from None

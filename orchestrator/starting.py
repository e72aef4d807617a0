"""The weights that a job starts from, as the run directory keeps them: named float32 arrays, and where they come from.

They reach every silo once, when it has joined; what fits goes into its model by name, whatever the source's other
layers were. One flat vector travels, with its layout beside it.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError

from orchestrator import at_rest
from orchestrator.at_rest import NotOpened
from orchestrator.core.errors import BadInput
from orchestrator.core.events import Source, StartedFrom
from orchestrator.core.vector import Vector
from orchestrator.tensor_bytes import packed, unpacked

START = "start.safetensors"
"""In a run directory."""
_SOURCE = "siloray.source"
"""Key of the file's metadata."""

Arrays = Mapping[str, NDArray[np.float32]]
TensorLayout = tuple[tuple[str, tuple[int, ...]], ...]
"""Names and shapes, in the order of the flat vector."""


@dataclass(frozen=True, slots=True)
class Fitting:
    """What a model takes of the weights."""

    layout: TensorLayout
    values: Vector
    digest: str
    left: tuple[str, ...]
    """Names in the model for which the weights have nothing of that shape."""


@dataclass(frozen=True, slots=True)
class StartingWeights:
    """All of them."""

    arrays: Arrays
    source: Source

    def fitting(self, entries: Sequence[Mapping[str, Any]]) -> Fitting:
        """For a model of these tensors (``entries`` of `Joined.model`). Raises ValueError where they are none."""
        wanted = _wanted(entries)
        taken = {name: self._array(name, shape) for name, shape in wanted.items()}
        found = {name: array for name, array in taken.items() if array is not None}
        layout = tuple((name, wanted[name]) for name in found)
        flat = [array.reshape(-1) for array in found.values()]
        values = np.concatenate(flat) if flat else np.zeros(0, np.float32)
        left = tuple(name for name in wanted if name not in found)
        return Fitting(layout, values, digest_of(layout, values), left)

    def _array(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
        array = self.arrays.get(plain(name))
        if array is None:
            return None
        if array.ndim == 4 and shape == (array.shape[0], 1, *array.shape[2:]) != array.shape:
            grey: NDArray[np.float32] = array.sum(axis=1, keepdims=True, dtype=np.float32)
            return grey  # of a layer for colour images: the same function of three equal colours
        return array if array.shape == shape else None

    def told(self, entries: Sequence[Mapping[str, Any]]) -> StartedFrom:
        """What is written down of it."""
        fitting = self.fitting(entries)
        return StartedFrom(
            source=self.source,
            digest=fitting.digest,
            loaded=[name for name, _ in fitting.layout],
            left=list(fitting.left),
        )


def plain(name: str) -> str:
    """A tensor's name without the adapter around its layer."""
    return name.replace(".base_layer.", ".")


def digest_of(layout: TensorLayout, values: Vector) -> str:
    """SHA-256 of names, shapes and little-endian float32 numbers."""
    digest = hashlib.sha256(json.dumps(layout).encode())
    digest.update(np.ascontiguousarray(values, "<f4").data)
    return digest.hexdigest()


def views(layout: TensorLayout, values: Vector) -> dict[str, NDArray[np.float32]]:
    """The named arrays in a flat vector. Raises ValueError where the sizes differ."""
    sizes = [math.prod(shape) for _, shape in layout]
    if any(size < 0 for _, shape in layout for size in shape) or sum(sizes) != values.size:
        raise ValueError(f"{values.size} numbers, where the layout has {sum(sizes)}")
    ends = np.cumsum([0, *sizes])
    return {name: values[ends[i] : ends[i + 1]].reshape(shape) for i, (name, shape) in enumerate(layout)}


def save(weights: StartingWeights, run_dir: Path) -> None:
    """Whole or not at all; encrypted where this machine has a key for its run directories."""
    run_dir.mkdir(parents=True, exist_ok=True)
    unfinished, key = run_dir / f"{START}.tmp", at_rest.store_key()
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in weights.arrays.items()}
    data = packed(arrays, {_SOURCE: weights.source.model_dump_json()})
    with unfinished.open("wb") as file:
        file.writelines([data] if key is None else at_rest.sealed(key, [data], _what(run_dir)))
    unfinished.rename(run_dir / START)


def load(run_dir: Path, key: at_rest.Key | None) -> StartingWeights:
    """Raises `BadInput`."""
    path = run_dir / START
    try:
        data = at_rest.opened(key, path.read_bytes(), _what(run_dir), path, at_rest.STORE_REMEDY)
        arrays, said = unpacked(data)
        source = Source.model_validate_json(said[_SOURCE])
    except FileNotFoundError:
        raise BadInput(f"{path}: the weights that the run began with are gone") from None
    except (OSError, SafetensorError, KeyError, ValidationError, NotOpened) as error:
        raise BadInput(f"{path}: not what siloray wrote ({type(error).__name__})") from None
    return StartingWeights(arrays, source)


def _what(run_dir: Path) -> str:
    """For whoever encrypts it."""
    return f"{run_dir.absolute().name}/{START}"


def _wanted(entries: Iterable[Mapping[str, Any]]) -> dict[str, tuple[int, ...]]:
    try:
        return {str(each["name"]): tuple(int(size) for size in each["shape"]) for each in entries}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no list of tensors: {type(error).__name__}") from None

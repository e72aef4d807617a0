"""Updates that stay in the run directory, so that a past round can be computed anew.

    updates/v000003/round.json                who was in the sum that made version 3: the updates' headers
    updates/v000003/0000-000000000000.block   elements of the first update from 0 on, as safetensors

They are written block by block while they are folded, and a version's folder has its name only once all of it is on
the disk. A disk that is full ends the keeping, and not the round.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import safetensors.numpy
from pydantic import ValidationError, create_model
from safetensors import SafetensorError

from orchestrator.at_rest import STORE_REMEDY, Key, NotOpened, opened, sealed
from orchestrator.checkpoints import checkpoint_name
from orchestrator.core.errors import BadInput
from orchestrator.core.messages import Update
from orchestrator.core.vector import Packet
from orchestrator.disk import OsFileSystem

FOLDER, ROUND = "updates", "round.json"

_HINTS = {
    name: kind
    for name, kind in get_type_hints(Update).items()
    if name in {each.name for each in fields(Update)}
}
_FIELDS: dict[str, Any] = {name: (kind, ...) for name, kind in _HINTS.items() if name != "packet"}
_HEADER: Any = create_model("Header", **_FIELDS)
"""An update without its packet."""


class KeptUpdates:
    """Of the newest ``newest`` versions of a run."""

    def __init__(self, run_dir: Path, newest: int, key: Key | None) -> None:
        self._root, self._newest, self._key = run_dir / FOLDER, newest, key

    def begin(self, version: int, updates: Sequence[Update]) -> "Keeping":
        """``version``: that these updates make, whose fold begins."""
        about = {"version": version, "updates": [_header(update) for update in updates]}
        return Keeping(self._root / checkpoint_name(version), about, self._key)

    def retain(self) -> None:
        """Older ones go."""
        versions = sorted(self._root.glob("v*"))
        for old in versions[: -self._newest]:
            shutil.rmtree(old, ignore_errors=True)


class Keeping:
    """Of one fold, from whichever thread folds."""

    def __init__(self, final: Path, about: Mapping[str, Any], key: Key | None) -> None:
        self._final, self._key = final, key
        self._folder = final.with_name(f"tmp-{final.name}")
        self._about = about
        self._fs = OsFileSystem()
        self._failed = False
        self._try(self._begin)

    def block(self, start: int, packets: Sequence[Packet]) -> None:
        """Elements from ``start`` on of every update."""
        for index, packet in enumerate(packets):
            arrays = {name: np.ascontiguousarray(array) for name, array in packet.items()}
            self._try(self._write, _block(index, start), safetensors.numpy.save(arrays))

    def finish(self) -> None:
        """The fold is done: the folder has its name."""
        self._try(self._finish)

    def drop(self) -> None:
        """The fold came to nothing."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _begin(self) -> None:
        self.drop()
        self._fs.mkdir(self._folder)
        self._write(ROUND, json.dumps(self._about).encode())

    def _finish(self) -> None:
        self._fs.fsync_dir(self._folder)
        shutil.rmtree(self._final, ignore_errors=True)
        self._fs.rename(self._folder, self._final)
        self._fs.fsync_dir(self._final.parent)

    def _write(self, name: str, data: bytes) -> None:
        path = self._folder / name
        self._fs.write(
            path, [data] if self._key is None else sealed(self._key, [data], _what(self._final, name))
        )
        self._fs.fsync(path)

    def _try(self, step: Any, *given: Any) -> None:
        if self._failed:
            return
        try:
            step(*given)
        except OSError as error:
            self._failed = True
            self.drop()
            logging.getLogger(__name__).warning(
                "%s: the updates of this version are not kept: %s", self._final, error.strerror
            )


class Kept(NamedTuple):
    """What is kept of a round."""

    folder: Path
    updates: list[Update]
    """In the order of the sum, without their packets."""
    key: Key | None

    async def fetch(self, update: Update, start: int, stop: int) -> Packet:
        """Elements ``start`` to ``stop`` of an update's packet (`orchestrator.pipeline.Fetch`)."""
        return self.packet(self.updates.index(update), start, stop)

    def packet(self, index: int, start: int, stop: int) -> Packet:
        """As `fetch`. Raises `BadInput` for what is damaged or missing."""
        pieces: dict[str, list[Any]] = {}
        for path in sorted(self.folder.glob(f"{index:04d}-{12 * '[0-9]'}.block")):
            first = int(path.stem.partition("-")[2])
            if first < stop:
                for name, array in self._arrays(path).items():
                    pieces.setdefault(name, []).append(array[max(0, start - first) : stop - first])
        found = {name: np.concatenate(each) for name, each in pieces.items()}
        if not found or any(array.size != stop - start for array in found.values()):
            raise BadInput(f"{self.folder}: elements {start} to {stop} of update {index} are not there")
        return found

    def _arrays(self, path: Path) -> dict[str, Any]:
        try:
            data = _read(self.key, path)
            return dict(safetensors.numpy.load(data))
        except (SafetensorError, NotOpened) as error:
            raise BadInput(f"{path}: damaged: {error}") from None


def kept(run_dir: Path, version: int, key: Key | None) -> Kept:
    """What is kept of the round that made this version. Raises `BadInput` where nothing is."""
    folder = run_dir / FOLDER / checkpoint_name(version)
    try:
        about = json.loads(_read(key, folder / ROUND))
        updates = [Update(**dict(_HEADER.model_validate(each))) for each in about["updates"]]
        return Kept(folder, updates, key)
    except FileNotFoundError:
        raise BadInput(
            f"{folder}: the updates of this version are not kept; a job keeps those of its newest N versions with "
            "keep: {updates: N}"
        ) from None
    except BadInput:  # the key is another one, or missing
        raise
    except (NotOpened, ValueError, KeyError, TypeError, ValidationError):
        raise BadInput(f"{folder / ROUND}: damaged") from None


def _header(update: Update) -> dict[str, Any]:
    """All but the packet."""
    header = _HEADER.model_construct(**{name: getattr(update, name) for name in _HEADER.model_fields})
    found: dict[str, Any] = header.model_dump(mode="json")
    return found


def _block(index: int, start: int) -> str:
    return f"{index:04d}-{start:012d}.block"


def _what(folder: Path, name: str) -> str:
    return f"update {folder.parent.parent.name} {folder.name} {name}"


def _read(key: Key | None, path: Path) -> bytes:
    return opened(key, path.read_bytes(), _what(path.parent, path.name), path, STORE_REMEDY)

"""What a silo keeps of a run: control variates and private layers, version by version, and the newest driver's epoch.

A training starts from the state that the silo's last update that *counted* left behind: asked for a version
again, it gets the same bits, and an update that was lost, late or refused leaves no trace.
"""

import shutil
from collections.abc import Iterator, MutableMapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from orchestrator.at_rest import Key, NotOpened
from orchestrator.core.errors import BadInput
from orchestrator.core.vector import Vector
from silos.audit import write_private
from silos.tensor_file import read_tensors, write_tensors

KEEP = 3
"""Versions kept of those that count: a driver that resumes goes back by at most two."""


class SiloState:
    """Of one run at one silo: named vectors, one file per version in which they changed; and the epoch."""

    def __init__(self, folder: Path, key: Key | None = None) -> None:
        """``key`` encrypts the vectors."""
        self.folder, self._key = folder, key

    @property
    def epoch(self) -> int | None:
        """Of the newest driver that asked for anything; None for a run that was never joined. Raises `BadInput`."""
        try:
            return int(self._epoch_path.read_text(encoding="ascii"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            raise BadInput(f"{self._epoch_path}: not what siloray wrote; remove it to go on") from None

    def fence(self, epoch: int) -> None:
        """Drivers of an older epoch are over; durable before it returns. Raises `BadInput`."""
        write_private(self._epoch_path, f"{epoch}\n")

    def after(self, version: int) -> dict[str, Vector]:
        """State that training this version left behind; of an older one where that changed nothing. Raises `BadInput`
        for the wrong key."""
        for older in reversed([v for v in self._versions() if v <= version]):
            try:
                return dict(read_tensors(self._path(older), self._key)[0])
            except (OSError, SafetensorError, NotOpened):
                continue
        return {}

    def save(self, version: int, vectors: MutableMapping[str, Vector], counted: int) -> None:
        """Durable before it returns; the reply leaves afterwards. What lies between ``counted`` and ``version``,
        or after it, is work that never counted."""
        if not vectors:
            return
        write_tensors(self._path(version), vectors, key=self._key)
        stay = {version, *[v for v in self._versions() if v <= counted][-KEEP:]}
        for old in set(self._versions()) - stay:
            self._path(old).unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _epoch_path(self) -> Path:
        return self.folder / "epoch"

    def _versions(self) -> list[int]:
        return sorted(int(path.stem.removeprefix("v")) for path in self.folder.glob("v*.safetensors"))

    def _path(self, version: int) -> Path:
        return self.folder / f"v{version:06d}.safetensors"


class Kept(MutableMapping[str, Vector]):
    """The part of a silo's state that belongs to one user of it; an absent vector reads as zeros."""

    def __init__(self, vectors: MutableMapping[str, Vector], owner: str, size: int) -> None:
        self._vectors = vectors
        self._owner = owner
        self._size = size

    def __getitem__(self, name: str) -> Vector:
        found = self._vectors.get(f"{self._owner}/{name}")
        return np.zeros(self._size, np.float32) if found is None else found

    def __setitem__(self, name: str, value: Vector) -> None:
        self._vectors[f"{self._owner}/{name}"] = np.ascontiguousarray(value, dtype=np.float32)

    def __delitem__(self, name: str) -> None:
        del self._vectors[f"{self._owner}/{name}"]

    def __contains__(self, name: object) -> bool:
        return f"{self._owner}/{name}" in self._vectors

    def __iter__(self) -> Iterator[str]:
        prefix = f"{self._owner}/"
        return (name.removeprefix(prefix) for name in self._vectors if name.startswith(prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)

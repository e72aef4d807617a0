"""Models that a silo keeps for itself: one per run, in its own folder, until its owner removes them.

``models/<run>/model.safetensors`` holds every tensor by name, private layers included, and ``model.json`` says what it
is. Nothing here is ever sent.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from orchestrator.at_rest import Key, NotOpened
from orchestrator.core.errors import BadInput
from silos.audit import write_private
from silos.tensor_file import read_bytes, write_tensors

TENSORS = "model.safetensors"
CARD = "model.json"
_LAST = "; its owner may remove old models there"


class KeptModels:
    """Of one silo."""

    def __init__(self, folder: Path, key: Key | None = None) -> None:
        """``folder``: the silo's own (``.siloray/NAME``). ``key`` encrypts the models."""
        self.folder, self._key = folder / "models", key

    def keep(self, run_id: str, tensors: Mapping[str, NDArray[Any]], card: Mapping[str, Any]) -> str:
        """The run's model, durable, in place of one kept before; its digest. Raises `BadInput` without room."""
        folder = self.folder / run_id
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            whole = {name: np.array(each, order="C") for name, each in tensors.items()}
            write_tensors(folder / TENSORS, whole, {"siloray": json.dumps(card)}, self._key)
            (folder / TENSORS).chmod(0o600)
            digest = _digest(folder / TENSORS)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise BadInput(
                f"{folder}: the run's model cannot be kept: {reason}{_LAST}",
                f"the silo cannot keep its model: {reason}",
            ) from None
        write_private(folder / CARD, json.dumps({**card, "sha256": digest}, indent=2) + "\n")
        return digest

    def cards(self) -> dict[str, dict[str, Any]]:
        """By run, oldest first."""
        found = sorted(
            self.folder.glob(f"*/{CARD}"), key=lambda path: (path.stat().st_mtime_ns, path.parent.name)
        )
        return {path.parent.name: _read(path) for path in found}

    def find(self, run_id: str) -> tuple[Path, dict[str, Any]]:
        """The run's model and its card. Raises `BadInput` for a run without one, and for a file that is no longer what
        was kept."""
        cards = self.cards()
        if run_id not in cards:
            known = ", ".join(cards) or "none"
            raise BadInput(f"{self.folder}: no model of the run '{run_id}' is kept here; there are: {known}")
        path, card = self.folder / run_id / TENSORS, cards[run_id]
        try:
            digest = _digest(path)
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror}") from None
        if digest != card.get("sha256"):
            raise BadInput(f"{path}: not the model that was kept (SHA-256 in {CARD})")
        return path, card

    def plain(self, run_id: str) -> bytes:
        """The run's model as a safetensors file in the clear. Raises `BadInput`."""
        path, _ = self.find(run_id)
        try:
            return read_bytes(path, self._key)
        except (OSError, NotOpened) as error:
            raise BadInput(f"{path}: {error}") from None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return card
    except (OSError, ValueError):
        raise BadInput(f"{path}: not what siloray wrote") from None

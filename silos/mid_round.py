"""A local training in progress, on the silo's disk: a silo that dies in mid-round goes on instead of starting over."""

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from orchestrator.at_rest import Key, NotOpened
from orchestrator.core.errors import BadInput
from silos.tensor_file import read_tensors, write_tensors

Arrays = Mapping[str, NDArray[Any]]
Facts = Mapping[str, Any]
"""Plain values, as JSON."""
FILE = "training.safetensors"


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often a training is put on disk; nothing that comes of it depends on that."""

    every_s: float | None = 60.0
    every_steps: int | None = None


EVERY_MINUTE = Rhythm()


@dataclass(slots=True)
class MidRound:
    """One file, written anew at every checkpoint: whole, or not at all. It holds numbers and JSON; nothing in it is
    run when it is read. It stays until the silo begins another work, so that a silo that dies before its update was
    fetched need not start over either."""

    folder: Path
    work: str
    """Identity of all that the training depends on."""
    key: Key | None = None
    """Encrypts the file."""
    seconds: float = field(default=0.0, init=False)
    """Spent on writing."""
    _wrote_at: float = field(default_factory=monotonic, init=False)
    _wrote_step: int = field(default=0, init=False)

    def due(self, rhythm: Rhythm, step: int) -> bool:
        """Whether it is time for a checkpoint after this step."""
        if rhythm.every_steps is not None and step - self._wrote_step >= rhythm.every_steps:
            return True
        return rhythm.every_s is not None and monotonic() - self._wrote_at >= rhythm.every_s

    def save(self, step: int, arrays: Arrays, facts: Facts) -> None:
        """Durable before it returns. A disk that is full costs the checkpoint and not the training."""
        began = monotonic()
        try:
            write_tensors(self._path, arrays, {"work": self.work, "facts": json.dumps(facts)}, self.key)
        except (OSError, SafetensorError) as error:
            logging.getLogger(__name__).warning("%s: no checkpoint of the training: %s", self._path, error)
        self._wrote_at, self._wrote_step = monotonic(), step
        self.seconds += self._wrote_at - began

    def load(self) -> tuple[dict[str, NDArray[Any]], Facts] | None:
        """The last checkpoint of this very work; what is of another, or cannot be read, is none, and goes. Raises
        `BadInput` for the wrong key."""
        try:
            arrays, said = read_tensors(self._path, self.key)
            if said.get("work") == self.work:
                facts: Facts = json.loads(said["facts"])
                return {name: np.array(each) for name, each in arrays.items()}, facts
        except BadInput:
            raise
        except (OSError, SafetensorError, NotOpened, ValueError, KeyError) as error:
            logging.getLogger(__name__).debug("%s: %s", self._path, error)
        with suppress(OSError):
            self._path.unlink()
        return None

    @property
    def _path(self) -> Path:
        return self.folder / FILE

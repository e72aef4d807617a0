"""Where a silo's keys come from, as ``silo.yaml`` says: a file, the environment, or a command."""

import os
import subprocess
from pathlib import Path
from typing import Self

from pydantic import BaseModel, Field, model_validator

from orchestrator.at_rest import Key, key_in, key_of
from orchestrator.core.errors import BadInput
from orchestrator.core.printable import without_keys
from silos.bounds import inside

PATIENCE_S = 60.0
"""A command that gives a key has so long."""


class KeySource(BaseModel, frozen=True, extra="forbid"):
    """One of three. The key is 32 bytes, as 64 hexadecimal digits or in base64."""

    file: str | None = None
    """Only its owner may read it (``siloray silo key PATH`` makes one); a relative path starts at the folder of
    ``silo.yaml``."""
    env: str | None = None
    """An environment variable of the silo's process that holds the key."""
    command: tuple[str, ...] | None = Field(default=None, min_length=1)
    """A program with its arguments, which prints the key: that of a key store, as a rule. Run without a shell, in the
    folder of ``silo.yaml``."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(each is not None for each in (self.file, self.env, self.command)) != 1:
            raise ValueError("give one of 'file', 'env' and 'command'")
        return self

    def key(self, folder: Path) -> Key:
        """``folder``: that of ``silo.yaml``. Raises `BadInput`, in which nothing of the key stands."""
        if self.file is not None:
            return key_in(inside(self.file, folder))
        if self.env is not None:
            return self._of_environment(self.env)
        assert self.command is not None
        return _printed(self.command, folder)

    def _of_environment(self, name: str) -> Key:
        text = os.environ.get(name)
        if text is None:
            where = without_keys(name)
            raise BadInput(f"{where}: no such environment variable in the silo's process", _MISSING)
        return key_of(text, f"the environment variable {name}")


_MISSING = "a key cannot be had"


def _printed(command: tuple[str, ...], folder: Path) -> Key:
    where = f"the command {without_keys(command[0])}"
    try:
        ended = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=PATIENCE_S,
            check=False,
        )
    except OSError as error:
        raise BadInput(f"{where}: {error.strerror}", _MISSING) from None
    except subprocess.TimeoutExpired:
        raise BadInput(f"{where}: gave no key within {PATIENCE_S:.0f} s", _MISSING) from None
    if ended.returncode != 0:
        raise BadInput(f"{where}: gave no key, it ended with code {ended.returncode}", _MISSING)
    return key_of(ended.stdout.decode("ascii", "replace"), where)


class Encryption(BaseModel, frozen=True, extra="forbid"):
    """That something is encrypted, and where its key is."""

    key: KeySource

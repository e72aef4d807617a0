"""The newest ledger head that each silo has shown to a driver, over all runs of a folder.

A silo's ledger of privacy spent only grows. Whoever puts an older copy back would spend it twice; the driver has seen
how far the ledger was, signs that, and tells the silo whenever it asks for something.
"""

import base64
import json
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from orchestrator.core.errors import BadInput
from orchestrator.core.messages import LedgerHead
from orchestrator.disk import locked
from orchestrator.keys import PUBLIC, Signer, write

FILE = "ledger-heads.json"
"""In the folder of runs."""


class Head(BaseModel, frozen=True, extra="forbid"):
    """How far a ledger was."""

    head: str
    """SHA-256 of its last line."""
    length: int
    """Lines."""
    run: str
    """The run in which it was shown."""


_HEADS = TypeAdapter(dict[str, Head])


class Heads:
    """By silo: it has one ledger for all its data. Several drivers may share the folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def newest(self, silo: str) -> Head | None:
        """The longest that was shown; None before the first. Raises `BadInput`."""
        return self._read().get(silo)

    def see(self, silo: str, shown: Head) -> str | None:
        """A silo shows a head: why it cannot be, in a sentence, else None, and a longer one is on the disk. A shorter
        one may come from an update that was made before; whether a longer one goes on from the one known here only the
        silo can tell. Raises `BadInput`."""
        with locked(self.path):
            heads = self._read()
            known = heads.get(silo)
            if known is not None and shown.length == known.length and shown.head != known.head:
                return f"its privacy ledger of {shown.length} lines is another than in {known.run}"
            if known is None or shown.length > known.length:
                self._write({**heads, silo: shown})
            return None

    def _read(self) -> dict[str, Head]:
        try:
            return _HEADS.validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError):
            raise BadInput(f"{self.path}: not what siloray wrote; put back a copy of it") from None

    def _write(self, heads: dict[str, Head]) -> None:
        try:
            shown = _HEADS.dump_python(heads, mode="json")
            write(self.path, json.dumps(shown, indent=1, sort_keys=True).encode() + b"\n", PUBLIC)
        except OSError as error:
            raise BadInput(f"{self.path}: cannot be written: {error.strerror}") from None


class Countersigner:
    """The heads that one run's driver tells and is told."""

    def __init__(self, folder: Path, run_id: str, signer: Signer | None = None) -> None:
        """``folder``: of the runs."""
        self._heads, self._run_id, self._signer = Heads(folder), run_id, signer

    def told(self, silo: str) -> LedgerHead | None:
        """What the driver knows of the silo's ledger, signed where it has a key. Raises `BadInput`."""
        known = self._heads.newest(silo)
        if known is None:
            return None
        head = LedgerHead(known.length, known.head)
        if self._signer is None:
            return head
        signature = self._signer.sign(head.statement(silo))
        key, signed = (base64.b64encode(each).decode() for each in (self._signer.public, signature))
        return LedgerHead(known.length, known.head, key, signed)

    def shown(self, silo: str, head: LedgerHead | None) -> str | None:
        """As `Heads.see`, for what came with an update."""
        if head is None:
            return None
        if not 0 < head.length < 1 << 40 or len(head.hash) != 64:
            return "shows a head that is none of a privacy ledger"
        return self._heads.see(silo, Head(head=head.hash, length=head.length, run=self._run_id))

"""Who takes part: ``roster.yaml``, public, one for the whole consortium."""

import base64
import binascii
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import AfterValidator, BaseModel, Field

from orchestrator.core import document
from orchestrator.core.errors import BadInput

DRIVER = "spiffe://siloray/driver"
DRIVER_NAME = "driver"
SILO_NAME = r"^[A-Za-z0-9_-]{1,100}$"
"""As in ``silo.yaml``."""
ROSTER = "roster.yaml"


def silo_identity(name: str) -> str:
    """What our own CA writes as a silo's first subject alternative name."""
    return f"spiffe://siloray/silo/{name}"


def check_name(name: str) -> None:
    """`BadInput` for what ``silo.yaml`` would not take as a name."""
    if not re.fullmatch(SILO_NAME, name) or name in {DRIVER_NAME, "global", "overall"}:
        raise BadInput(
            f"'{name}' is no silo name: letters, digits, - and _ (not 'driver', 'global', 'overall')"
        )


def encoded(key: Ed25519PublicKey) -> str:
    """A public signing key as the roster holds it: base64 of its 32 bytes."""
    return base64.b64encode(key.public_bytes_raw()).decode()


def decoded(text: str) -> Ed25519PublicKey:
    """The key of such a text; ValueError when it is none."""
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        raise ValueError("expected an Ed25519 public key: base64 of 32 bytes") from None


def _checked_key(text: str) -> str:
    return encoded(decoded(text))


_Key = Annotated[str, AfterValidator(_checked_key)]
_Name = Annotated[str, Field(pattern=SILO_NAME)]


class _Spec(BaseModel, frozen=True, extra="forbid"):
    pass


class Entry(_Spec, frozen=True):
    """A member in ``roster.yaml``."""

    identity: str = Field(min_length=1)
    """The first subject alternative name of its certificate."""
    signing_key: _Key


class RosterFile(_Spec, frozen=True):
    """``roster.yaml`` as it is written. Public; driver and silos have a copy each."""

    driver: Entry
    silos: dict[_Name, Entry] = {}
    revoked: tuple[_Key, ...] = ()
    """Signing keys that count no longer."""


@dataclass(frozen=True)
class Member:
    """The driver or a silo."""

    name: str
    identity: str
    signing_key: Ed25519PublicKey
    revoked: bool = False
    """Whether its signing key counts no longer."""


class Roster:
    """Who takes part."""

    def __init__(self, file: RosterFile) -> None:
        self.file = file
        self._revoked = frozenset(file.revoked)
        self.driver = self._member(DRIVER_NAME, file.driver)
        self.silos: Mapping[str, Member] = {
            name: self._member(name, each) for name, each in file.silos.items()
        }
        self._by_identity = {each.identity: each for each in self.silos.values()}

    @classmethod
    def load(cls, path: Path) -> "Roster":
        """Read ``roster.yaml``; `BadInput` in one line when it is wrong."""
        file = document.load(path, RosterFile)
        _check_once(path, file, "identity", lambda entry: entry.identity)
        _check_once(path, file, "signing_key", lambda entry: entry.signing_key)
        return cls(file)

    def silo_of(self, identity: str) -> Member | None:
        """The silo whose certificate bears this name."""
        return self._by_identity.get(identity)

    def member_of(self, identity: str) -> Member | None:
        """The driver or the silo whose certificate bears this name."""
        return self.driver if identity == self.driver.identity else self.silo_of(identity)

    def revoked(self, member: Member) -> bool:
        """Whether the member's signing key counts no longer."""
        return encoded(member.signing_key) in self._revoked

    def _member(self, name: str, entry: Entry) -> Member:
        revoked = entry.signing_key in self._revoked
        return Member(name, entry.identity, decoded(entry.signing_key), revoked)


def _check_once(path: Path, file: RosterFile, what: str, of: Callable[[Entry], str]) -> None:
    """Two members with one name or one key could speak for each other."""
    seen = {of(file.driver): DRIVER_NAME}
    for name, entry in file.silos.items():
        if of(entry) in seen:
            raise BadInput(f"{path}: silos.{name}.{what}: '{of(entry)}' is that of {seen[of(entry)]} already")
        seen[of(entry)] = name


class LiveRoster:
    """The roster as the file says now. One that cannot be read changes nothing, and is told of once: a member that
    it was to revoke still counts. ``tell`` may be replaced by whoever keeps a record."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tell: Callable[[str], None] = logging.getLogger(__name__).warning
        self._stamp = self._look()
        self._roster = Roster.load(path)

    def current(self) -> Roster:
        """The newest roster that could be read."""
        stamp = self._look()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._roster = Roster.load(self.path)
            except BadInput as error:
                self.tell(f"{error}; until that is mended, the roster of before counts")
        return self._roster

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def verify(member: Member, data: bytes, signature: bytes) -> bool:
    """Whether the member signed exactly this, with a key that still counts."""
    if member.revoked:
        return False
    try:
        member.signing_key.verify(signature, data)
    except InvalidSignature:
        return False
    return True

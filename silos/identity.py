"""Who a silo is: its Ed25519 key, and the keys by which it knows its peers.

The key is that of the silo's credentials, where it has any, else one that it makes on first use and keeps. Peers are
known by the consortium's roster, by ``peers`` in ``silo.yaml``, or else by the first key that each of them showed.
"""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import TypeAdapter, ValidationError

from orchestrator.core.errors import BadInput
from orchestrator.disk import locked
from orchestrator.keys import SIGNING_KEY, kept_signing_key, read_signing_key, signed_by
from orchestrator.roster import ROSTER, LiveRoster
from silos.audit import write_private
from silos.bounds import inside
from silos.config import SiloConfig

KEY, PEERS = "identity.key", "peers.json"
"""In the silo's own folder."""

_KEYS = TypeAdapter(dict[str, str])


class Peers(Protocol):
    """The public keys of other silos, each the 32 bytes of an Ed25519 key."""

    def key_of(self, silo: str) -> bytes | None:
        """None where none is known, or the one known counts no longer."""
        ...

    def meet(self, silo: str, public: bytes) -> None:
        """The peer shows this key. Raises `BadInput` unless it is the one that counts."""
        ...


class Identity:
    """A silo's own key, and its peers' (`orchestrator.privacy.sealing.Identity`)."""

    def __init__(self, name: str, key: Ed25519PrivateKey, peers: Peers) -> None:
        self.name, self._key, self.peers = name, key, peers
        self.public = key.public_key().public_bytes_raw()

    @classmethod
    def alone(cls, name: str) -> "Identity":
        """A key that is kept nowhere, and peers whose first ones count: for a silo of a simulation, whose word nobody
        relies on."""
        return cls(name, Ed25519PrivateKey.generate(), MetPeers())

    @classmethod
    def kept(cls, name: str, own_folder: Path) -> "Identity":
        """All of it in the silo's own folder. Raises `BadInput`."""
        return cls(name, kept_signing_key(own_folder / KEY), PinnedPeers(own_folder / PEERS))

    @classmethod
    def of(
        cls, config: SiloConfig, own_folder: Path, document: Path, credentials: Path | None = None
    ) -> "Identity":
        """As ``silo.yaml``, which is ``document``, says; ``credentials`` in place of its ``connection``. Raises
        `BadInput`."""
        folder = credentials or _credentials(config, document.absolute().parent)
        peers = _peers(config, own_folder, document, folder)
        if folder is not None and (folder / SIGNING_KEY).exists():
            return cls(config.name, read_signing_key(folder / SIGNING_KEY), peers)
        return cls(config.name, kept_signing_key(own_folder / KEY), peers)

    def sign(self, data: bytes) -> bytes:
        """An Ed25519 signature that `verify` accepts for this silo."""
        return self._key.sign(data)

    def verify(self, silo: str, data: bytes, signature: bytes) -> bool:
        """Whether the silo signed exactly this, with the key that counts here."""
        public = self.public if silo == self.name else self.peers.key_of(silo)
        return public is not None and signed_by(public, data, signature)

    def meet(self, silo: str, public: bytes) -> None:
        """A peer shows its key. Raises `BadInput` where another one counts, or none."""
        if silo != self.name:
            self.peers.meet(silo, public)
        elif public != self.public:
            raise BadInput(*_told(f"a key of {silo} is shown that is not this silo's own"))


class GivenPeers:
    """Keys that somebody wrote down. Who is not there is not known."""

    def __init__(self, keys: Mapping[str, bytes], where: str) -> None:
        self._keys, self._where = dict(keys), where

    def key_of(self, silo: str) -> bytes | None:
        return self._keys.get(silo)

    def meet(self, silo: str, public: bytes) -> None:
        _check(silo, public, self.key_of(silo), self._where)


class MetPeers:
    """The first key that each silo showed, as long as the process lives."""

    def __init__(self) -> None:
        self._keys: dict[str, bytes] = {}

    def key_of(self, silo: str) -> bytes | None:
        return self._keys.get(silo)

    def meet(self, silo: str, public: bytes) -> None:
        _check(silo, public, self._keys.setdefault(silo, public), "this simulation")


class RosterPeers:
    """Members of the consortium, as its roster says now."""

    def __init__(self, roster: LiveRoster) -> None:
        self._roster = roster

    def key_of(self, silo: str) -> bytes | None:
        member = self._roster.current().silos.get(silo)
        return None if member is None or member.revoked else member.signing_key.public_bytes_raw()

    def meet(self, silo: str, public: bytes) -> None:
        _check(silo, public, self.key_of(silo), str(self._roster.path))


class PinnedPeers:
    """The first key that each silo showed, in a file: whoever shows another one later is refused."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def key_of(self, silo: str) -> bytes | None:
        return self._read().get(silo)

    def meet(self, silo: str, public: bytes) -> None:
        with locked(self._path):
            known = self._read()
            if silo not in known:
                known[silo] = public
                shown = {name: base64.b64encode(key).decode() for name, key in sorted(known.items())}
                write_private(self._path, json.dumps(shown, indent=1) + "\n")
        if known[silo] != public:
            raise BadInput(
                f"{self._path}: {silo} shows another key than when this silo met it first; if {silo} confirms the new "
                f"one by another way, remove its line there",
                f"{silo} shows another key than when this silo met it first",
            )

    def _read(self) -> dict[str, bytes]:
        try:
            keys = _KEYS.validate_json(self._path.read_bytes())
            return {name: base64.b64decode(key, validate=True) for name, key in keys.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError, ValueError):
            raise BadInput(
                f"{self._path}: not what siloray wrote; put it back, or remove it to meet all peers anew"
            ) from None


def _credentials(config: SiloConfig, folder: Path) -> Path | None:
    return inside(config.connection.credentials, folder) if config.connection is not None else None


def _peers(config: SiloConfig, own_folder: Path, document: Path, credentials: Path | None) -> Peers:
    """What is written down counts before what was seen."""
    if config.peers:
        keys = {name: base64.b64decode(key) for name, key in config.peers.items()}
        return GivenPeers(keys, f"{document}, peers")
    if credentials is not None and (credentials / ROSTER).exists():
        return RosterPeers(LiveRoster(credentials / ROSTER))
    return PinnedPeers(own_folder / PEERS)


def _check(silo: str, public: bytes, known: bytes | None, where: str) -> None:
    if known is None:
        raise BadInput(
            *_told(f"{where}: no key of {silo} that counts; take the newest copy, or add it there")
        )
    if known != public:
        raise BadInput(
            *_told(f"{where}: another key of {silo} than the one it shows; ask {silo} which is its own")
        )


def _told(text: str) -> tuple[str, str]:
    """Keys and names are no secrets, but paths stay here."""
    return text, text.rpartition(": ")[2]

"""A member's own keys and certificate, checked when they are read.

TLS says who is on the line (the certificate's first subject alternative name); the roster says which Ed25519
key signs that member's headers. A certificate of a foreign CA that claims a silo's name cannot sign for it.
"""

import datetime as dt
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from orchestrator.core.errors import BadInput
from orchestrator.keys import SIGNING_KEY, private_key, read_part, read_private, read_signing_key
from orchestrator.roster import ROSTER, LiveRoster, Member, Roster, encoded, verify

__all__ = ["Credentials", "LiveRoster", "Member", "Roster", "verify"]

TLS_CERT, TLS_KEY, CA_CERT = "tls.pem", "tls.key", "ca.pem"


@dataclass(frozen=True)
class Credentials:
    """A member's own folder, checked: certificate, private keys, CA certificates and roster."""

    folder: Path
    certificate: bytes
    key: bytes
    ca: bytes
    signing_key: Ed25519PrivateKey
    identity: str
    roster: LiveRoster

    @classmethod
    def load(cls, folder: Path) -> "Credentials":
        """Read a credentials folder; `BadInput` in one line, with the remedy, when it cannot serve."""
        if not folder.is_dir():
            raise BadInput(f"{folder}: no such folder; 'siloray certs request' makes one")
        certificate, key = read_part(folder / TLS_CERT), read_private(folder / TLS_KEY)
        read = read_certificate(folder / TLS_CERT)
        _check_dates(folder / TLS_CERT, read)
        _check_pair(folder, read, key)
        _check_ca(folder / CA_CERT)
        found = cls(
            folder=folder,
            certificate=certificate,
            key=key,
            ca=read_part(folder / CA_CERT),
            signing_key=read_signing_key(folder / SIGNING_KEY),
            identity=identity_of(folder / TLS_CERT, read),
            roster=LiveRoster(folder / ROSTER),
        )
        _check_member(found)
        return found

    @cached_property
    def public_key(self) -> Ed25519PublicKey:
        """What others verify our signatures with."""
        return self.signing_key.public_key()

    def sign(self, data: bytes) -> bytes:
        """An Ed25519 signature that `verify` accepts for this member."""
        return self.signing_key.sign(data)


def read_certificate(path: Path) -> x509.Certificate:
    """The first certificate of a PEM file."""
    data = read_part(path)
    try:
        return x509.load_pem_x509_certificate(data)
    except ValueError:
        raise BadInput(f"{path}: no PEM certificate") from None


def identity_of(path: Path, certificate: x509.Certificate) -> str:
    """The first subject alternative name, which is the identity that TLS tells the other side."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return str(next(iter(names)).value)
    except (x509.ExtensionNotFound, StopIteration, ValueError):
        raise BadInput(f"{path}: no subject alternative name; the first one is the identity") from None


def _check_dates(path: Path, certificate: x509.Certificate) -> None:
    now, renew = dt.datetime.now(dt.UTC), "'siloray certs issue ... --force' makes a new one"
    if now < certificate.not_valid_before_utc:
        raise BadInput(
            f"{path}: not valid before {certificate.not_valid_before_utc:%F %T} UTC; see the clock"
        )
    if now > certificate.not_valid_after_utc:
        raise BadInput(f"{path}: expired on {certificate.not_valid_after_utc:%F}; {renew}")


def _check_pair(folder: Path, certificate: x509.Certificate, key: bytes) -> None:
    own = private_key(folder / TLS_KEY, key).public_key()
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if own.public_bytes(*form) != certificate.public_key().public_bytes(*form):
        raise BadInput(
            f"{folder / TLS_KEY}: not the key of {TLS_CERT}; put back the pair that belongs together"
        )


def _check_ca(path: Path) -> None:
    data = read_part(path)
    try:
        x509.load_pem_x509_certificates(data)
    except ValueError:
        raise BadInput(f"{path}: no PEM certificates") from None


def _check_member(own: Credentials) -> None:
    roster, path = own.roster.current(), own.folder / ROSTER
    member, key = roster.member_of(own.identity), encoded(own.public_key)
    if key in roster.file.revoked:
        raise BadInput(f"{path}: the key in {SIGNING_KEY} is revoked; ask for new credentials")
    if member is None:
        raise BadInput(f"{path}: '{own.identity}' is not in the roster; take the consortium's newest copy")
    if encoded(member.signing_key) != key:
        raise BadInput(f"{path}: another signing_key for '{own.identity}' than {SIGNING_KEY} holds ({key})")

"""Credentials in lines for people; private keys are only read for their public halves."""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cryptography import x509

from orchestrator.core.errors import BadInput
from orchestrator.keys import SIGNING_KEY, read_signing_key
from orchestrator.roster import ROSTER, Roster, encoded
from orchestrator.transport.certs import (
    CA_CERT,
    TLS_CERT,
    identity_of,
    read_certificate,
)


class Line(NamedTuple):
    """One fact, and whether it lets the credentials serve."""

    text: str
    fine: bool = True


def shown(path: Path) -> tuple[list[str], bool]:
    """What there is to say about a folder, a certificate or a roster, and whether all of it is in force."""
    lines = list(_lines(path))
    return [line.text for line in lines], all(line.fine for line in lines)


def _lines(path: Path) -> Iterator[Line]:
    if path.is_dir():
        yield from _folder(path)
    elif path.suffix in {".yaml", ".yml"}:
        yield from _roster(Roster.load(path))
    else:
        yield from _certificate(path)


def _folder(folder: Path) -> Iterator[Line]:
    if (folder / TLS_CERT).exists():
        yield from _certificate(folder / TLS_CERT)
        yield from _signing(folder) if (folder / SIGNING_KEY).exists() else _answer(folder)
    elif (folder / CA_CERT).exists():
        yield from _certificate(folder / CA_CERT)
        yield from _roster(Roster.load(folder / ROSTER))
    elif (folder / SIGNING_KEY).exists():
        yield from _signing(folder)
    else:
        raise BadInput(f"{folder}: no {TLS_CERT}, {SIGNING_KEY} or {CA_CERT} in this folder")


def _certificate(path: Path) -> Iterator[Line]:
    certificate = read_certificate(path)
    if _is_ca(certificate):
        yield Line(f"CA            {certificate.subject.rfc4514_string()}")
    else:
        yield Line(f"identity      {identity_of(path, certificate)}")
    yield _validity(certificate)


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _validity(certificate: x509.Certificate) -> Line:
    now, first, last = (
        dt.datetime.now(dt.UTC),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
    )
    if now > last:
        left = f"expired {(now - last).days} days ago"
    else:
        left = "not valid yet" if now < first else f"{(last - now).days} days left"
    return Line(f"valid         {first:%F} to {last:%F} ({left})", first <= now <= last)


def _signing(folder: Path) -> Iterator[Line]:
    key = encoded(read_signing_key(folder / SIGNING_KEY).public_key())
    yield Line(f"signing key   {key}")
    identity = _identity(folder)
    if (folder / ROSTER).exists():
        yield _standing(Roster.load(folder / ROSTER), identity, key)
    yield Line(f"roster entry  {{identity: {identity}, signing_key: {key}}}")


def _answer(folder: Path) -> Iterator[Line]:
    """What the CA made of a request: the private keys are where the request was made."""
    member = Roster.load(folder / ROSTER).member_of(_identity(folder))
    if member is None:
        yield Line("roster        not a member", False)
        return
    yield Line(f"signing key   {encoded(member.signing_key)}; its private half is not here")
    standing = "revoked" if member.revoked else f"member, as {member.name}"
    yield Line(f"roster        {standing}", not member.revoked)


def _identity(folder: Path) -> str:
    path = folder / TLS_CERT
    return identity_of(path, read_certificate(path)) if path.exists() else "(of the certificate to come)"


def _standing(roster: Roster, identity: str, key: str) -> Line:
    member = roster.member_of(identity)
    if key in roster.file.revoked:
        return Line("roster        revoked", False)
    if member is None:
        return Line("roster        not a member yet: the entry below is missing")
    if encoded(member.signing_key) != key:
        return Line("roster        another signing key stands there: these keys were replaced", False)
    return Line(f"roster        member, as {member.name}")


def _roster(roster: Roster) -> Iterator[Line]:
    for member in (roster.driver, *roster.silos.values()):
        standing = "  revoked" if roster.revoked(member) else ""
        yield Line(f"{member.name}  {member.identity}  {encoded(member.signing_key)}{standing}", not standing)
    for key in roster.file.revoked:
        yield Line(f"(revoked)  {key}")

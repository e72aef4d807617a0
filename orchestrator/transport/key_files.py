"""The files of a folder of credentials."""

from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator.core.errors import BadInput
from orchestrator.keys import PRIVATE, SIGNING_KEY, make_folder, pem, write
from orchestrator.transport.certs import TLS_KEY


def check_absent(folder: Path, names: Iterable[str], force: bool) -> None:
    """`BadInput` when one of these files is there and must not be overwritten."""
    for name in names:
        if not force and (folder / name).exists():
            raise BadInput(f"{folder / name}: already there; --force replaces it")


def write_keys(folder: Path, tls: ec.EllipticCurvePrivateKey, signing: Ed25519PrivateKey) -> None:
    """Both private keys of a member."""
    make_folder(folder)
    write(folder / TLS_KEY, pem(tls), PRIVATE)
    write(folder / SIGNING_KEY, pem(signing), PRIVATE)


def read(path: Path) -> bytes:
    """`BadInput` instead of an error of the system."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None

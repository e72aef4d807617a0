"""Private and public files of credentials: made with their final mode, whole or not at all."""

import os
from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from orchestrator.core.errors import BadInput
from orchestrator.transport.certs import SIGNING_KEY, TLS_KEY

PUBLIC, PRIVATE = 0o644, 0o600


def pem(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    """A private key in the clear, as TLS libraries read it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


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


def make_folder(folder: Path) -> None:
    """For its owner only."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def write(path: Path, data: bytes, mode: int) -> None:
    """Whole or not at all, and never for a moment with a wider mode."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def read(path: Path) -> bytes:
    """`BadInput` instead of an error of the system."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None

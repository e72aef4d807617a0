"""Private keys in files: made with their final mode, whole or not at all, and read only where no one else may."""

import base64
import os
from contextlib import suppress
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from orchestrator.core.errors import BadInput

SIGNING_KEY = "signing.key"
"""A member's Ed25519 key in its folder of credentials."""

DRIVER_KEY = "driver.key"
"""The driver's Ed25519 key in a folder of runs, where the driver has no credentials."""

PUBLIC, PRIVATE = 0o644, 0o600


def pem(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    """A private key in the clear, as TLS libraries read it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def make_folder(folder: Path) -> None:
    """For its owner only."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def write(path: Path, data: bytes, mode: int) -> None:
    """Durably, whole or not at all, and never for a moment with a wider mode."""
    _written_beside(path, data, mode).replace(path)
    _sync_folder(path.parent)


def read_part(path: Path) -> bytes:
    """A file that a folder of credentials must have; `BadInput` where it has not."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; a credentials folder needs it") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None


def read_private(path: Path) -> bytes:
    """`BadInput` where others than its owner may read the file."""
    data = read_part(path)
    if path.stat().st_mode & 0o077:
        raise BadInput(f"{path}: others than its owner may read this private key; run: chmod 600 {path}")
    return data


def private_key(path: Path, data: bytes) -> PrivateKeyTypes:
    """The key in ``data``, which was read from ``path``."""
    try:
        return load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise BadInput(f"{path}: no PEM private key without a passphrase") from None


def read_signing_key(path: Path) -> Ed25519PrivateKey:
    """A member's Ed25519 key, from a file that only its owner may read."""
    key = private_key(path, read_private(path))
    if not isinstance(key, Ed25519PrivateKey):
        raise BadInput(f"{path}: expected an Ed25519 key")
    return key


def kept_signing_key(path: Path) -> Ed25519PrivateKey:
    """The Ed25519 key of this file, which is made on first use; of two processes that make it, both have the first
    one's. `BadInput` where it can be neither read nor made."""
    if not path.exists():
        try:
            make_folder(path.parent)
            unfinished = _written_beside(path, pem(Ed25519PrivateKey.generate()), PRIVATE)
            with suppress(FileExistsError):
                os.link(unfinished, path)
            unfinished.unlink()
            _sync_folder(path.parent)
        except OSError as error:
            raise BadInput(f"{path}: the signing key cannot be kept here: {error.strerror}") from None
    return read_signing_key(path)


class Signer:
    """Somebody's own Ed25519 key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes_raw()
        """32 bytes, for whoever checks a signature."""

    def sign(self, data: bytes) -> bytes:
        """64 bytes, which `signed_by` accepts."""
        return self._key.sign(data)


def signed_by(public: bytes, data: bytes, signature: bytes) -> bool:
    """Whether the owner of this raw Ed25519 key signed exactly this."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def is_signed(key: str, data: bytes, signature: str) -> bool:
    """As `signed_by`, of a key and a signature in base64."""
    try:
        public, signed = (base64.b64decode(each, validate=True) for each in (key, signature))
    except ValueError:
        return False
    return signed_by(public, data, signed)


def _written_beside(path: Path, data: bytes, mode: int) -> Path:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return unfinished


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

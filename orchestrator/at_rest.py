"""Files encrypted at rest: AES-256-GCM in chunks, under a key of the file's own.

A file is ``SRYSEAL1``, the key's id, 16 random bytes of salt, and chunks of 4 MiB with a tag of 16 bytes each. Its key
is HKDF-SHA256 of the master key and the salt; a chunk's nonce is its number and whether it is the last one (the STREAM
construction, Hoang et al. 2015), so that chunks can be neither reordered nor cut off. What the file is (run, name,
step) is authenticated with each chunk: a file in the place of another one does not open.
"""

import base64
import binascii
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from orchestrator.core.errors import BadInput
from orchestrator.core.printable import without_keys

STORE_KEY = "SILORAY_STORE_KEY_FILE"
"""Names, on the driver's machine, the file of the key for checkpoints; without it they are in the clear."""
STORE_REMEDY = f"name the file of its key in {STORE_KEY}, where the driver runs"

MAGIC = b"SRYSEAL1"
CHUNK_BYTES = 4 << 20
KEY_BYTES = 32
_ID, _SALT, _TAG = 8, 16, 16
_HEAD = len(MAGIC) + _ID + _SALT
_HEX = re.compile(r"[0-9a-fA-F]{64}")


class NotOpened(Exception):
    """Not what was encrypted under this key and name: cut, changed, or another file's."""


class Key:
    """A master key. It is never printed; ``id`` names it."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(secret)}")
        self._secret = secret
        self.id = self.derived(b"id").hex()[: 2 * _ID]
        """Tells keys apart, and nothing of them."""

    def derived(self, purpose: bytes, salt: bytes = b"") -> bytes:
        """A key of 32 bytes for one purpose."""
        info = b"siloray at rest " + purpose
        return HKDF(SHA256(), KEY_BYTES, salt or None, info).derive(self._secret)

    def __repr__(self) -> str:
        return f"Key({self.id})"

    def __reduce__(self) -> str:
        raise TypeError("a key stays in its process")


def key_of(text: str, where: str) -> Key:
    """The key in 64 hexadecimal digits, or in base64. Raises `BadInput`, which does not repeat the text."""
    trimmed = text.strip()
    try:
        secret = (
            bytes.fromhex(trimmed) if _HEX.fullmatch(trimmed) else base64.b64decode(trimmed, validate=True)
        )
        return Key(secret)
    except (ValueError, binascii.Error):
        remedy = "expected 32 bytes as 64 hexadecimal digits or in base64 ('siloray silo key PATH' makes one)"
        raise BadInput(f"{where}: no key; {remedy}", "a key cannot be used") from None


def key_in(path: Path) -> Key:
    """The key in a file that nobody but its owner may read. Raises `BadInput`."""
    try:
        with path.open(encoding="ascii") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise BadInput(
                    f"{path}: a key that others may read; chmod 600 {path}", "a key that others may read"
                )
            return key_of(file.read(1024), str(path))
    except OSError as error:
        where = without_keys(str(path))
        raise BadInput(f"{where}: the key cannot be read: {error.strerror}", "a key cannot be read") from None
    except UnicodeDecodeError:
        return key_of("", str(path))


def make_key(path: Path) -> Key:
    """A new key in a new file, for its owner's eyes from the first moment. Raises `BadInput`."""
    secret = os.urandom(KEY_BYTES)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secret.hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise BadInput(f"{path}: there is such a file already; what it encrypts would be lost") from None
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    return Key(secret)


def named_key() -> str | None:
    """The file that this process's environment names, for another process. Raises `BadInput` for a key in its place,
    which would travel, and be told."""
    named = os.environ.get(STORE_KEY)
    if named and _is_key(named):
        raise BadInput(f"{STORE_KEY}: a key itself; put it into a file that only you can read, and name that")
    return str(Path(named).expanduser().absolute()) if named else None


def _is_key(text: str) -> bool:
    try:
        key_of(text, "")
    except BadInput:
        return False
    return True


def store_key() -> Key | None:
    """The key for this machine's run directories; None where none is named. Raises `BadInput`."""
    named = named_key()
    return key_in(Path(named)) if named else None


def sealed(key: Key, chunks: Iterable[bytes | memoryview], what: str) -> Iterator[bytes]:
    """The bytes of a file that holds ``chunks``, which may be of any sizes; ``what``: see the module."""
    salt = os.urandom(_SALT)
    cipher, about = AESGCM(key.derived(b"file", salt)), what.encode()
    yield MAGIC + bytes.fromhex(key.id) + salt
    ahead: bytes | memoryview = b""
    number = 0
    for piece in _cut(chunks):
        if number:
            yield cipher.encrypt(_nonce(number - 1, last=False), ahead, about)
        ahead, number = piece, number + 1
    yield cipher.encrypt(_nonce(max(0, number - 1), last=True), ahead, about)


def _cut(chunks: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The same bytes in pieces of `CHUNK_BYTES`, the last one shorter; a whole chunk is passed on as it is."""
    held = bytearray()
    for chunk in chunks:
        view = memoryview(chunk)
        while len(held) + len(view) >= CHUNK_BYTES:
            more = CHUNK_BYTES - len(held)
            yield b"".join((held, view[:more])) if held else view[:more]
            held, view = bytearray(), view[more:]
        held += view
    if held:
        yield bytes(held)


def sealed_bytes(num_bytes: int) -> int:
    """Size of the file that holds so many."""
    return _HEAD + num_bytes + _TAG * max(1, -(-num_bytes // CHUNK_BYTES))


def opened(key: Key | None, data: bytes, what: str, where: Path, remedy: str) -> bytes:
    """What `sealed` was given, or the bytes of a file in the clear where there is no key. ``where``: for messages.

    Raises `BadInput` where there is no key for the file, or another one, and where a file is in the clear that should
    not be; `NotOpened`.
    """
    if not data.startswith(MAGIC):
        if key is None:
            return data
        raise BadInput(f"{where}: in the clear, although a key is given; go on without it, or begin anew")
    if key is None:
        raise BadInput(f"{where}: encrypted; {remedy}")
    if data[len(MAGIC) : len(MAGIC) + _ID].hex() != key.id:
        raise BadInput(f"{where}: encrypted with another key than {key.id}; {remedy}")
    return _decrypted(key, data, what)


def _decrypted(key: Key, data: bytes, what: str) -> bytes:
    cipher, about, view = (
        AESGCM(key.derived(b"file", data[_HEAD - _SALT : _HEAD])),
        what.encode(),
        memoryview(data),
    )
    step = CHUNK_BYTES + _TAG
    plain = []
    for number, begin in enumerate(range(_HEAD, max(len(data), _HEAD + 1), step)):
        nonce = _nonce(number, last=begin + step >= len(data))
        try:
            plain.append(cipher.decrypt(nonce, view[begin : begin + step], about))
        except (InvalidTag, ValueError):
            raise NotOpened("it does not open: it was cut or changed, or is another file's") from None
    return b"".join(plain)


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])

"""Checkpoints: one folder per version, verified byte by byte before anything in it is believed.

``v000012/state.safetensors`` holds named float32 vectors. ``v000012/MANIFEST.json`` holds the size and
SHA-256 of that file, what the caller records with it, and a SHA-256 of itself. A folder has its name only
while all in it is durable: a crash leaves whole checkpoints and ``tmp-*`` folders, never half a checkpoint.

With a key the vectors are encrypted (`orchestrator.at_rest`), and what is hashed is the encrypted file, so that damage
is told from a wrong key. The manifest stays readable: it holds no parameters.
"""

import errno
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from orchestrator import at_rest
from orchestrator.at_rest import Key, NotOpened
from orchestrator.core.faults import fault
from orchestrator.disk import FileSystem, naming_full
from orchestrator.journal import to_json

if TYPE_CHECKING:
    from hashlib import _Hash

State = Mapping[str, NDArray[np.float32]]

STATE = "state.safetensors"
MANIFEST = "MANIFEST.json"
CHUNK_BYTES = 4 << 20
"""Hashed, and then written while the processor's cache still has it."""

_SEALED = re.compile(rb'\{"sha256":"([0-9a-f]{64})",(.*)', re.DOTALL)


class Unusable(Exception):
    """Why a checkpoint is not used."""


def checkpoint_name(version: int) -> str:
    """The version's folder under ``checkpoints/``."""
    return f"v{version:06d}"


class Checkpoints:
    """The folder of checkpoints."""

    def __init__(self, root: Path, fs: FileSystem, key: Key | None = None) -> None:
        """``root``: in the folder that is named as the run."""
        self.root = root
        self._fs, self._key = fs, key

    def versions(self) -> list[int]:
        """Versions that have a folder, ascending; not verified."""
        return _numbers(self._fs.list(self.root), "v")

    def save(self, version: int, state: State, record: Mapping[str, Any]) -> None:
        """Makes a checkpoint of ``state`` and the JSON ``record`` durable. Raises ValueError, DiskFull."""
        final = self.root / checkpoint_name(version)
        tmp = self.root / f"tmp-{final.name}"
        header = _header(state)
        num_bytes = len(header) + sum(vector.nbytes for vector in state.values())
        chunks: Iterable[bytes | memoryview] = (header, *_chunks(state))
        if self._key is not None:
            num_bytes, chunks = at_rest.sealed_bytes(num_bytes), self._sealed(self._key, version, chunks)
        self._fs.remove(tmp)
        with naming_full(self._fs, final, num_bytes), self._removed_on_error(tmp):
            self._fs.mkdir(tmp)
            sha256 = self._write(tmp / STATE, chunks)
            fault("checkpoint.files")
            files = {STATE: {"bytes": num_bytes, "sha256": sha256}}
            self._write(tmp / MANIFEST, [_sealed({**record, "version": version, "files": files})])
            self._fs.fsync_dir(tmp)
            fault("checkpoint.manifest")
            self.delete(version)  # if an attempt at this very commit failed after its rename
            self._fs.rename(tmp, final)
            self._fs.fsync_dir(self.root)
            fault("checkpoint.renamed")

    @contextmanager
    def _removed_on_error(self, path: Path) -> Iterator[None]:
        try:
            yield
        except Exception:
            with suppress(OSError):
                self._fs.remove(path)
            raise

    def load(
        self, version: int, expect: Mapping[str, Any]
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
        """State and record of a version. Raises Unusable for damage, or a ``meta`` other than ``expect``; `BadInput`
        where the vectors are encrypted under another key, or the key is missing."""
        folder = self.root / checkpoint_name(version)
        try:
            manifest = _unsealed(self._fs.read(folder / MANIFEST))
            _check(manifest, version, expect)
            data = self._fs.read(folder / STATE)
            _check_file(data, manifest["files"][STATE])
            plain = at_rest.opened(self._key, data, self._what(version), folder / STATE, at_rest.STORE_REMEDY)
            return safetensors.numpy.load(plain), manifest
        except FileNotFoundError as error:
            raise Unusable(f"{Path(error.filename).name} is missing") from None
        except NotOpened as error:
            raise Unusable(f"{STATE}: {error}") from None
        except (KeyError, TypeError, SafetensorError) as error:
            raise Unusable(f"not a checkpoint of this program: {error!r}") from None
        except OSError as error:
            # A bad sector is damage; anything else (permissions, open files) is for a person to put right.
            if error.errno not in (errno.EIO, errno.ENOTDIR, errno.EISDIR):
                raise
            raise Unusable(f"cannot be read: {error}") from None

    def delete(self, version: int) -> None:
        """Deletes a version's folder, if there is one; a crash leaves it whole or nameless."""
        name = checkpoint_name(version)
        if name not in self._fs.list(self.root):
            return
        old = self.root / f"tmp-old-{name}"
        self._fs.rename(self.root / name, old)
        self._fs.fsync_dir(self.root)
        self._fs.remove(old)

    def settle(self) -> None:
        """Makes the names durable: a driver that died may have renamed without getting so far."""
        self._fs.fsync_dir(self.root)

    def set_aside(self, version: int) -> None:
        """Takes a checkpoint out of the series, durably, but leaves it for a person to look at."""
        name = checkpoint_name(version)
        self._fs.remove(self.root / f"skipped-{name}")
        self._fs.rename(self.root / name, self.root / f"skipped-{name}")
        self._fs.fsync_dir(self.root)

    def sweep(self, below: int) -> bool:
        """Deletes what a crash left, and what was set aside of versions below; whether there was any."""
        names = self._fs.list(self.root)
        old = [
            f"skipped-{checkpoint_name(version)}"
            for version in _numbers(names, "skipped-v")
            if version < below
        ]
        swept = [name for name in names if name.startswith("tmp-")] + old
        for name in swept:
            self._fs.remove(self.root / name)
        return bool(swept)

    def _sealed(self, key: Key, version: int, chunks: Iterable[bytes | memoryview]) -> Iterator[bytes]:
        return at_rest.sealed(key, chunks, self._what(version))

    def _what(self, version: int) -> str:
        """Run, file and version: a checkpoint in the place of another one does not open."""
        return f"{self.root.absolute().parent.name}/{checkpoint_name(version)}/{STATE}"

    def _write(self, path: Path, chunks: Iterable[bytes | memoryview]) -> str:
        """Writes a file durably and returns its SHA-256."""
        digest = hashlib.sha256()
        self._fs.write(path, _hashed(chunks, digest))
        self._fs.fsync(path)
        return digest.hexdigest()


# The file is written here rather than by safetensors' ``save_file``, which is as fast, but turns a full disk
# into an error without a number and leaves the hash to a second pass. Reading is the library's.


def _header(state: State) -> bytes:
    """The safetensors header, byte for byte the library's. Raises ValueError for other than float32."""
    entries, end = {}, 0
    for name, vector in sorted(state.items()):
        if vector.dtype != np.dtype("<f4") or vector.ndim != 1:
            raise ValueError(f"{name} is {vector.dtype} of shape {vector.shape}, not a float32 vector")
        entries[name] = {"dtype": "F32", "shape": [vector.size], "data_offsets": [end, end + vector.nbytes]}
        end += vector.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _chunks(state: State) -> Iterator[memoryview]:
    for _, vector in sorted(state.items()):
        data = np.ascontiguousarray(vector).view(np.uint8).data
        for start in range(0, len(data), CHUNK_BYTES):
            yield data[start : start + CHUNK_BYTES]


def _hashed(chunks: Iterable[bytes | memoryview], digest: "_Hash") -> Iterator[bytes | memoryview]:
    for chunk in chunks:
        digest.update(chunk)
        yield chunk


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    """``{"sha256":"<of the rest>",<rest>``. Raises ValueError for what JSON cannot hold."""
    rest = to_json("manifest", manifest)[1:]
    return b'{"sha256":"%s",%s' % (hashlib.sha256(rest).hexdigest().encode(), rest)


def _unsealed(data: bytes) -> dict[str, Any]:
    match = _SEALED.fullmatch(data)
    if match is None or hashlib.sha256(match[2]).hexdigest().encode() != match[1]:
        raise Unusable(f"{MANIFEST} is damaged")
    return dict(json.loads(b"{" + match[2]))


def _check(manifest: Mapping[str, Any], version: int, expect: Mapping[str, Any]) -> None:
    if manifest["version"] != version:
        raise Unusable(f"it is version {manifest['version']} under another name")
    for key, value in expect.items():
        if manifest["meta"].get(key) != value:
            raise Unusable(f"{key} is {manifest['meta'].get(key)}, this run's is {value}")


def _check_file(data: bytes, entry: Mapping[str, Any]) -> None:
    if len(data) != entry["bytes"]:
        raise Unusable(f"{STATE} has {len(data):,} bytes instead of {entry['bytes']:,}")
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise Unusable(f"{STATE} does not match its SHA-256")


def _numbers(names: Iterable[str], prefix: str) -> list[int]:
    found = (re.fullmatch(prefix + r"(\d{6,})", name) for name in names)
    return sorted(int(match[1]) for match in found if match)

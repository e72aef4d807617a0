"""A folder in an object store, or in any other file system that pyarrow knows: whole objects, by name.

An object is there whole or not at all, at once for everybody who looks. What fails is tried a few times, then it is
`StoreAway`. Credentials are those of the environment or the machine's role; a URI that holds a password is refused.
"""

import copy
import os
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qs, urlsplit, urlunsplit

from orchestrator.core.errors import BadInput
from orchestrator.disk import StoreAway

T = TypeVar("T")

PAUSES_S = (0.2, 0.5, 1.0)
"""Between the attempts at one object; the client of the store has attempts of its own in each."""

CACHE = "SILORAY_CACHE"
"""Names the folder for what is copied from stores; else ``~/.cache/siloray``."""

_WHOLE_OBJECTS = {"s3", "gcs", "abfs"}
"""Stores where what is written has its name only once it is complete, and folders need not be made."""

COPY_BYTES = 4 << 20


def is_uri(text: str) -> bool:
    """``s3://bucket/runs`` rather than a path."""
    return "://" in text


def shown(uri: str) -> str:
    """The URI as it may be printed: without user, password and options."""
    parts = urlsplit(uri)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def checked(uri: str, remedy: str = "the environment or the machine's role gives it") -> str:
    """The URI. Raises BadInput where it says what others must not read."""
    try:
        secret = urlsplit(uri).password
    except ValueError as error:
        raise BadInput(f"{uri}: {error}") from None
    if secret:
        raise BadInput(
            f"{shown(uri)}: a password does not belong into a URI, which others can read; {remedy}"
        )
    return uri


def child(uri: str, name: str) -> str:
    """The URI of a folder in that of ``uri``."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def parent(uri: str) -> str:
    """The URI of the folder that holds that of ``uri``."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/").rpartition("/")[0]))


def copies(uri: str, kind: str) -> Path:
    """The folder on this machine for copies of what the URI's folder holds."""
    parts = urlsplit(uri)
    endpoint = "".join(f"@{each}" for each in parse_qs(parts.query).get("endpoint_override", []))
    base = Path(os.environ.get(CACHE) or "~/.cache/siloray").expanduser().absolute()
    where = [
        each for each in (parts.netloc.rpartition("@")[2], *parts.path.split("/")) if each not in ("", "..")
    ]
    return base.joinpath(kind, parts.scheme + endpoint.replace("/", "_"), *where)


class Entry(NamedTuple):
    """An object; its ``name`` is relative to the bucket's folder."""

    name: str
    size: int
    time_ns: int


class Bucket:
    """The folder that a URI names."""

    def __init__(self, uri: str) -> None:
        """Raises BadInput for what cannot be opened."""
        self.where = shown(checked(uri)).rstrip("/")
        self._fs, self._root = _opened(uri, self.where)

    def folder(self, name: str) -> "Bucket":
        """A folder in it."""
        inner = copy.copy(self)
        inner.where, inner._root = f"{self.where}/{name}", f"{self._root}/{name}"
        return inner

    def check(self) -> None:
        """Raises BadInput unless this machine may write there."""
        probe = f".siloray-{os.getpid()}-{time.time_ns()}"
        try:
            self.put(probe, b"")
            self.remove(probe)
        except StoreAway as error:
            raise BadInput(f"{self.where} cannot be used: {error.strerror}") from None

    def put(self, name: str, data: bytes) -> None:
        """Makes the object, or replaces it."""
        self._tried(name, lambda: self._write(name, data))

    def put_file(self, name: str, path: Path) -> None:
        """Makes the object of a file that is not empty."""
        import pyarrow

        def put() -> None:
            with pyarrow.memory_map(str(path)) as file:
                self._write(name, file.read_buffer())

        self._tried(name, put)

    def get(self, name: str) -> bytes:
        """Raises FileNotFoundError."""

        def get() -> bytes:
            with self._fs.open_input_file(self._path(name)) as file:
                return bytes(file.read())

        return self._tried(name, get, FileNotFoundError)

    def fetch(self, name: str, path: Path) -> None:
        """Copies the object into a file. Raises FileNotFoundError."""

        def fetch() -> None:
            with self._fs.open_input_file(self._path(name)) as file, path.open("wb") as here:
                shutil.copyfileobj(file, here, COPY_BYTES)

        self._tried(name, fetch, FileNotFoundError)

    def remove(self, name: str) -> None:
        """Removes an object; one that is not there is fine."""
        self._tried(name, lambda: _gone(lambda: self._fs.delete_file(self._path(name))))

    def remove_folder(self, name: str) -> None:
        """Removes all objects whose names begin with ``name/``."""
        self._tried(name, lambda: _gone(lambda: self._fs.delete_dir(self._path(name))))

    def entries(self) -> list[Entry]:
        """All objects, by name."""
        from pyarrow.fs import FileSelector, FileType

        def found() -> list[Entry]:
            selected = FileSelector(self._root, allow_not_found=True, recursive=True)
            infos = [each for each in self._fs.get_file_info(selected) if each.type == FileType.File]
            return [
                Entry(each.path[len(self._root) :].lstrip("/"), each.size or 0, each.mtime_ns or 0)
                for each in infos
                if not each.base_name.startswith(".")
            ]

        return sorted(self._tried("", found))

    def _write(self, name: str, data: Any) -> None:
        """All of it in one call: a stream that is closed after the half of it would be an object, too."""
        path = self._path(name)
        if self._fs.type_name in _WHOLE_OBJECTS:
            return self._stream(path, data)
        folder, _, last = path.rpartition("/")
        unfinished = f"{folder}/.{last}.{os.getpid()}"
        self._fs.create_dir(folder, recursive=True)
        self._stream(unfinished, data)
        self._fs.move(unfinished, path)
        return None

    def _stream(self, path: str, data: Any) -> None:
        with self._fs.open_output_stream(path) as stream:
            stream.write(data)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _tried(self, name: str, attempt: Callable[[], T], answer: type[Exception] | None = None) -> T:
        """What the attempt gives; an error of the kind ``answer`` is what the store has to say."""
        for pause_s in (*PAUSES_S, None):
            try:
                return attempt()
            except Exception as error:
                if answer is not None and isinstance(error, answer):
                    raise
                if pause_s is None:
                    raise StoreAway(f"{self.where}/{name}", _line(error)) from error
                time.sleep(pause_s)
        raise AssertionError("unreachable")


def _gone(remove: Callable[[], None]) -> None:
    with suppress(FileNotFoundError):
        remove()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _opened(uri: str, where: str) -> tuple[Any, str]:
    from pyarrow.fs import FileSystem

    try:
        system, path = FileSystem.from_uri(_in_one_request(uri))
    except Exception as error:
        raise BadInput(f"{where} cannot be opened: {_line(error)}") from None
    return system, path.rstrip("/")


def _in_one_request(uri: str) -> str:
    """S3 takes a small object in one request rather than three, if it is asked to."""
    parts = urlsplit(uri)
    if parts.scheme != "s3" or "allow_delayed_open" in parts.query:
        return uri
    return urlunsplit(parts._replace(query=f"{parts.query}&allow_delayed_open=true".lstrip("&")))


def within(entries: Iterable[Entry], folder: str) -> list[Entry]:
    """The entries of a folder, with names relative to it."""
    prefix = f"{folder}/"
    return [each._replace(name=each.name[len(prefix) :]) for each in entries if each.name.startswith(prefix)]

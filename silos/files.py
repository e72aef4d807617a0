"""Which files a data set is made of, and the digest that identifies them."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from orchestrator.core.errors import BadInput
from silos.bounds import bounded
from silos.config import DatasetConfig, SplitPaths

TABLES = {
    ".parquet": "parquet",
    ".arrow": "ipc",
    ".ipc": "ipc",
    ".feather": "ipc",
    ".csv": "csv",
    ".tsv": "csv",
}
"""Endings of table files and pyarrow's name of their format."""
HASHED_WHOLE = 1 << 30
"""Bytes up to which a data set's fingerprint covers every byte."""
UNREADABLE = "a file of the data set cannot be read"
"""What others may know of it."""
_MIB = 1 << 20
NOT_READING = {"path", "encryption", "contract", "budget"}
"""Of a data set's entry in ``silo.yaml``: what changes nothing in the rows that are read."""


class Place(NamedTuple):
    """Something that ``path`` names, and the split it belongs to ('' where other rules decide)."""

    path: Path
    split: str


def places(config: DatasetConfig, folder: Path) -> tuple[Place, ...]:
    """Files and folders that ``path`` names, in alphabetical order; `BadInput` for a name without a match."""
    if isinstance(config.path, SplitPaths):
        pairs = (("train", config.path.train), ("test", config.path.test))
        return tuple(Place(path, split) for split, given in pairs for path in _matches(given, folder))
    return tuple(Place(path, "") for path in _matches(config.path, folder))


def _matches(patterns: str | tuple[str, ...], folder: Path) -> list[Path]:
    found: set[Path] = set()
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        matched = bounded(pattern, folder)
        if not matched:
            raise BadInput(
                f"{folder / pattern}: no such file; 'path' in silo.yaml starts at that file's folder",
                "a file of the data set is not there",
            )
        found.update(matched)
    return sorted(found)


def is_image_folder(config: DatasetConfig, found: Iterable[Place]) -> bool:
    """Whether the data set is a folder of images per class; ``auto``: a folder without tables at its top."""
    if config.format != "auto":
        return config.format == "folder"
    return all(each.path.is_dir() and not tables_in(each.path.iterdir()) for each in found)


def table_files(found: Iterable[Place]) -> tuple[Place, ...]:
    """The tables among these files and inside these folders; all of one format."""
    given = tuple(found)
    files = [Place(path, split) for path, split in given if path.is_file()]
    for path, split in given:
        if path.is_dir():
            files += [Place(each, split) for each in tables_in(path.rglob("*"))]
    check_names(files)
    _check_one_format(given, files)
    return tuple(sorted(files, key=lambda each: (each.split != "train", each.path)))


def tables_in(paths: Iterable[Path]) -> list[Path]:
    """Without hidden ones, such as a copy that was never finished."""
    return [
        path for path in paths if path.suffix.lower() in TABLES and path.is_file() and path.name[0] != "."
    ]


def _check_one_format(given: tuple[Place, ...], files: list[Place]) -> None:
    allowed = ", ".join(TABLES)
    if not files:
        raise BadInput(f"{given[0].path}: no table in this folder; expected files ending in {allowed}")
    for path, _ in files:
        if path.suffix.lower() not in TABLES:
            raise BadInput(f"{path}: unknown ending; a table ends in one of {allowed}")
    formats = sorted({TABLES[path.suffix.lower()] for path, _ in files})
    if len(formats) > 1:
        several = ", ".join(formats)
        raise BadInput(
            f"{files[0].path.parent}: files of several formats ({several}); name those of one in 'path'"
        )


def check_names(files: Iterable[Place]) -> None:
    """Raises `BadInput` for a name that nothing can write down: old archives hold such."""
    for path, _ in files:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise BadInput(
                f"{path}: a name that is not UTF-8; rename it", "a file's name is not UTF-8"
            ) from None


def fingerprint(files: Iterable[Place], config: DatasetConfig) -> str:
    """SHA-256 over the reading rules of ``silo.yaml`` and every file's name, size and content.

    Above `HASHED_WHOLE` bytes in total, only the first and last MiB of each file stand for its content.
    """
    listed = list(files)
    sizes = {path: path.stat().st_size for path, _ in listed}
    whole = sum(sizes.values()) <= HASHED_WHOLE
    digest = hashlib.sha256(config.model_dump_json(exclude=NOT_READING).encode())
    for name, path, split in named_files(listed):
        digest.update(f"\0{name}\0{split}\0{sizes[path]}\0".encode())
        _add_content(digest, path, sizes[path], whole)
    return digest.hexdigest()


def stamp(path: Path) -> tuple[int, ...] | None:
    """Another one when the file has changed; None for none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def named_files(files: list[Place]) -> list[tuple[str, Path, str]]:
    """Names relative to the folder that holds all files, so that moving the data changes nothing."""
    common = os.path.commonpath([path.parent for path, _ in files])
    return sorted((path.relative_to(common).as_posix(), path, split) for path, split in files)


def _add_content(digest: "hashlib._Hash", path: Path, size: int, whole: bool) -> None:
    with path.open("rb") as file:
        if whole:
            while chunk := file.read(_MIB):
                digest.update(chunk)
            return
        digest.update(file.read(_MIB))
        file.seek(max(0, size - _MIB))
        digest.update(file.read(_MIB))


def reason(error: Exception) -> str:
    """Why pyarrow cannot read a file, in a line."""
    text = str(error).partition("\n")[0]
    if "no decryption found" in str(error):
        return "it is encrypted; say where its key is with 'encryption' in silo.yaml"
    if "decryption" in text or "ciphertext" in text:
        return f"it does not decrypt, so it was changed or is damaged ({text[:80]})"
    return text[:200]


def nearest(name: str, known: Iterable[str]) -> str:
    """'; the nearest is ...' or the known names, to end a message with."""
    import difflib  # only on the way to an error

    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"; the nearest is '{close[0]}'" if close else f"; there are: {shown}"

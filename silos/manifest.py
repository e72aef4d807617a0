"""What a data set was when somebody approved it: names, columns, and a keyed hash of each row. It stays at the silo.

Two manifests tell which rows were added, removed and changed. Their digest stands for the data in the run's record;
without the silo's secret nobody can try out by it whether a row that he guesses is in the data.
"""

import base64
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from orchestrator.at_rest import Key
from orchestrator.core.errors import BadInput
from silos.config import DatasetConfig
from silos.data import TableData
from silos.files import NOT_READING, UNREADABLE, named_files, reason, stamp
from silos.image_files import ImageFolder
from silos.row_hashes import HASH_BYTES, content_hash, row_hashes

_MIB = 1 << 20


class Entry(NamedTuple):
    """A file: a table, or an image, which counts as one row."""

    name: str
    """Relative to the folder that holds all of them."""
    split: str
    columns: tuple[tuple[str, str], ...]
    """Name and type; of an image none."""
    hashes: bytes
    stamp: tuple[int, ...]
    """The file with the same one is not read again."""

    @property
    def num_rows(self) -> int:
        return len(self.hashes) // HASH_BYTES

    def rows(self) -> Iterator[bytes]:
        for start in range(0, len(self.hashes), HASH_BYTES):
            yield self.hashes[start : start + HASH_BYTES]


@dataclass(frozen=True)
class Manifest:
    """Of one data set."""

    rules: Mapping[str, Any]
    """How ``silo.yaml`` says that the files are read."""
    entries: tuple[Entry, ...]

    @cached_property
    def digest(self) -> str:
        """Another one when rows, their order, columns, splits or the rules for reading them change."""
        digest = hashlib.sha256(json.dumps(self.rules, sort_keys=True).encode())
        for each in self.entries:
            about = json.dumps([each.name, each.split, each.columns, len(each.hashes)])
            digest.update(about.encode() + each.hashes)
        return digest.hexdigest()

    @property
    def num_rows(self) -> int:
        return sum(each.num_rows for each in self.entries)

    @property
    def columns(self) -> dict[str, str]:
        """Name and type; where files differ, all types."""
        found: dict[str, set[str]] = defaultdict(set)
        for name, kind in (column for each in self.entries for column in each.columns):
            found[name].add(kind)
        return {name: " or ".join(sorted(kinds)) for name, kinds in found.items()}

    @property
    def folders(self) -> set[str]:
        """Of images: their classes."""
        return {each.name.partition("/")[0] for each in self.entries if not each.columns}

    def as_text(self) -> str:
        """A line for the rules, and one for each file."""
        lines: list[Any] = [{"rules": self.rules}]
        for each in self.entries:
            lines.append({**each._asdict(), "hashes": base64.b64encode(each.hashes).decode()})
        return "".join(json.dumps(line) + "\n" for line in lines)


def read_manifest(path: Path) -> Manifest | None:
    """None where there is none, or it cannot be read."""
    try:
        head, *rest = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        return Manifest(head["rules"], tuple(map(_entry, rest)))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _entry(line: Mapping[str, Any]) -> Entry:
    columns = tuple((name, kind) for name, kind in line["columns"])
    hashes = base64.b64decode(line["hashes"], validate=True)
    return Entry(line["name"], line["split"], columns, hashes, tuple(line["stamp"]))


def manifest_of(data: TableData | ImageFolder, key: Key, known: Manifest | None = None) -> Manifest:
    """Reads every file whose stamp is not that in ``known``. Raises `BadInput`."""
    seen = {(each.name, each.stamp): each for each in known.entries} if known else {}
    secret, entries = key.derived(b"rows"), []
    tables = _Tables(data) if isinstance(data, TableData) else None
    for name, path, split in named_files(list(data.files)):
        marked = stamp(path) or ()
        columns = tables.columns(path) if tables is not None else ()
        old = seen.get((name, marked))
        if old is not None and old.columns == columns and marked:
            entries.append(old._replace(split=split))
            continue
        hashes = tables.hashes(path, secret) if tables is not None else _image_hash(name, path, secret)
        entries.append(Entry(name, split, columns, hashes, marked))
    return Manifest(_rules(data.config), tuple(entries))


def _rules(config: DatasetConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=NOT_READING)


class _Tables:
    """The files of a table, each by its own columns and types."""

    def __init__(self, data: TableData) -> None:
        self._fragments = data.fragments()
        self._as_text = data.is_text

    def columns(self, path: Path) -> tuple[tuple[str, str], ...]:
        return tuple((each.name, str(each.type)) for each in self._schema(path))

    def hashes(self, path: Path, secret: bytes) -> bytes:
        schema = self._schema(path)
        try:
            return b"".join(
                row_hashes(batch, secret)
                for fragment in self._fragments[str(path)]
                for batch in fragment.to_batches(schema=schema)
            )
        except (pa.ArrowException, OSError) as error:
            raise BadInput(f"{path}: cannot be read: {reason(error)}", UNREADABLE) from None

    def _schema(self, path: Path) -> pa.Schema:
        own = self._fragments[str(path)][0].physical_schema.remove_metadata()
        return pa.schema([(each.name, pa.string()) for each in own]) if self._as_text else own


def _image_hash(name: str, path: Path, secret: bytes) -> bytes:
    """Of its folders, which are its class, and its content."""
    try:
        with path.open("rb") as file:
            return content_hash(_pieces(name, file), secret)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}", UNREADABLE) from None


def _pieces(name: str, file: Any) -> Iterator[bytes]:
    folders = name.rpartition("/")[0].encode()
    yield len(folders).to_bytes(4, "big") + folders
    while piece := file.read(_MIB):
        yield piece


@dataclass
class Difference:
    """Between two manifests, as numbers and names; ``places`` are for the silo's own people."""

    added: int = 0
    removed: int = 0
    changed: int = 0
    moved: bool = False
    """The same rows in another order, or in other files."""
    names: list[str] = field(default_factory=list)
    """Columns, types, classes and rules that changed."""
    places: list[dict[str, Any]] = field(default_factory=list)

    def sentence(self, counts: bool) -> str:
        """``3 rows added, 1 removed; column 'age' is of type string, was int64``."""
        told: list[str] = []
        for what, number in (("added", self.added), ("removed", self.removed), ("changed", self.changed)):
            if number:
                noun = "" if told else "row " if counts and number == 1 else "rows "
                told.append(f"{number} {noun}{what}" if counts else f"{noun}{what}")
        rows = [", ".join(told)] if told else []
        order = ["rows stand in another order or file"] if self.moved else []
        return "; ".join([*rows, *order, *self.names])


def difference(old: Manifest, new: Manifest) -> Difference:
    """What became of ``old``."""
    found = Difference(
        names=[*_columns(old, new), *_classes(old, new), *_changed_rules(old.rules, new.rules)]
    )
    before, after = _unlike(old, new), _unlike(new, old)
    lost, gained = _leftover(before, after), _leftover(after, before)
    for name in sorted(lost.keys() | gained.keys()):
        gone, come = lost.get(name, []), gained.get(name, [])
        both = min(len(gone), len(come))
        found.changed += both
        found.removed += len(gone) - both
        found.added += len(come) - both
        for what, rows in (("changed", come[:both]), ("removed", gone[both:]), ("added", come[both:])):
            found.places += [{"what": what, "file": name, "row": row + 1} for row in rows]
    found.moved = not (lost or gained) and old.digest != new.digest and not found.names
    return found


def _unlike(one: Manifest, other: Manifest) -> list[Entry]:
    """Files that are not the same in both."""
    same = {(each.name, each.hashes) for each in other.entries}
    return [each for each in one.entries if (each.name, each.hashes) not in same]


def _leftover(entries: Iterable[Entry], others: Iterable[Entry]) -> dict[str, list[int]]:
    """Rows by file, from 0, that the other files do not have (so often)."""
    there = Counter(row for each in others for row in each.rows())
    left: dict[str, list[int]] = defaultdict(list)
    for each in entries:
        for number, row in enumerate(each.rows()):
            if there[row]:
                there[row] -= 1
            else:
                left[each.name].append(number)
    return left


def _columns(old: Manifest, new: Manifest) -> Iterator[str]:
    before, after = old.columns, new.columns
    for name in sorted(after.keys() - before.keys()):
        yield f"column '{name}' is new"
    for name in sorted(before.keys() - after.keys()):
        yield f"column '{name}' is gone"
    for name in sorted(before.keys() & after.keys()):
        if before[name] != after[name]:
            yield f"column '{name}' is of type {after[name]}, was {before[name]}"


def _classes(old: Manifest, new: Manifest) -> Iterator[str]:
    for name in sorted(new.folders - old.folders):
        yield f"class folder '{name}' is new"
    for name in sorted(old.folders - new.folders):
        yield f"class folder '{name}' is gone"


def _changed_rules(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield f"'{name}' in silo.yaml changed"

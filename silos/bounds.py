"""How far a path in ``silo.yaml`` may lead.

A relative one stays in the folder of ``silo.yaml``. An absolute one is the owner's explicit word; still, no link
may lead out of the folder that it names. Where ``SILORAY_DATA_ROOT`` is set, by whoever runs the machine, all
data lies below it.
"""

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from orchestrator.core.errors import BadInput

DATA_ROOT = "SILORAY_DATA_ROOT"


class _Bound(NamedTuple):
    folder: Path
    """Resolved; nothing may lie elsewhere."""
    remedy: str


def bounded(pattern: str, folder: Path) -> list[Path]:
    """What a path or glob names, seen from ``folder``; `BadInput` when some of it lies out of bounds.

    Only names are looked at; no file is opened.
    """
    given = _expanded(pattern)
    bounds = [_home(given, folder), *_root()]
    _check(folder / _literal(given), bounds, pattern, folder)
    whole = str(given) if given.is_absolute() else f"{glob.escape(str(folder))}{os.sep}{given}"
    found = [Path(each) for each in glob.glob(whole, recursive=True)]
    for each in found:
        for path in (each, *_links(each)):
            _check(path, bounds, pattern, folder)
    return found


def inside(given: str, folder: Path) -> Path:
    """What ``silo.yaml`` in ``folder`` names that is no data, such as keys; `BadInput` when it lies out of bounds."""
    path = _expanded(given)
    _check(folder / path, [_home(path, folder)], given, folder)
    return folder / path


def _expanded(pattern: str) -> Path:
    try:
        if "\0" in pattern:
            raise ValueError
        return Path(pattern).expanduser()
    except (ValueError, RuntimeError):
        raise BadInput(f"silo.yaml: path {pattern[:80]!r}: no such file") from None


def _home(given: Path, folder: Path) -> _Bound:
    if given.is_absolute():
        literal = _literal(given)
        home = literal if literal != given or given.is_dir() else given.parent
        return _Bound(home.resolve(), "name the folder where the files really are")
    return _Bound(folder.resolve(), "move it there, or give the absolute path")


def _root() -> Iterator[_Bound]:
    """The administrator's bound, which no ``silo.yaml`` widens."""
    named = os.environ.get(DATA_ROOT)
    if named:
        if not Path(named).is_absolute():
            raise BadInput(f"{DATA_ROOT}={named}: expected an absolute path")
        yield _Bound(Path(named).resolve(), f"{DATA_ROOT} keeps all data of this machine there")


def _literal(path: Path) -> Path:
    """The path up to its first part with a wildcard."""
    for part in (path, *path.parents):
        if not glob.has_magic(str(part)):
            return part
    return Path(path.anchor)


def _check(path: Path, bounds: list[_Bound], pattern: str, folder: Path) -> None:
    try:
        target = path.resolve()
    except (OSError, RuntimeError):
        raise BadInput(f"{path}: a link that leads nowhere") from None
    for bound in bounds:
        if not target.is_relative_to(bound.folder):
            via = "" if path == target else f" ({path})"
            raise BadInput(
                f"{folder / 'silo.yaml'}: path '{pattern[:200]}' leads to {target}{via}, out of {bound.folder}; "
                f"{bound.remedy}"
            )


def _links(folder: Path) -> Iterator[Path]:
    """All links below a folder, and below the folders that they lead to."""
    waiting, seen = [str(folder)], set()
    while waiting:
        real = os.path.realpath(waiting.pop())
        if real in seen or not os.path.isdir(real):
            continue
        seen.add(real)
        with os.scandir(real) as entries:
            for entry in entries:
                if entry.is_symlink():
                    yield Path(entry.path)
                if entry.is_dir():
                    waiting.append(entry.path)

"""Which sums a silo has helped to open, on its disk: what is opened once must not be opened in another way."""

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.core.errors import BadInput
from orchestrator.disk import locked
from orchestrator.privacy.sealing import SumBound, SumRefused
from silos.audit import append_line

FILE = "sums.jsonl"


class _Sum(NamedTuple):
    members: frozenset[str]
    form: str
    scale: str


class SumMemory:
    """Over all runs of the silo (`orchestrator.privacy.sealing.Memory`): the same model gives the same update in any of
    them, and no driver can have it forgotten. A line for each sum, fsynced before anything leaves."""

    def __init__(self, folder: Path) -> None:
        """``folder``: the silo's own."""
        self._path = folder / FILE
        self._read_bytes = self._num_lines = 0
        self._tags: set[str] = set()
        self._opened: dict[str, _Sum] = {}
        """By update, and by content: the sum that it was opened in."""
        self._marks: dict[bytes, tuple[str, ...]] = {}

    def begins(self, tag: bytes, marks: Sequence[str]) -> None:
        """The silo seals these of its updates for the sum with this tag, which others may open without it: not where
        it could not remember. Raises `BadInput`."""
        with locked(self._path):
            self._read()
        self._marks[tag] = tuple(marks)

    def marks(self, tag: bytes) -> tuple[str, ...]:
        return self._marks.get(tag, ())

    def permit(
        self,
        tag: bytes,
        updates: Sequence[str],
        members: Collection[str],
        form: str = "",
        marks: Sequence[str] = (),
        scale: str = "",
        figures: Sequence[str] = (),
    ) -> None:
        now, of = _Sum(frozenset(members), form, scale), [*updates, *marks, *figures]
        with locked(self._path):
            self._read()
            if tag.hex() in self._tags:
                raise SumRefused("this sum has been opened already: a silo answers once")
            for name in of:
                _check_members(self._opened.get(name, now), now)
            for update in updates:
                _check_same(self._opened.get(update, now).form, form)
            for mark in marks:
                _check_same(self._opened.get(mark, now).scale, scale)
            line = {"tag": tag.hex(), "of": of, "members": sorted(members), "form": form, "scale": scale}
            append_line(self._path, json.dumps(line).encode() + b"\n")

    def _read(self) -> None:
        """What was written since the last time, by this process or another one."""
        for line in self._lines():
            try:
                found: dict[str, Any] = json.loads(line)
                opened = _Sum(frozenset(found["members"]), found["form"], found["scale"])
                self._tags.add(found["tag"])
                for name in found["of"]:
                    self._opened.setdefault(name, opened)
            except (ValueError, KeyError, TypeError):
                raise BadInput(
                    f"{self._path}: line {self._num_lines + 1} is not what siloray wrote; it must not be lost",
                    "the silo's memory of opened sums is damaged",
                ) from None
            self._read_bytes += len(line)
            self._num_lines += 1

    def _lines(self) -> list[bytes]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._read_bytes)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) < len(data):  # torn by a crash, before anything left
                os.truncate(self._path, self._read_bytes + len(whole))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise BadInput(f"{self._path}: {error.strerror}") from None
        return whole.splitlines(keepends=True)


def _check_members(before: _Sum, now: _Sum) -> None:
    apart = ", ".join(sorted(now.members ^ before.members))
    if apart:
        raise SumBound(
            f"one of these updates was opened in another sum, which differs from this one by {apart}: the difference "
            "would show what these gave; sum it with the same silos, or what another training gives (another seed)"
        )


def _check_same(before: str, now: str) -> None:
    if before != now:
        raise SumBound(
            "one of these updates was opened in a sum of the same silos with other weights, other factors or another "
            "range: both together would show more than their sum; sum what another training gives (another seed)"
        )

"""The journal as evidence: every line is read, also behind a bad one, and each break is told with its line."""

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.journal import Line, break_in, parse
from orchestrator.keys import is_signed


@dataclass
class Chain:
    """What was read of a journal."""

    lines: dict[int, Line] = field(default_factory=dict)
    """By their place in the file, from 0; those that could be read."""
    num_lines: int = 0
    breaks: list[str] = field(default_factory=list)
    linked: bool = True
    """False for a journal of a time when the lines were no chain."""

    @classmethod
    def of(cls, path: Path) -> "Chain":
        """The whole file. Raises OSError."""
        found, data = cls(), path.read_bytes()
        *whole, rest = data.split(b"\n")
        before: Line | None = None
        for place, raw in enumerate(whole):
            before = found._take(place, parse(raw, 0), before)
        found.num_lines = len(whole)
        if rest:
            found.breaks.append(f"line {len(whole) + 1} is not whole: a driver was writing it")
        return found

    def _take(self, place: int, line: Line | None, before: Line | None) -> Line | None:
        if line is None:
            self.breaks.append(f"line {place + 1} is damaged: its checksum is another")
            return None
        if line.seq != place:
            self.breaks.append(
                f"line {place + 1} was written as line {line.seq + 1}: lines were removed, added or moved"
            )
        elif (place == 0 or before is not None) and (broken := break_in(line, before)) is not None:
            self.breaks.append(f"line {place + 1} {broken}")
        self.linked = self.linked and line.prev is not None
        self.lines[place] = line
        return line

    def has(self, head: str, length: int) -> bool:
        """Whether the first ``length`` lines are those that somebody has seen."""
        line = self.lines.get(length - 1)
        return length == 0 if not head else line is not None and line.digest == head

    def events(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Place and event."""
        return ((place, line.event) for place, line in sorted(self.lines.items()))

    def signatures(
        self, known: str = "", revoked: Container[str] = ()
    ) -> tuple[int, list[str], dict[str, int]]:
        """How many lines the driver has signed, what is wrong with that, and with which keys, each with the number of
        its first line; ``known``: the only one that counts; ``revoked``: those that do not. Lines that end a round, or
        the run, must be signed from the first key on."""
        key, keys, signed, wrong = "", dict[str, int](), 0, list[str]()
        for place, line in sorted(self.lines.items()):
            kind = line.event.get("type")
            if kind == "run_opened":
                key = str(line.event.get("driver_key", ""))
                if key:
                    keys.setdefault(key, place + 1)
                elif keys:
                    wrong.append(f"line {place + 1}: a driver without a key went on here")
                if key in revoked:
                    wrong.append(f"line {place + 1}: a driver began here whose key the roster has revoked")
                elif known and key != known:
                    wrong.append(f"line {place + 1}: a driver with another key than {known} began here")
            signed += line.sig is not None
            if line.sig is not None and not is_signed(key, line.body, line.sig):
                wrong.append(f"line {place + 1} is not signed with the key of its driver")
            elif key and line.sig is None and (line.commit is not None or kind == "run_closed"):
                wrong.append(f"line {place + 1} ends a round and is not signed")
        return signed, wrong, keys

"""A journal that somebody follows while it is written."""

import os
from pathlib import Path

from orchestrator.core.events import Event, parse
from orchestrator.journal import JOURNAL, read_lines


class Tail:
    """Reads a journal that grows, each line once."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / JOURNAL
        self._offset = 0
        self.heads: dict[int, str] = {}
        """Of lines that end a round, or the run: the SHA-256 up to there, by the event's number."""

    def read(self) -> list[Event]:
        """Events since the last call; none without a look into the file where its size did not change.

        Raises JournalDamaged, also where lines that were read before are no longer there.
        """
        if self._size() == self._offset:
            return []
        lines, self._offset = read_lines(self._path, self._offset)
        ends = (line for line in lines if line.event["type"] in {"round_closed", "run_closed"})
        self.heads |= {line.seq: line.digest for line in ends}
        return parse(line.event for line in lines)

    def _size(self) -> int:
        try:
            return os.stat(self._path).st_size
        except FileNotFoundError:
            return 0

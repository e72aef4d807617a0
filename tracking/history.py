"""A run's journal, read for those who draw and report: what happened, and which of it still counts."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from orchestrator.core.events import (
    EVENT,
    Event,
    Figures,
    RoundClosed,
    RunClosed,
    RunOpened,
    SiloJoined,
    VersionEvaluated,
)
from orchestrator.journal import read_lines

JOURNAL = "journal.jsonl"
_TYPES = {kind.model_fields["type"].default for kind in get_args(get_args(Event)[0])}


def parse(lines: Iterable[Mapping[str, Any]]) -> list[Event]:
    """The events among journal lines; the store's own lines are left out."""
    return [EVENT.validate_python(line) for line in lines if line.get("type") in _TYPES]


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


@dataclass(slots=True)
class History:
    """What counts at the end of the events: rounds that were made again appear once."""

    opened: RunOpened | None = None
    closed: RunClosed | None = None
    joined: dict[str, SiloJoined] = field(default_factory=dict)
    rounds: dict[int, RoundClosed] = field(default_factory=dict)
    figures: dict[int, Figures] = field(default_factory=dict)
    best: int | None = None

    @property
    def silos(self) -> list[str]:
        """Names in the job's order."""
        return list(self.opened.job.get("silos", self.joined)) if self.opened else list(self.joined)

    @property
    def version(self) -> int:
        """The newest version."""
        return max(self.rounds, default=0)


def history_of(events: Iterable[Event]) -> History:
    """Folds the events. A run that is opened again goes on from ``resumed_from``; what came after is void."""
    history = History()
    for event in events:
        match event:
            case RunOpened():
                _reopen(history, event)
            case SiloJoined():
                history.joined[event.silo] = event
            case RoundClosed():
                history.rounds[event.version] = event
                _evaluate(history, event)
            case VersionEvaluated():
                _evaluate(history, event)
            case RunClosed():
                history.closed = event
    return history


def _reopen(history: History, event: RunOpened) -> None:
    kept = event.resumed_from or 0
    history.opened, history.closed = event, None
    history.rounds = {version: each for version, each in history.rounds.items() if version <= kept}
    history.figures = {version: each for version, each in history.figures.items() if version <= kept}
    history.best = history.best if history.best in history.figures else None


def _evaluate(history: History, event: RoundClosed | VersionEvaluated) -> None:
    history.figures.setdefault(event.evaluated.version, event.evaluated)
    if event.best:
        history.best = event.evaluated.version

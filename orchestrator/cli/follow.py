"""Following a run from its first event to its end, and what Ctrl-C means meanwhile."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from orchestrator.cli.display import Display, display
from orchestrator.cli.run_handle import Outcome, Run
from orchestrator.cli.view import View
from orchestrator.core.events import EVENT, Event

WAIT_S = 0.25
"""Longest wait for events: also how soon a signal is noticed."""

PAUSE_S = 0.1
"""Between two looks at a run of fast rounds: whoever watches must not slow it down."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class LeftAtOnce(Exception):
    """The second Ctrl-C or SIGTERM."""


@dataclass
class Followed:
    """What there is to say about a run after it was followed."""

    outcome: Outcome
    durable: list[Event] = field(default_factory=list)
    """What a summary is made of, wherever the journal lies."""


class Signals:
    """Ctrl-C and SIGTERM: the first is answered between events, the second raises `LeftAtOnce` anywhere."""

    def __init__(self, first: Callable[[Display], None]) -> None:
        self._first: Callable[[Display], None] | None = first
        self._count = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if self._count > 1:
            raise LeftAtOnce

    def answer(self, show: Display) -> None:
        if self._count and self._first is not None:
            first, self._first = self._first, None
            first(show)


class Interrupt:
    """Ctrl-C or SIGTERM while the run starts: noted, and raised as KeyboardInterrupt where nothing is half done. Ray
    drops what a handler raises amid its calls, or ends with a segmentation fault. The second is raised at once."""

    def __init__(self) -> None:
        self.came = False

    def watch(self) -> None:
        """Be the handler (again: Ray sets one of its own for SIGTERM); raise what came before."""
        for number in _SIGNALS:
            signal.signal(number, self)
        self.check()

    def check(self) -> None:
        if self.came:
            raise KeyboardInterrupt

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.check()
        self.came = True


@contextmanager
def _counting(first: Callable[[Display], None]) -> Iterator[Signals]:
    """Enter it after Ray has started: Ray sets a handler of its own for SIGTERM."""
    signals = Signals(first)
    before = {number: signal.signal(number, signals) for number in _SIGNALS}
    try:
        for handler in before.values():
            if isinstance(handler, Interrupt):
                handler.check()
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class _Batch:
    """Events that came together."""

    lines: list[dict[str, Any]]
    fresh: bool = False
    """These are all events since the run was first opened; what was known before is among them."""

    def num_old(self, since: float | None) -> int:
        """How many are history: from before ``since``, or before the run was last opened."""
        if not self.fresh:
            return 0
        if since is not None:
            old = (n for n, line in enumerate(self.lines, 1) if 0 < line.get("time", 0) < since)
            return max(old, default=0)
        return max((n for n, line in enumerate(self.lines) if line.get("type") == "run_opened"), default=0)


def follow(
    run: Run, as_json: bool, first_signal: Callable[[Display], None], since: float | None = None
) -> Followed:
    """Show the run until it ends; of its history (see `_Batch.num_old`), take note only."""
    view, durable = View(), list[Event]()
    with _counting(first_signal) as signals, display(view, as_json) as show:
        for batch in _batches(run):
            if batch.fresh:
                view.forget()
                durable.clear()
            num_old = batch.num_old(since)
            for index, line in enumerate(_timed(batch.lines)):
                event = EVENT.validate_python(line)
                view.fold(event)
                durable += [event] if event.durable else []
                if index >= num_old:
                    show(line, event, view)
            signals.answer(show)
    return Followed(_ended(run), durable)


def _timed(lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What comes straight from the driver has no time yet: it happened just now."""
    now = time.time()
    return (line if line.get("time") else {**line, "time": now} for line in lines)


def _ended(run: Run) -> Outcome:
    outcome = run.outcome()
    if outcome is None:
        raise RuntimeError(f"{run.run_id} was left before it ended")
    return outcome


def _batches(run: Run) -> Iterator[_Batch]:
    """Events as they come, until the run has ended and all are told."""
    cursor, fresh = 0, True
    while True:
        ended = run.outcome() is not None  # asked before the last look, so that no event is missed
        lines, reached = run.events(cursor, 0.0 if ended else WAIT_S)
        if reached < cursor:
            cursor, fresh = 0, True
            continue
        yield _Batch(lines, fresh)
        cursor, fresh = reached, False
        if ended:
            return
        if lines:
            time.sleep(PAUSE_S)

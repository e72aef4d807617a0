"""A run on the screen: a live picture on a terminal, a line per round elsewhere, JSON lines for machines."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from orchestrator.cli import words
from orchestrator.cli.view import SiloView, View
from orchestrator.core.events import (
    CallRefused,
    DriftAlarm,
    Event,
    ModeChosen,
    ModelReady,
    RoundClosed,
    RunOpened,
    SiloBusy,
    SiloDeclined,
    SiloDown,
    SiloJoined,
    Source,
    StartedFrom,
    UpdateRefused,
    Waiting,
)
from orchestrator.core.printable import printable
from orchestrator.core.spent import spent, spent_by

MAX_SILOS = 24
"""Silos that the picture lists; of the others it gives the number."""

_ARROWS = {"better": "green", "worse": "red", "same": "dim"}
_COLOURS = {
    "starting": "dim",
    "ready": "",
    "resting": "dim",
    "working": "cyan",
    "delivered": "green",
    "lost": "red",
    "refused": "yellow",
}
_FIRST = ("lost", "refused", "working", "starting", "ready", "delivered", "resting")


class Display(Protocol):
    """Shows what happens."""

    def __call__(self, line: Mapping[str, Any], event: Event, view: View) -> None:
        """One event, as it came and as it was understood; ``view`` has taken it in."""
        ...

    def tell(self, text: str) -> None:
        """A word of the command line itself."""
        ...


class JsonLines:
    """One event per line on standard output, words on standard error."""

    def __call__(self, line: Mapping[str, Any], event: Event, view: View) -> None:
        print(json.dumps(line, separators=(",", ":")), flush=True)

    def tell(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class Lines:
    """A line for each round, and one for whatever is out of the ordinary."""

    def __call__(self, line: Mapping[str, Any], event: Event, view: View) -> None:
        text = sentence(event, view)
        if text:
            self.tell(text)

    def tell(self, text: str) -> None:
        print(printable(text), flush=True)


class Picture:
    """Redrawn in place, four times a second."""

    def __init__(self, live: Any) -> None:
        self._live = live

    def __call__(self, line: Mapping[str, Any], event: Event, view: View) -> None:
        loud = ModeChosen | SiloDown | SiloDeclined | SiloBusy | UpdateRefused | CallRefused | DriftAlarm
        if isinstance(event, loud):
            self.tell(sentence(event, view))

    def tell(self, text: str) -> None:
        self._live.console.print(printable(text), highlight=False, markup=False)


def display(view: View, as_json: bool) -> AbstractContextManager[Display]:
    """The display that suits where the output goes."""
    return _picture(view) if not as_json and sys.stdout.isatty() else _plain(as_json)


@contextmanager
def _plain(as_json: bool) -> Iterator[Display]:
    yield JsonLines() if as_json else Lines()


@contextmanager
def _picture(view: View) -> Iterator[Display]:
    from rich.live import Live

    with Live(get_renderable=lambda: render(view, time.time()), refresh_per_second=4, transient=True) as live:
        yield Picture(live)


def sentence(event: Event, view: View) -> str:
    """The log line of an event; empty where it deserves none."""
    match event:
        case RunOpened():
            resumed = "" if event.resumed_from is None else f", goes on from version {event.resumed_from}"
            silos = len(event.job.get("silos", []))
            return f"run {event.run_id}: {event.name}, {silos} silos, {view.total} rounds{resumed}"
        case SiloJoined():
            cost = f"; the whole job costs {spent(event.planned)}" if spent(event.planned) else ""
            if cost and event.metrics == "open":
                cost += ", and metrics are outside that guarantee (policy.metrics in its silo.yaml)"
            if event.metrics == "summed":
                cost += "; metrics leave in a sealed sum where three silos have this rule, or not at all"
            rows = _rows(event.num_examples) + _left_out(event)
            return f"{event.silo} joined: {rows}, {event.device}, on {event.node}{cost}"
        case ModelReady(started_from=StartedFrom() as began):
            left = f"; as the seed gives them: {words.some(began.left)}" if began.left else ""
            return f"starts from {_source(began.source)}: {len(began.loaded)} tensors loaded{left}"
        case RoundClosed():
            return _round(event, view)
        case ModeChosen():
            return f"goes on in mode {event.mode}: {words.one_line(event.reason)}"
        case SiloDown():
            return f"{event.silo} lost in round {view.round}: {words.one_line(event.why)}"
        case UpdateRefused():
            why = f"({event.code}): {words.one_line(event.reason)}"
            return f"{event.silo} refused in round {view.round} {why}"
        case DriftAlarm():
            signals = ", ".join(event.signals)
            return f"{event.silo} drifts in round {event.version}: {signals} not as before (nothing is done about it)"
        case SiloDeclined():
            return f"{event.silo} takes no part ({event.code}): {words.one_line(event.reason)}"
        case SiloBusy():
            return f"{event.silo} will join later: {words.one_line(event.reason)}"
        case CallRefused():
            again = f", {event.times} times" if event.times > 1 else ""
            return f"turned away {event.who} ({event.code}): {words.one_line(event.reason)}{again}"
        case Waiting():
            until = "" if event.until_s is None else f"; gives up in {words.duration(event.until_s)}"
            whom = words.some(event.silos) or "space"
            return f"waiting for {whom}: {words.one_line(event.why)}{until}"
    return ""


def _source(source: Source) -> str:
    return f"version {source.version} of {source.run_id}" if source.run_id else source.name


def _rows(num_examples: Mapping[str, int]) -> str:
    rows = ", ".join(f"{count} {split}" for split, count in sorted(num_examples.items(), reverse=True))
    return f"{rows} rows" if rows else "number of rows kept private"


def _left_out(event: SiloJoined) -> str:
    count = sum(event.quarantined.values())
    return f" ({count} more quarantined)" if count else ""


def _round(event: RoundClosed, view: View) -> str:
    took = words.duration(event.seconds.get("round", 0.0))
    figures = "  ".join(f"{name} {words.figure(value)}" for name, value in _latest(view))
    known = f"; version {event.version - 1}: {figures}" if figures else ""
    cost = spent_by((each.silo, each.privacy) for each in event.contributors)
    told = f"; privacy spent: {cost}" if cost else ""
    return f"round {event.version}/{view.total}: {len(event.contributors)} updates in {took}{known}{told}"


def _latest(view: View) -> list[tuple[str, float]]:
    return [(name, view.series(name)[-1]) for name in view.judged_by]


def render(view: View, now: float) -> Any:
    """The whole picture."""
    from rich.console import Group
    from rich.text import Text

    return Group(_head(view, now), *_figures(view), _table(view), Text(_foot(view), style="dim"))


def _head(view: View, now: float) -> Any:
    from rich.text import Text

    text = Text.assemble((view.name or "starting", "bold"), (f"  {view.run_id}  ", "dim"))
    text.append(f"round {max(view.round, view.version)} of {view.total}  ")
    done = int(30 * view.version / view.total) if view.total else 0
    text.append("━" * done, style="green").append("━" * (30 - done), style="dim")
    left = view.seconds_left(now)
    return text.append(f"  about {words.duration(left)} left" if left is not None else "", style="dim")


def _figures(view: View) -> list[Any]:
    from rich.text import Text

    lines = []
    for name, value in _latest(view):
        text = Text(f"{printable(name):>12} {words.figure(value):<9}")
        text.append(words.sparkline(view.series(name)), style=_ARROWS[view.trend(name)])
        best = view.figures.get(view.best, {}).get(name) if view.best is not None else None
        known = "" if best is None else f"  best version: {words.figure(best)}"
        lines.append(text.append(known, style="dim"))
    return lines


def _table(view: View) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("silo")
    table.add_column("train rows", justify="right")
    private = any(silo.spent for silo in view.silos.values())
    if private:
        table.add_column("privacy spent")
    table.add_column("now", overflow="ellipsis", no_wrap=True)
    for name, silo in shown(view):
        rows = str(silo.num_examples.get("train", ""))
        cost = [silo.spent] if private else []
        table.add_row(name, rows, *cost, Text(words.one_line(silo.says), style=_COLOURS[silo.state]))
    return table


def shown(view: View) -> list[tuple[str, SiloView]]:
    """The silos to list: all in the job's order, or, of very many, those worth a look first."""
    silos = list(view.silos.items())
    if len(silos) <= MAX_SILOS:
        return silos
    return sorted(silos, key=lambda item: _FIRST.index(item[1].state))[:MAX_SILOS]


def _foot(view: View) -> str:
    parts = []
    hidden = len(view.silos) - MAX_SILOS
    if hidden > 0:
        parts.append(f"and {hidden} more silos")
    waits = view.waits_for()
    if waits or view.waiting:
        why = f": {words.one_line(view.waiting.why)}" if view.waiting else ""
        parts.append(f"waits for {words.some(waits) or 'space'}{why}")
    if view.num_refused or view.num_lost:
        parts.append(f"{view.num_refused} refused, {view.num_lost} lost so far")
    return " · ".join(parts)

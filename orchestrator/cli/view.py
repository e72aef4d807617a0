"""What a person watching a run wants to know, folded from its events. No clock, no terminal."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.core.events import (
    Event,
    Figures,
    ModelReady,
    RoundClosed,
    RoundOpened,
    RunClosed,
    RunOpened,
    SiloBusy,
    SiloDeclined,
    SiloDown,
    SiloJoined,
    SiloLaunched,
    SiloProgress,
    UpdateArrived,
    UpdateRefused,
    VersionEvaluated,
    Waiting,
)
from orchestrator.core.metrics import larger_is_better
from orchestrator.core.spent import spent

State = Literal["starting", "ready", "resting", "working", "delivered", "lost", "refused"]

RECENT = 5
"""Rounds from which the time of the coming ones is guessed."""

_PHASES = {"load": "loading data", "evaluate": "evaluating", "train": "training", "pack": "packing"}


@dataclass
class SiloView:
    """One silo: its state, and a few words on it."""

    state: State = "starting"
    says: str = "starting"
    num_examples: dict[str, int] = field(default_factory=dict)
    version: int = -1
    """Version that it works on or last worked on."""
    spent: str = ""
    """Of its privacy, in words."""

    def now(self, state: State, says: str) -> None:
        self.state, self.says = state, says


@dataclass
class View:
    """A run as it stands."""

    run_id: str = ""
    name: str = ""
    total: int = 0
    metric: str = "loss"
    """The metric by which the job judges versions."""
    version: int = 0
    """Newest version that exists."""
    round: int = 0
    """The round in hand makes this version; 0 before the first."""
    round_since: float = 0.0
    resumed_from: int | None = None
    silos: dict[str, SiloView] = field(default_factory=dict)
    figures: dict[int, dict[str, float]] = field(default_factory=dict)
    """Pooled figures by version."""
    round_seconds: list[float] = field(default_factory=list)
    waiting: Waiting | None = None
    num_refused: int = 0
    num_lost: int = 0
    best: int | None = None
    closed: RunClosed | None = None

    def fold(self, event: Event) -> None:
        """Take one event in."""
        match event:
            case RunOpened() | RunClosed() | ModelReady():
                self._run(event)
            case RoundOpened() | RoundClosed() | VersionEvaluated() | Waiting():
                self._round(event)
            case _:
                self._silo(event)

    def forget(self) -> None:
        """All events will come once more, from the first."""
        fresh = View()
        self.__dict__.update(fresh.__dict__)

    def _run(self, event: RunOpened | RunClosed | ModelReady) -> None:
        if isinstance(event, RunOpened):
            self._open(event)
        elif isinstance(event, RunClosed):
            self.closed, self.waiting = event, None

    def _open(self, event: RunOpened) -> None:
        job: Mapping[str, Any] = event.job
        self.run_id, self.name, self.closed = event.run_id, event.name, None
        self.total = int(job.get("rounds", {}).get("total", 0))
        self.metric = str(job.get("stop", {}).get("metric", "loss"))
        self.version, self.resumed_from = event.resumed_from or 0, event.resumed_from
        self.figures = {each: kept for each, kept in self.figures.items() if each <= self.version}
        self.round = 0
        self.silos = {name: SiloView() for name in job.get("silos", [])}

    def _round(self, event: RoundOpened | RoundClosed | VersionEvaluated | Waiting) -> None:
        match event:
            case RoundOpened():
                self._open_round(event)
            case RoundClosed():
                self._close_round(event)
            case VersionEvaluated():
                self._evaluate(event.evaluated, event.best)
            case Waiting():
                self.waiting = event

    def _open_round(self, event: RoundOpened) -> None:
        self.round, self.round_since, self.waiting = event.version + 1, event.time, None
        for name, silo in self.silos.items():
            if silo.state not in {"starting", "working", "lost"}:
                drawn = name in event.cohort
                silo.now("ready" if drawn else "resting", "waiting" if drawn else "not in this round")

    def _close_round(self, event: RoundClosed) -> None:
        """The next round may have been opened before: training goes on while a version is made durable."""
        self.version, self.round = event.version, max(self.round, event.version)
        self.round_seconds = [*self.round_seconds, event.seconds.get("round", 0.0)][-RECENT:]
        for each in event.contributors:
            self._of(each.silo).spent = spent(each.privacy, delta=False)
        self._evaluate(event.evaluated, event.best)

    def _evaluate(self, figures: Figures, best: bool) -> None:
        self.figures[figures.version] = dict(figures.overall)
        self.best = figures.version if best else self.best

    def _silo(self, event: Event) -> None:
        match event:
            case SiloJoined():
                silo = self._of(event.silo)
                silo.num_examples = event.num_examples
                silo.now("ready", "ready")
            case SiloLaunched():
                self._launch(event)
            case SiloProgress():
                self._of(event.silo).now("working", progress(event))
            case UpdateArrived():
                late = f", {event.staleness} version(s) late" if event.staleness else ""
                self._of(event.silo).now("delivered", f"delivered{late}")
            case SiloDeclined():
                self._of(event.silo).now("refused", f"takes no part: {event.reason}")
            case SiloBusy():
                self._of(event.silo).now("starting", f"will join later: {event.reason}")
            case SiloDown():
                self.num_lost += 1
                self._of(event.silo).now("lost", f"lost: {event.why}")
            case UpdateRefused():
                self.num_refused += 1
                self._of(event.silo).now("refused", f"refused: {event.reason}")

    def _of(self, name: str) -> SiloView:
        return self.silos.setdefault(name, SiloView())

    def _launch(self, event: SiloLaunched) -> None:
        silo = self._of(event.silo)
        silo.version = event.version
        silo.now("working", "working" + (f", attempt {event.attempt}" if event.attempt > 1 else ""))

    @property
    def judged_by(self) -> list[str]:
        """The metrics to show: the loss, the job's own, or else one more that there is."""
        known = sorted({name for figures in self.figures.values() for name in figures})
        first = [name for name in dict.fromkeys(("loss", self.metric)) if name in known]
        return (first + [name for name in known if name not in first])[:2]

    def series(self, metric: str) -> list[float]:
        """Pooled values of a metric, oldest first."""
        return [figures[metric] for _, figures in sorted(self.figures.items()) if metric in figures]

    def trend(self, metric: str) -> Literal["better", "worse", "same"]:
        """The last value beside the one before."""
        values = self.series(metric)[-2:]
        if len(values) < 2 or values[0] == values[1]:
            return "same"
        return "better" if (values[1] > values[0]) == larger_is_better(metric) else "worse"

    def waits_for(self) -> list[str]:
        """Silos without which the run does not go on now, as far as it is known."""
        if self.waiting is not None:
            return list(self.waiting.silos)
        return [name for name, silo in self.silos.items() if silo.state in {"starting", "working"}]

    def seconds_left(self, now: float) -> float | None:
        """A guess from the last rounds; None before there is one."""
        timed = [each for each in self.round_seconds if each > 0]
        if not timed or self.closed is not None:
            return None
        left = (self.total - self.version) * statistics.median(timed)
        return max(0.0, left - max(0.0, now - self.round_since)) if self.round > self.version else left


def progress(event: SiloProgress) -> str:
    """``training 120/300``."""
    steps = f" {event.num_steps}/{event.total_steps}" if event.total_steps and event.phase == "train" else ""
    return _PHASES.get(event.phase, event.phase) + steps

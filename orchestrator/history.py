"""A run's journal, read for those who tell of it: what happened, and which of it still counts."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from orchestrator.core.events import (
    CallRefused,
    ContributionsFound,
    DriftAlarm,
    Event,
    Figures,
    ModeChosen,
    ReleaseVoted,
    Rewound,
    RoundClosed,
    RunAssessed,
    RunClosed,
    RunOpened,
    SiloAssessed,
    SiloAttacked,
    SiloBusy,
    SiloDeclined,
    SiloDown,
    SiloJoined,
    Simulated,
    UpdateRefused,
    VersionEvaluated,
)


@dataclass
class History:
    """What was said, sorted by what it is about; rounds that were made again appear once."""

    opened: RunOpened | None = None
    simulated: Simulated | None = None
    closed: RunClosed | None = None
    started: float = 0.0
    ended: float = 0.0
    num_opened: int = 0
    newest: int = 0
    """Version that the present driver got to."""
    num_dropped: int = 0
    """Rounds that were recorded and are done again, because a run went on from an older checkpoint."""
    in_hand: list[int] = field(default_factory=list)
    """Versions that a driver was making when it died. Made again, each counts as one round done twice."""
    rounds: dict[int, RoundClosed] = field(default_factory=dict)
    spent: dict[str, dict[str, float]] = field(default_factory=dict)
    """By silo, what it said last, or was said of it: a version that is made again has been paid for all the same."""
    figures: dict[int, Figures] = field(default_factory=dict)
    best: int | None = None
    mode: ModeChosen | None = None
    """What ``mode: auto`` came to."""
    joined: dict[str, SiloJoined] = field(default_factory=dict)
    refused: list[UpdateRefused] = field(default_factory=list)
    lost: list[SiloDown] = field(default_factory=list)
    declined: dict[str, SiloDeclined] = field(default_factory=dict)
    busy: list[SiloBusy] = field(default_factory=list)
    turned_away: dict[tuple[str, str], CallRefused] = field(default_factory=dict)
    assessed: dict[str, SiloAssessed] = field(default_factory=dict)
    verdict: RunAssessed | None = None
    attacked: dict[str, SiloAttacked] = field(default_factory=dict)
    release: ReleaseVoted | None = None
    contributions: ContributionsFound | None = None
    alarms: list[DriftAlarm] = field(default_factory=list)

    @classmethod
    def of(cls, events: Iterable[Event]) -> Self:
        """All of these, in their order."""
        history = cls()
        for event in events:
            history._take(event)
        return history

    @property
    def silos(self) -> list[str]:
        """Names in the job's order."""
        return list(self.opened.job.get("silos", [])) if self.opened else []

    def _take(self, event: Event) -> None:
        self.ended = max(self.ended, event.time)
        match event:
            case RunOpened():
                self._open(event)
            case Simulated():
                self.simulated = event
            case Rewound():
                self._rewind(event.version)
            case SiloJoined():
                self.joined[event.silo] = event
                self.declined.pop(event.silo, None)
            case UpdateRefused():
                self.refused.append(event)
            case SiloDeclined():
                self.declined[event.silo] = event
            case SiloBusy():
                self.busy.append(event)
            case SiloDown():
                self.lost.append(event)
            case CallRefused():
                self.turned_away[event.who, event.code] = event
            case RoundClosed():
                self.rounds[event.version] = event
                self.spent |= {each.silo: each.privacy for each in event.contributors if each.privacy}
                self.newest = event.version
                self._evaluate(event)
            case VersionEvaluated():
                self._evaluate(event)
            case ModeChosen():
                self.mode = event
            case RunClosed():
                self.closed = event
            case _:
                self._find(event)

    def _find(self, event: Event) -> None:
        match event:
            case SiloAssessed():
                self.assessed[event.silo] = event
            case RunAssessed():
                self.verdict = event
            case SiloAttacked():
                self.attacked[event.silo] = event
            case ReleaseVoted():
                self.release = event
            case ContributionsFound():
                self.contributions = event
            case DriftAlarm():
                self.alarms.append(event)

    def _open(self, event: RunOpened) -> None:
        if self.opened is None:
            self.started = event.time
        elif self.closed is None:
            self.in_hand.append(self.newest + 1)
        self.opened, self.closed = event, None
        self.num_opened, self.newest = self.num_opened + 1, event.resumed_from or 0
        self._rewind(event.resumed_from or 0)

    def _rewind(self, version: int) -> None:
        """What was recorded about later versions no longer counts: they are made again."""
        self.num_dropped += sum(each > version for each in self.rounds)
        self.rounds = {each: closed for each, closed in self.rounds.items() if each <= version}
        self.figures = {each: figures for each, figures in self.figures.items() if each <= version}
        self.best = self.best if self.best in self.figures else None
        self.alarms = [each for each in self.alarms if each.version <= version]
        self.mode = self.mode if self.mode and self.mode.version <= version else None

    def _evaluate(self, event: RoundClosed | VersionEvaluated) -> None:
        self.figures[event.evaluated.version] = event.evaluated
        if event.best:
            self.best = event.evaluated.version

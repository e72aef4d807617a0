"""What a run came to, made from its journal alone: pure in `summarise`, one file in `write_summary`."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.core.events import (
    EVENT,
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
from orchestrator.disk import put
from orchestrator.journal import read_journal

JOURNAL = "journal.jsonl"
SUMMARY = "summary.json"

_CONTRIBUTOR = {"silo", "weight", "staleness", "base_version", "num_examples", "num_steps", "norm", "privacy"}
_KNOWN = {
    *("run_opened", "simulated", "rewound", "run_closed", "round_closed", "version_evaluated", "mode_chosen"),
    *(
        "silo_assessed",
        "run_assessed",
        "silo_attacked",
        "release_voted",
        "contributions_found",
        "drift_alarm",
    ),
    *("silo_joined", "silo_down", "silo_declined", "silo_busy", "update_refused", "call_refused"),
}


def write_summary(run_dir: Path) -> dict[str, Any]:
    """Makes ``summary.json`` from the run's journal, in place of an older one, and returns it."""
    summary = read_summary(run_dir)
    put(run_dir / SUMMARY, json.dumps(summary, indent=1, allow_nan=False) + "\n")
    return summary


def read_summary(run_dir: Path) -> dict[str, Any]:
    """The summary of a run as far as it has come. Raises JournalDamaged."""
    lines, _ = read_journal(run_dir / JOURNAL)
    return summarise(parse(lines))


def parse(lines: Iterable[Mapping[str, Any]]) -> Iterable[Event]:
    """The events among journal lines that a summary needs; the store's own lines are left out."""
    return (EVENT.validate_python(line) for line in lines if line.get("type") in _KNOWN)


def summarise(events: Iterable[Event]) -> dict[str, Any]:
    """The content of ``summary.json``. ``status`` is ``unfinished`` as long as the run has not ended."""
    seen = _Seen()
    for event in events:
        seen.take(event)
    return {
        **_identity(seen),
        "initial": {"metrics": _metrics(seen.figures.get(0))},
        "versions": [_version(seen, version) for version in sorted(seen.rounds)],
        "mode": _fields(seen.mode, "version", "mode", "reason", "seconds") if seen.mode else None,
        "refused": [_fields(each, "version", "silo", "code", "reason") for each in seen.refused],
        "lost": [_fields(each, "version", "silo", "why", "time") for each in seen.lost],
        "declined": [_fields(each, "silo", "code", "reason") for each in seen.declined.values()],
        "busy": [_fields(each, "silo", "reason", "time") for each in seen.busy],
        "turned_away": [
            _fields(each, "who", "code", "reason", "times") for each in seen.turned_away.values()
        ],
        "best": _best(seen),
        "never_contributed": _never(seen),
        "silos": {name: _silo(seen, name) for name in seen.names},
        "report": _report(seen),
        "release": _release(seen),
        "drift": [
            _fields(each, "silo", "version", "signals", "norm", "cosine", "loss") for each in seen.alarms
        ],
        "resumed": max(0, seen.num_opened - 1),
        "redone_rounds": seen.num_dropped + sum(version in seen.rounds for version in seen.in_hand),
    }


@dataclass
class _Seen:
    """The journal, sorted by what it is about."""

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

    @property
    def names(self) -> list[str]:
        return list(self.opened.job.get("silos", [])) if self.opened else []

    def take(self, event: Event) -> None:
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


def _fields(event: Event, *names: str) -> dict[str, Any]:
    return {name: getattr(event, name) for name in names}


def _identity(seen: _Seen) -> dict[str, Any]:
    opened, closed = seen.opened, seen.closed
    return {
        "run_id": opened.run_id if opened else None,
        "name": opened.name if opened else None,
        "status": closed.status if closed else "unfinished",
        "reason": closed.reason if closed else "",
        "job_digest": opened.job_digest if opened else None,
        "parameters_digest": closed.parameters_digest if closed else None,
        "simulated": seen.simulated is not None,
        "total_rounds": opened.job.get("rounds", {}).get("total") if opened else None,
        "started": seen.started,
        "ended": seen.ended,
    }


def _metrics(figures: Figures | None) -> dict[str, Any]:
    if figures is None:
        return {"global": {}, "silos": {}}
    return {"global": figures.overall, "silos": figures.silos}


def _version(seen: _Seen, version: int) -> dict[str, Any]:
    closed, figures = seen.rounds[version], seen.figures.get(version)
    return {
        "version": version,
        "contributors": [each.model_dump(include=_CONTRIBUTOR) for each in closed.contributors],
        "metrics": _metrics(figures),
        "missing": figures.missing if figures else seen.names,
        "seconds": closed.seconds,
        "bytes_up": closed.bytes_up,
        "bytes_down": closed.bytes_down,
        "update_norm": closed.update_norm,
        "lineage": closed.lineage,
    }


def _best(seen: _Seen) -> dict[str, Any] | None:
    """As the run's end names it; of an unfinished run, the last version that was marked."""
    closed = seen.closed
    if closed is not None and closed.best_version is not None:
        return {"version": closed.best_version, "metric": closed.best_metric, "value": closed.best_value}
    if seen.best is None or seen.opened is None:
        return None
    metric = seen.opened.job.get("stop", {}).get("metric", "loss")
    return {"version": seen.best, "metric": metric, "value": seen.figures[seen.best].overall.get(metric)}


def _never(seen: _Seen) -> list[str]:
    if seen.closed is not None:
        return seen.closed.never_contributed
    given = {each.silo for closed in seen.rounds.values() for each in closed.contributors}
    held_out = seen.opened.job.get("held_out", []) if seen.opened else []
    return [name for name in seen.names if name not in given and name not in held_out]


def _report(seen: _Seen) -> dict[str, Any] | None:
    """What the end of the run says of each silo; None where nothing was assessed."""
    verdict = seen.verdict
    if verdict is None:
        return None
    assessed = {silo: each for silo, each in seen.assessed.items() if each.version == verdict.version}
    ordered = [silo for silo in seen.names if silo in assessed]
    drop = {"seq", "time", "type"}
    return {
        **verdict.model_dump(exclude=drop),
        "silos": {silo: assessed[silo].model_dump(exclude={*drop, "silo", "version"}) for silo in ordered},
        "contributions": seen.contributions.model_dump(exclude=drop) if seen.contributions else None,
    }


def _release(seen: _Seen) -> dict[str, Any] | None:
    """The vote on the best version; None where there was none."""
    voted = seen.release
    if voted is None:
        return None
    drop = {"seq", "time", "type"}
    said = {silo: seen.attacked[silo] for silo in seen.names if silo in seen.attacked}
    return {
        **voted.model_dump(exclude=drop),
        "silos": {
            silo: each.model_dump(exclude={*drop, "silo", "version", "lineage", "receipt"})
            for silo, each in said.items()
            if each.lineage == voted.lineage
        },
    }


def _silo(seen: _Seen, name: str) -> dict[str, Any]:
    """``first`` and ``last``: the silo's figures of the earliest and the latest version that it evaluated."""
    joined = seen.joined.get(name)
    own = [figures.silos[name] for _, figures in sorted(seen.figures.items()) if name in figures.silos]
    return {
        "num_examples": joined.num_examples if joined else {},
        "quarantined": joined.quarantined if joined else {},
        "labels": joined.labels if joined else {},
        "fingerprint": joined.fingerprint if joined else None,
        "planned": joined.planned if joined else {},
        "metrics": joined.metrics if joined else "open",
        "privacy": seen.spent.get(name, {}),
        "first": own[0] if own else {},
        "last": own[-1] if own else {},
    }

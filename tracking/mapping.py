"""What an event is in MLflow: one run for the job, one for each silo, with the same metric names in all of them.

Pure. A point's step is a model version, its time stamp is the event's: whoever maps the same journal again gets the
same points, and MLflow keeps each of them once.
"""

from collections import Counter
from collections.abc import Iterable

from orchestrator.core.events import (
    ContributionsFound,
    DriftAlarm,
    Event,
    Figures,
    ModeChosen,
    ModelReady,
    ReleaseVoted,
    RoundClosed,
    RunAssessed,
    RunClosed,
    RunOpened,
    SiloAssessed,
    SiloAttacked,
    SiloJoined,
    UpdateRefused,
    VersionEvaluated,
    Waiting,
)
from orchestrator.voting import told
from tracking.assessed import attacked, found, judged, worths
from tracking.points import RUN, Posts, Rows, extend, made, milliseconds, params_of, points, spread

MAX_TAG = 8000
"""Characters that MLflow keeps of a tag."""
STATUS = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class Superseded(Exception):
    """A round was made again with another outcome, so points that were posted no longer hold.

    ``seqs``: the events that no longer count.
    """

    def __init__(self, seqs: set[int]) -> None:
        super().__init__(f"{len(seqs)} rounds were made again with another outcome")
        self.seqs = seqs


class Mapper:
    """Maps one run's events, in journal order. It remembers what it has mapped: a round that is made again after a
    crash, as a synchronous one with the same outcome, adds no second point."""

    def __init__(self, superseded: Iterable[int] = ()) -> None:
        """``superseded``: sequence numbers of events to leave out."""
        self.opened: RunOpened | None = None
        """The first one: it names the run and its start."""
        self.closed: RunClosed | None = None
        self.rounds: dict[int, RoundClosed] = {}
        self.ready: ModelReady | None = None
        self._superseded = frozenset(superseded)
        self._evaluated: set[tuple[str, int]] = set()
        self._joined: set[str] = set()
        self._refused: Counter[str] = Counter()
        self._codes: Counter[str] = Counter()
        self._contributions: Counter[str] = Counter()
        self._waiting = False
        self.verdict: RunAssessed | None = None
        self.release: ReleaseVoted | None = None
        self.votes: dict[str, SiloAttacked] = {}
        """The last that each silo said of its attacks."""
        self._assessed: set[tuple[str, str]] = set()
        self._alarms: list[str] = []

    def posts(self, event: Event) -> Posts:
        """What the event adds. Raises Superseded."""
        if event.seq in self._superseded:
            return {}
        match event:
            case RunOpened():
                return self._open(event)
            case ModelReady():
                self.ready = event
            case SiloJoined():
                return self._join(event)
            case UpdateRefused():
                self._refused[event.silo] += 1
                self._codes[event.code] += 1
            case ModeChosen():
                return {RUN: Rows(tags={"siloray.mode": f"{event.mode}: {event.reason}"[:MAX_TAG]})}
            case Waiting():
                self._waiting = True
                whom = ", ".join(event.silos) or "space"
                return {RUN: Rows(tags={"siloray.status": f"waiting for {whom}: {event.why}"[:MAX_TAG]})}
            case RoundClosed():
                return self._close_round(event)
            case VersionEvaluated():
                return self._evaluate(event, event.evaluated, event.best)
            case RunClosed():
                return self._close(event)
            case _:
                return self._find(event)
        return {}

    def _find(self, event: Event) -> Posts:
        """What the run says of its silos."""
        match event:
            case SiloAssessed() if (event.silo, event.lineage) not in self._assessed:
                self._assessed.add((event.silo, event.lineage))
                return found(event)
            case RunAssessed():
                known, self.verdict = self.verdict, event
                return {} if known is not None and _same(known, event) else judged(event)
            case SiloAttacked():
                self.votes[event.silo] = event
                return attacked(event)
            case ReleaseVoted():
                self.release = event
                return {RUN: Rows(tags={"siloray.release": told(event.model_dump())[:MAX_TAG]})}
            case ContributionsFound():
                return worths(event)
            case DriftAlarm():
                self._alarms.append(f"{event.silo} in {event.version}: {', '.join(event.signals)}")
                return {RUN: Rows(tags={"siloray.drift": "; ".join(self._alarms)[:MAX_TAG]})}
        return {}

    def _open(self, event: RunOpened) -> Posts:
        self.closed = None
        rows = Rows(tags=_run_tags(event), status="RUNNING", time_ms=milliseconds(event))
        if self.opened is None:
            self.opened = event
            rows.params = params_of(event.job)
        return {RUN: rows}

    def _join(self, event: SiloJoined) -> Posts:
        self._joined.add(event.silo)
        rows = Rows(tags=_silo_tags(event), status="RUNNING", time_ms=milliseconds(event))
        rows.params = {f"num_examples.{split}": str(count) for split, count in event.num_examples.items()}
        rows.params |= {f"privacy.planned.{name}": f"{value:g}" for name, value in event.planned.items()}
        rows.params |= {f"quarantined.{split}": str(count) for split, count in event.quarantined.items()}
        return {RUN: Rows(tags={f"siloray.fingerprint.{event.silo}": event.fingerprint}), event.silo: rows}

    def _close_round(self, event: RoundClosed) -> Posts:
        known = self.rounds.get(event.version)
        if known is not None:
            if known.lineage != event.lineage:
                raise Superseded(self._seqs_from(event.version))
            return self._evaluate(event, event.evaluated, event.best)
        self.rounds[event.version] = event
        self._contributions.update(each.silo for each in event.contributors)
        posts = self._evaluate(event, event.evaluated, event.best)
        extend(posts, made(event))
        extend(posts, self._refusals(event, event.version))
        posts[RUN].tags["siloray.contributors"] = _counts(self._contributions)
        if self._waiting:
            posts[RUN].tags["siloray.status"], self._waiting = "running", False
        return posts

    def _evaluate(self, event: Event, figures: Figures, best: bool) -> Posts:
        """The figures of a version, those that were not mapped before."""
        parts = {RUN: {**figures.overall, **spread(figures.silos)}, **figures.silos}
        posts = {RUN: Rows()}
        for run, values in parts.items():
            if values and (run, figures.version) not in self._evaluated:
                self._evaluated.add((run, figures.version))
                posts[run] = Rows(points=points(values, event, figures.version))
        if best:
            posts[RUN].tags["siloray.best_version"] = str(figures.version)
        return posts

    def _refusals(self, event: Event, step: int) -> Posts:
        """Counts since the last round, of all silos and silo by silo."""
        counted, self._refused = self._refused, Counter()
        if not counted:
            return {RUN: Rows(points=points({"round/refused": 0}, event, step))}
        posts = {
            silo: Rows(points=points({"round/refused": count}, event, step))
            for silo, count in counted.items()
        }
        total = points({"round/refused": counted.total()}, event, step)
        return posts | {RUN: Rows(points=total, tags={"siloray.refused": _counts(self._codes)})}

    def _close(self, event: RunClosed) -> Posts:
        left = self._seqs_from(event.version + 1)
        if left and event.version >= 0:  # below 0: the run ended before it had a model in hand
            raise Superseded(left)
        self.closed = event
        posts = {
            silo: Rows(status=STATUS[event.status], time_ms=milliseconds(event))
            for silo in (RUN, *sorted(self._joined))
        }
        if self._refused:
            extend(posts, self._refusals(event, event.version + 1))
        posts[RUN].tags |= _closing_tags(event)
        return posts

    def _seqs_from(self, version: int) -> set[int]:
        return {event.seq for number, event in self.rounds.items() if number >= version}


def _same(known: Event, again: Event) -> bool:
    """What a driver that died at the end of its run said before, too."""
    return known.model_copy(update={"seq": again.seq, "time": again.time}) == again


def _run_tags(event: RunOpened) -> dict[str, str]:
    resumed = {} if event.resumed_from is None else {"siloray.resumed_from": str(event.resumed_from)}
    return {
        "siloray.status": "running",
        "siloray.job_digest": event.job_digest,
        "siloray.driver_epoch": str(event.epoch),
        **{f"siloray.versions.{name}": version for name, version in event.versions.items()},
        **resumed,
    }


def _silo_tags(event: SiloJoined) -> dict[str, str]:
    return {
        "siloray.fingerprint": event.fingerprint,
        "siloray.device": event.device,
        "siloray.node": event.node,
        "siloray.parameters": f"{event.num_shared} shared of {event.num_parameters}",
        **{f"siloray.versions.{name}": version for name, version in event.versions.items()},
    }


def _closing_tags(event: RunClosed) -> dict[str, str]:
    tags = {
        "siloray.status": event.status,
        "siloray.reason": event.reason,
        "siloray.parameters_digest": event.parameters_digest,
        "siloray.never_contributed": ", ".join(event.never_contributed),
        "siloray.best_version": "" if event.best_version is None else str(event.best_version),
    }
    return {key: value[:MAX_TAG] for key, value in tags.items() if value}


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(counter.items()))[:MAX_TAG]

"""What an event is in MLflow: one run for the job, one for each silo, with the same metric names in all of them.

Pure. A point's step is a model version, its time stamp is the event's: whoever maps the same journal again gets the
same points, and MLflow keeps each of them once. Figures *of* a version (``accuracy``, ``loss``, with ``_worst``,
``_spread`` and ``_std`` over silos) and figures of how it was *made* (``train_loss``, ``round/...``, ``seconds/...``,
``bytes/...``) stand at that version.
"""

import json
import math
import posixpath
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.core.events import (
    Contributor,
    Event,
    Figures,
    ModelReady,
    RoundClosed,
    RunClosed,
    RunOpened,
    SiloJoined,
    UpdateRefused,
    VersionEvaluated,
    Waiting,
)
from orchestrator.core.metrics import larger_is_better

RUN = ""
"""Key of the job's own run beside those of its silos."""
MAX_PARAM = 6000
MAX_TAG = 8000
"""Characters that MLflow keeps of a value."""
STATUS = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


@dataclass(frozen=True, slots=True)
class Point:
    """One value of one metric; ``time_ms`` since 1970."""

    key: str
    value: float
    time_ms: int
    step: int


@dataclass(slots=True)
class Rows:
    """What goes to one MLflow run."""

    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    status: str | None = None
    """MLflow's run status from here on."""
    time_ms: int = 0
    """When the status was reached."""

    def add(self, later: "Rows") -> None:
        """Takes over what comes after these."""
        self.params = {**later.params, **self.params}
        self.tags |= later.tags
        self.points += later.points
        if later.status:
            self.status, self.time_ms = later.status, later.time_ms


Posts = dict[str, Rows]


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
            case Waiting():
                self._waiting = True
                return {
                    RUN: Rows(
                        tags={
                            "siloray.status": f"waiting for {', '.join(event.silos)}: {event.why}"[:MAX_TAG]
                        }
                    )
                }
            case RoundClosed():
                return self._close_round(event)
            case VersionEvaluated():
                return self._evaluate(event, event.evaluated, event.best)
            case RunClosed():
                return self._close(event)
        return {}

    def _open(self, event: RunOpened) -> Posts:
        self.closed = None
        rows = Rows(tags=_run_tags(event), status="RUNNING", time_ms=_ms(event))
        if self.opened is None:
            self.opened = event
            rows.params = params_of(event.job)
        return {RUN: rows}

    def _join(self, event: SiloJoined) -> Posts:
        self._joined.add(event.silo)
        rows = Rows(tags=_silo_tags(event), status="RUNNING", time_ms=_ms(event))
        rows.params = {f"num_examples.{split}": str(count) for split, count in event.num_examples.items()}
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
        _extend(posts, _made(event))
        _extend(posts, self._refusals(event, event.version))
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
            silo: Rows(status=STATUS[event.status], time_ms=_ms(event))
            for silo in (RUN, *sorted(self._joined))
        }
        if self._refused:
            _extend(posts, self._refusals(event, event.version + 1))
        posts[RUN].tags |= _closing_tags(event)
        return posts

    def _seqs_from(self, version: int) -> set[int]:
        return {event.seq for number, event in self.rounds.items() if number >= version}


def points(values: Mapping[str, float], event: Event, step: int) -> list[Point]:
    """One point per value; NaN and infinity become a point ``nonfinite/<name>`` of value 1."""
    finite = {_name(key): value for key, value in values.items() if math.isfinite(value)}
    flags = {_name(f"nonfinite/{key}"): 1.0 for key, value in values.items() if not math.isfinite(value)}
    return [Point(key, float(value), _ms(event), step) for key, value in (finite | flags).items()]


def spread(silos: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Of each metric over silos: the worst silo's, the range and the standard deviation (population)."""
    result: dict[str, float] = {}
    for metric in sorted({name for values in silos.values() for name in values}):
        values = [each[metric] for each in silos.values() if metric in each and math.isfinite(each[metric])]
        if values:
            result[f"{metric}_worst"] = min(values) if larger_is_better(metric) else max(values)
            result[f"{metric}_spread"] = max(values) - min(values)
            result[f"{metric}_std"] = statistics.pstdev(values)
    return result


def params_of(job: Mapping[str, Any]) -> dict[str, str]:
    """The job document as flat names and values; what is not given is left out."""
    flat: dict[str, str] = {}
    for key, value in job.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": text for name, text in params_of(value).items()}
        elif value is not None and value not in ([], ()):
            flat[_name(key)] = (value if isinstance(value, str) else json.dumps(value))[:MAX_PARAM]
    return flat


def _made(event: RoundClosed) -> Posts:
    """How the version was made: by the driver in the job's run, by each silo in the silo's."""
    made_by = event.contributors
    values = {
        "round/update_norm": event.update_norm,
        "round/contributors": len(made_by),
        "round/missing": len(event.evaluated.missing),
        "round/staleness": max((each.staleness for each in made_by), default=0),
        "bytes/up": event.bytes_up,
        "bytes/down": event.bytes_down,
        **{f"seconds/{phase}": seconds for phase, seconds in _slowest(made_by).items()},
        **{f"seconds/{phase}": seconds for phase, seconds in event.seconds.items()},
        **{f"train_{name}": value for name, value in _pooled(made_by).items()},
    }
    posts = {RUN: Rows(points=points(values, event, event.version))}
    return posts | {
        each.silo: Rows(points=points(_contribution(each), event, event.version)) for each in made_by
    }


def _contribution(each: Contributor) -> dict[str, float]:
    return {
        "round/weight": each.weight,
        "round/staleness": each.staleness,
        "round/update_norm": each.norm,
        "round/steps": each.num_steps,
        "bytes/up": each.bytes_up,
        **{f"seconds/{phase}": seconds for phase, seconds in each.seconds.items()},
        **{f"train_{name}": value for name, value in each.train.items()},
    }


def _slowest(contributors: Iterable[Contributor]) -> dict[str, float]:
    """Seconds of the slowest silo, phase by phase."""
    slowest: dict[str, float] = {}
    for each in contributors:
        for phase, seconds in each.seconds.items():
            slowest[phase] = max(seconds, slowest.get(phase, 0.0))
    return slowest


def _pooled(contributors: Iterable[Contributor]) -> dict[str, float]:
    """Training figures, weighted by the number of examples."""
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for each in contributors:
        for name, value in each.train.items():
            sums[name] = sums.get(name, 0.0) + value * each.num_examples
            counts[name] = counts.get(name, 0) + each.num_examples
    return {name: sums[name] / count for name, count in counts.items() if count}


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


def _extend(posts: Posts, more: Posts) -> None:
    for run, rows in more.items():
        posts.setdefault(run, Rows()).add(rows)


def _name(key: str) -> str:
    """As MLflow takes it: some characters only, a normal path, at most 250 long."""
    allowed = "".join(char if char.isalnum() or char in "_-. :/" else "_" for char in key)
    return posixpath.normpath(allowed).lstrip("./")[:250] or "_"


def _ms(event: Event) -> int:
    return round(event.time * 1000)

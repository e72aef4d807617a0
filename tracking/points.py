"""What goes to MLflow, and how it is called and computed. Pure.

Figures *of* a version (``accuracy``, ``loss``, with ``_worst``, ``_spread`` and ``_std`` over silos) and figures of how
it was *made* (``train_loss``, ``round/...``, ``seconds/...``, ``bytes/...``) stand at that version.
"""

import json
import math
import posixpath
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.core.events import Contributor, Event, RoundClosed, Sealed
from orchestrator.core.metrics import larger_is_better

RUN = ""
"""Key of the job's own run beside those of its silos."""
MAX_PARAM = 6000
"""Characters that MLflow keeps of a parameter."""


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
"""Rows by silo, and those of the job's run under ``RUN``."""


def extend(posts: Posts, more: Posts) -> None:
    """Adds what comes later."""
    for run, rows in more.items():
        posts.setdefault(run, Rows()).add(rows)


def points(values: Mapping[str, float], event: Event, step: int) -> list[Point]:
    """One point per value; NaN and infinity become a point ``nonfinite/<name>`` of value 1."""
    finite = {_name(key): value for key, value in values.items() if math.isfinite(value)}
    flags = {_name(f"nonfinite/{key}"): 1.0 for key, value in values.items() if not math.isfinite(value)}
    return [Point(key, float(value), milliseconds(event), step) for key, value in (finite | flags).items()]


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


def made(event: RoundClosed) -> Posts:
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
        **{f"settings/{name}": value for name, value in event.settings.items()},
        **_of_sum(event.sealed),
        **_most_spent(made_by),
    }
    posts = {RUN: Rows(points=points(values, event, event.version))}
    return posts | {
        each.silo: Rows(points=points(_contribution(each), event, event.version)) for each in made_by
    }


def _contribution(each: Contributor) -> dict[str, float]:
    return {
        "round/weight": each.weight,
        "round/staleness": each.staleness,
        **({} if each.norm is None else {"round/update_norm": each.norm}),
        "round/steps": each.num_steps,
        "bytes/up": each.bytes_up,
        **{f"seconds/{phase}": seconds for phase, seconds in each.seconds.items()},
        **{f"train_{name}": value for name, value in each.train.items()},
        **{f"privacy/{name}": value for name, value in each.privacy.items()},
    }


def _of_sum(sealed: Sealed | None) -> dict[str, float]:
    return {} if sealed is None else {"sum/left_out": len(sealed.left_out), "sum/cut": sealed.cut}


def _most_spent(contributors: Iterable[Contributor]) -> dict[str, float]:
    """Epsilon of the silo that has spent most: those of disjoint groups of persons do not add up."""
    spent = {
        name: [each.privacy[name] for each in contributors if name in each.privacy]
        for name in ("epsilon", "epsilon_rdp", "silo_epsilon", "silo_epsilon_rdp")
    }
    return {f"privacy/{name}_most": max(values) for name, values in spent.items() if values}


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


def _name(key: str) -> str:
    """As MLflow takes it: some characters only, a normal path, at most 250 long."""
    allowed = "".join(char if char.isalnum() or char in "_-. :/" else "_" for char in key)
    return posixpath.normpath(allowed).lstrip("./")[:250] or "_"


def milliseconds(event: Event) -> int:
    """Since 1970."""
    return round(event.time * 1000)

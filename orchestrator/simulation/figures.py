"""What simulated runs came to, side by side: time to the target, idle share, staleness, bytes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.core.errors import BadInput
from orchestrator.core.messages import SiloId
from orchestrator.core.metrics import larger_is_better
from orchestrator.simulation.channel import Work
from orchestrator.simulation.run import Point, Simulated


@dataclass(frozen=True)
class Row:
    """One policy."""

    policy: str
    status: str
    time_to_target: float | None
    """Virtual seconds until a version reached the target; None: none did."""
    seconds: float
    """Virtual seconds until the last version."""
    rounds: int
    updates: int
    best: float | None
    last: float | None
    """Of the metric, over all versions and of the last one."""
    idle: Mapping[SiloId, float]
    """Share of the run's time in which the silo had nothing to do."""
    wasted: float
    """Share of the silos' working time whose outcome did not enter the model."""
    staleness: Mapping[int, int]
    """How many updates were so many versions late."""
    bytes_up: int
    bytes_down: int
    parameters_digest: str

    @property
    def mean_idle(self) -> float:
        return math.fsum(self.idle.values()) / len(self.idle)

    @property
    def mean_staleness(self) -> float:
        total = sum(self.staleness.values())
        return sum(late * count for late, count in self.staleness.items()) / total if total else 0.0

    def told(self) -> dict[str, Any]:
        return {**asdict(self), "mean_idle": self.mean_idle, "mean_staleness": self.mean_staleness}


def row_of(policy: str, run: Simulated, metric: str, target: float | None) -> Row:
    given = [each for closed in run.rounds for each in closed.contributors]
    values = values_of(run.points, metric)
    stale = [each.staleness for each in given]
    return Row(
        policy=policy,
        status=run.outcome.status,
        time_to_target=None if target is None else reached(run.points, metric, target),
        seconds=run.ended,
        rounds=len(run.rounds),
        updates=len(given),
        best=best(values, metric),
        last=values[-1] if values else None,
        idle={silo: idle_share(run.works, silo, run.ended) for silo in run.job.silos},
        wasted=_wasted(run),
        staleness={late: stale.count(late) for late in sorted(set(stale))},
        bytes_up=sum(closed.bytes_up for closed in run.rounds),
        bytes_down=sum(closed.bytes_down for closed in run.rounds),
        parameters_digest=run.digest,
    )


def values_of(points: Sequence[Point], metric: str) -> list[float]:
    """Where a version has the figure."""
    return [point.metrics[metric] for point in points if metric in point.metrics]


def best(values: Sequence[float], metric: str) -> float | None:
    if not values:
        return None
    return max(values) if larger_is_better(metric) else min(values)


def reached(points: Sequence[Point], metric: str, target: float) -> float | None:
    """When a version first had the target."""
    rises = larger_is_better(metric)
    times = (
        point.time
        for point in points
        if metric in point.metrics
        and (point.metrics[metric] >= target if rises else point.metrics[metric] <= target)
    )
    return next(times, None)


def target_of(text: str | None, stop_target: float | None, run: Simulated, metric: str) -> float | None:
    """As said: a number, or a share of the best of the job as given (``96%``); else the job's own; else that of the
    last version of the job as given. Raises `BadInput`."""
    if text is None:
        values = values_of(run.points, metric)
        return stop_target if stop_target is not None else (values[-1] if values else None)
    if not text.endswith("%"):
        return number(text, "--target")
    top = best(values_of(run.points, metric), metric)
    if top is None:
        return None
    share = number(text[:-1], "--target") / 100
    return top * share if larger_is_better(metric) else top / share


def number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadInput(f"{option} {text}: expected a number, or a share of the best (96%)") from None


def idle_share(works: Sequence[Work], silo: SiloId, until: float) -> float:
    """Share of the time up to ``until`` in which the silo neither worked nor sent or received."""
    busy = math.fsum(_within(work, until) for work in works if work.silo == silo)
    return 1 - busy / until if until > 0 else 0.0


def _within(work: Work, until: float) -> float:
    return max(0.0, min(work.due if work.end is None else work.ended, until) - work.began)


def _wasted(run: Simulated) -> float:
    used = {(each.silo, each.base_version) for closed in run.rounds for each in closed.contributors}
    over = [work for work in run.works if work.end is not None]
    total = math.fsum(work.ended - work.began for work in over)
    lost = math.fsum(work.ended - work.began for work in over if (work.silo, work.version) not in used)
    return lost / total if total else 0.0

"""Figures of each version, the best version, and when the run has learnt enough. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from orchestrator.core.errors import BadInput
from orchestrator.core.events import Event, Figures, Rewound, RoundClosed, RunOpened, VersionEvaluated
from orchestrator.core.messages import SiloId
from orchestrator.core.metrics import (
    MetricSums,
    larger_is_better,
    odd_metric,
    pooled,
    usual_shapes,
    values,
)
from orchestrator.job import Stop


@dataclass
class Scoreboard:
    """Silos report figures of the version that they received. In a synchronous run all report on the same
    version; otherwise a version's figures take the freshest report of each silo that is not too stale."""

    stop: Stop
    silos: Sequence[SiloId]
    max_staleness: int
    freshest: dict[SiloId, tuple[int, MetricSums]] = field(default_factory=dict)
    together: tuple[int, MetricSums] = (-1, {})
    """The newest sums that silos gave only together."""
    history: dict[int, float] = field(default_factory=dict)
    """Version -> value of the stop metric."""

    def report(self, silo: SiloId, version: int, metrics: MetricSums) -> None:
        """Take a silo's sums, unless it has reported on a newer version."""
        if metrics and self.freshest.get(silo, (-1, {}))[0] <= version:
            self.freshest[silo] = version, metrics

    def report_together(self, version: int, metrics: MetricSums) -> None:
        """Take sums that silos gave only together."""
        if metrics:
            self.together = version, metrics

    def odd(self, reports: Sequence[MetricSums]) -> tuple[int, str] | None:
        """Which of these reports does not add up with most, and in which metric. What silos reported before
        counts too, so that one silo cannot make the others odd by being the first."""
        usual = usual_shapes([*(sums for _, (_, sums) in sorted(self.freshest.items())), *reports])
        found = ((index, odd_metric(report, usual)) for index, report in enumerate(reports))
        return next(((index, name) for index, name in found if name is not None), None)

    def figures(self, version: int) -> Figures:
        """Pooled and per silo; raises `BadInput` if nobody reports the metric that the job names."""
        oldest = version - self.max_staleness
        usable = {s: sums for s, (v, sums) in sorted(self.freshest.items()) if oldest <= v <= version}
        usual = usual_shapes(usable.values())
        usable = {silo: sums for silo, sums in usable.items() if odd_metric(sums, usual) is None}
        said = [self.together[1]] if self.together[0] == version else list(usable.values())
        figures = Figures(
            version=version,
            overall=values(pooled(said)),
            silos={silo: values(sums) for silo, sums in usable.items()},
            missing=[] if self.together[0] == version else sorted(set(self.silos) - usable.keys()),
        )
        self._check(figures, {name for sums in said for name in sums})
        if self.stop.metric in figures.overall:
            self.history[version] = figures.overall[self.stop.metric]
        return figures

    def _check(self, figures: Figures, names: set[str]) -> None:
        """``names`` are those reported: a figure may be undefined for once (one class, NaN), a name may not."""
        if not self.history and names and self.stop.metric not in names:
            known = ", ".join(sorted(names))
            raise BadInput(f"stop.metric: no silo reports '{self.stop.metric}'; they report: {known}")
        if not self.history and not names and not figures.missing:
            raise BadInput(f"stop.metric: no silo lets '{self.stop.metric}' out (metrics_out in silo.yaml)")

    @property
    def best(self) -> tuple[int, float] | None:
        """Version and value; the earliest among equals."""
        if not self.history:
            return None
        sign = -1 if larger_is_better(self.stop.metric) else 1
        version = min(sorted(self.history), key=lambda v: sign * self.history[v])
        return version, self.history[version]

    def reason_to_stop(self) -> str | None:
        """Why the run has learnt enough; None if it has not."""
        if not self.history:
            return None
        newest = max(self.history)
        rises = larger_is_better(self.stop.metric)
        if self.stop.target is not None and _reached(self.history[newest], self.stop.target, rises):
            return f"{self.stop.metric} reached {self.history[newest]:.6g} (target {self.stop.target:g})"
        if self.stop.patience is not None and newest - self._improved() >= self.stop.patience:
            return f"{self.stop.metric} did not improve for {self.stop.patience} versions"
        return None

    def _improved(self) -> int:
        """The last version that improved on all before it by more than ``min_delta``."""
        sign = 1 if larger_is_better(self.stop.metric) else -1
        reached, last = float("-inf"), min(self.history)
        for version in sorted(self.history):
            if sign * self.history[version] > reached + self.stop.min_delta:
                reached, last = sign * self.history[version], version
        return last

    def replay(self, events: Iterable[Event]) -> None:
        """Restore the history from a journal."""
        for event in events:
            match event:
                case RoundClosed() | VersionEvaluated():
                    value = event.evaluated.overall.get(self.stop.metric)
                    if value is not None:
                        self.history[event.evaluated.version] = value
                case Rewound(version=version):
                    self._forget(version)
                case RunOpened(resumed_from=version) if version is not None:
                    self._forget(version)

    def _forget(self, version: int) -> None:
        self.history = {v: value for v, value in self.history.items() if v < version}


def _reached(value: float, target: float, rises: bool) -> bool:
    return value >= target if rises else value <= target

"""A job's run on the virtual clock: the real driver, round machine, strategy, store and silos, in this process."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from orchestrator.core import events
from orchestrator.core.events import Event, RoundClosed, VersionEvaluated
from orchestrator.core.messages import SiloId
from orchestrator.core.protocols import Observer
from orchestrator.core.vector import Parts
from orchestrator.disk import OsFileSystem
from orchestrator.driver import Driver
from orchestrator.ending import Outcome
from orchestrator.job import Job
from orchestrator.simulation import loop
from orchestrator.simulation.channel import SimulatedChannel, Work
from orchestrator.simulation.followed import AsRecorded, FollowingChannel
from orchestrator.simulation.timings import Timings
from orchestrator.store import Store
from orchestrator.summary import write_summary
from orchestrator.transport.local import Handles

Makers = Mapping[SiloId, Callable[[], Handles]]
Judge = Callable[[int, Parts], Mapping[str, float]]
"""Pooled figures of a version at all silos, outside of the virtual time."""


class ToldTimings(Timings, Protocol):
    """Timings that can be written down."""

    seed: int

    def told(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Point:
    """A version of the model, when it was made, and how good it is."""

    version: int
    time: float
    """Virtual seconds from the run's beginning."""
    num_updates: int
    """That went into it and the versions before."""
    metrics: Mapping[str, float]


@dataclass
class Simulated:
    """A run that came to its end."""

    job: Job
    outcome: Outcome
    works: list[Work]
    """All trainings, in the order in which they began."""
    rounds: list[RoundClosed]
    points: list[Point]
    """Versions that were judged, version 0 first."""
    state: Mapping[str, Any]
    """The strategy's, at the end."""
    digest: str
    """SHA-256 of the final parameters."""

    @property
    def ended(self) -> float:
        """When the last version was made."""
        return self.points[-1].time if self.points else 0.0


class Undurable(OsFileSystem):
    """A disk that is never waited for: a simulated run that is lost is simulated again."""

    def fsync(self, path: Path) -> None:
        pass

    fsync_dir = fsync


def simulate(
    job: Job,
    start: Makers,
    timings: ToldTimings,
    run_dir: Path,
    *,
    judge: Judge | None = None,
    judge_all: bool = False,
    observe: Observer = lambda event: None,
) -> Simulated:
    """Run the job to its end. ``start`` makes the silos; it is called within the loop, where `loop.now` is the clock.
    ``judge``: for versions that not all silos have reported on, or for ``judge_all``."""
    return loop.run(_simulate(job, start, timings, run_dir, judge, judge_all, observe))


def follow(job: Job, start: Makers, source: str, rounds: Sequence[RoundClosed], run_dir: Path) -> Simulated:
    """Make the recorded ``rounds`` again, update by update; the job is the one that they are of."""
    return loop.run(_follow(job, start, source, rounds, run_dir))


def first_difference(recorded: Sequence[RoundClosed], made: Sequence[RoundClosed]) -> int | None:
    """The first version that is not the same in both; None if all are, bit for bit."""
    for one, other in zip(recorded, made, strict=False):
        if one.lineage != other.lineage:
            return one.version
    shorter = min(len(recorded), len(made))
    return None if len(recorded) == len(made) else recorded[0].version + shorter


async def _simulate(
    job: Job,
    start: Makers,
    timings: ToldTimings,
    run_dir: Path,
    judge: Judge | None,
    judge_all: bool,
    observe: Observer,
) -> Simulated:
    channel = SimulatedChannel(start, timings, job.local.batch_size)
    seen = _Seen(job, channel, judge, [observe], judge_all)
    return await _drive(job, channel, timings, run_dir, seen)


async def _follow(
    job: Job, start: Makers, source: str, rounds: Sequence[RoundClosed], run_dir: Path
) -> Simulated:
    channel = FollowingChannel(start, source, job.local.batch_size, rounds)
    seen = _Seen(job, channel, None, [channel.observe])
    last = rounds[-1].version

    def end(event: Event) -> None:
        """Beyond the record nothing would ever arrive."""
        if isinstance(event, RoundClosed) and event.version == last and seen.opened > last - 1:
            seen.stop()

    seen.observers.append(end)
    return await _drive(job, channel, AsRecorded(source), run_dir, seen)


async def _drive(
    job: Job, channel: SimulatedChannel, timings: ToldTimings, run_dir: Path, seen: "_Seen"
) -> Simulated:
    store = Store(run_dir, Undurable(), keep=job.keep.newest, clock=loop.now)
    driver = Driver(job, channel, store, run_dir.name, seen, clock=loop.now, owner="siloray simulate")
    seen.stop = lambda: driver.request_stop(now=True)
    driver.record(events.Simulated(seed=timings.seed, timings=timings.told()))
    outcome = await driver.run()
    write_summary(run_dir)
    state, digest = driver.model.state, driver.model.parameters_digest()
    return Simulated(job, outcome, channel.works, seen.rounds, seen.points, state, digest)


@dataclass
class _Seen:
    """Takes down versions as they are made, and their figures once these are known."""

    job: Job
    channel: SimulatedChannel
    judge: Judge | None
    observers: list[Observer]
    judge_all: bool = False
    stop: Callable[[], None] = lambda: None
    opened: int = -1
    """Version that the newest round opened with."""
    rounds: list[RoundClosed] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    _made: list[tuple[float, int]] = field(default_factory=lambda: [(0.0, 0)])
    """By version: when, and of how many updates in all."""

    def __call__(self, event: Event) -> None:
        match event:
            case events.RoundOpened():
                self.opened = event.version
            case RoundClosed():
                self.rounds.append(event)
                self._made.append((loop.now(), self._made[-1][1] + len(event.contributors)))
                self._point(event.evaluated, self._all_reported(event))
            case VersionEvaluated():
                self._point(event.evaluated, not event.evaluated.missing)
        for observe in self.observers:
            observe(event)

    def _all_reported(self, closed: RoundClosed) -> bool:
        version = closed.evaluated.version
        return {each.silo for each in closed.contributors if each.base_version == version} >= set(
            self.job.silos
        )

    def _point(self, figures: events.Figures, exact: bool) -> None:
        version = figures.version
        model = self.channel.models.get(version)
        metrics: Mapping[str, float] = figures.overall
        if (self.judge_all or not exact) and self.judge is not None and model is not None:
            metrics = self.judge(version, model)
        for old in [each for each in self.channel.models if each <= version]:
            del self.channel.models[old]
        time, num_updates = self._made[version]
        self.points.append(Point(version, time, num_updates, dict(metrics)))

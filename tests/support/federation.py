"""A whole federation in this process: the real driver, store, silos and pipeline over `LocalChannel`."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from orchestrator.at_rest import store_key
from orchestrator.core import events
from orchestrator.core.errors import SiloLost
from orchestrator.core.events import Event
from orchestrator.core.messages import Ask, Refused, Reply, Request, Train, Update
from orchestrator.driver import Driver
from orchestrator.ending import Outcome
from orchestrator.job import Job
from orchestrator.keys import Signer
from orchestrator.store import Store
from orchestrator.transport.local import Handles, LocalChannel
from tests.support.quadratic import PlainSite, Quadratic, silo_makers, sites

Makers = Mapping[str, Callable[[], Handles]]
Losses = Mapping[tuple[str, str, int], str]
"""(silo, name of the request's class or step of a sum, which one from 1) -> ``before``, ``after`` or ``reply``."""


@dataclass(repr=False)
class Ended:
    """A run that came to its end."""

    outcome: Outcome
    driver: Driver
    events: list[Event]
    seconds: float

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def params(self) -> np.ndarray:
        return self.driver.model.state["params"]

    @property
    def bits(self) -> dict[str, bytes]:
        """The strategy's whole state."""
        return {name: np.asarray(part).tobytes() for name, part in self.driver.model.state.items()}

    @property
    def digest(self) -> str:
        return self.of(events.RunClosed)[-1].parameters_digest

    @property
    def rounds(self) -> list[events.RoundClosed]:
        """In the order of their commits."""
        return self.of(events.RoundClosed)

    @property
    def refusals(self) -> set[tuple[str, int, str]]:
        """Silo, version, code."""
        return {(event.silo, event.version, event.code) for event in self.of(events.UpdateRefused)}

    @property
    def contributors(self) -> list[list[str]]:
        """Names by version."""
        return [[each.silo for each in closed.contributors] for closed in self.rounds]


def federate(
    job: Job,
    makers: Makers,
    folder: Path,
    *,
    run_id: str = "run",
    channel: Callable[[Makers], LocalChannel] = LocalChannel,
    limit_s: float = 30.0,
    during: Callable[[Driver, LocalChannel, Event], None] = lambda *_: None,
    signer: Signer | None = None,
) -> Ended:
    """Run the job to its end, or go on with it; a run that hangs fails after ``limit_s``.

    ``during`` is called with every event, inside the event loop.
    """
    seen: list[Event] = []
    silos = channel(makers)

    def observe(event: Event) -> None:
        seen.append(event)
        during(driver, silos, event)

    store = Store(folder / "runs" / run_id, keep=job.keep.newest, key=store_key(), signer=signer)
    driver = Driver(job, silos, store, run_id, observe=observe)
    began = time.perf_counter()
    try:
        outcome = asyncio.run(asyncio.wait_for(driver.run(), limit_s))
    finally:
        silos.close()
    return Ended(outcome, driver, seen, time.perf_counter() - began)


def run_quadratic(job: Job, problem_of: dict[str, Quadratic], folder: Path, **options: Any) -> Ended:
    """Run the job on honest quadratic silos."""
    return federate(job, silo_makers(sites(problem_of, folder / "silos")), folder, **options)


def journal(folder: Path, run_id: str = "run") -> list[Event]:
    """What the run's directory says, over all attempts."""
    lines = Store(folder / "runs" / run_id).events()
    return [events.EVENT.validate_python(event) for _, event in lines]


def double_counts(history: list[Event]) -> list[tuple[str, int]]:
    """Updates (silo, version trained from) that stand twice in the rounds that count."""
    rounds: dict[int, events.RoundClosed] = {}
    for event in history:
        if isinstance(event, events.RoundClosed):
            rounds[event.version] = event
        elif isinstance(event, events.Rewound):
            rounds = {version: closed for version, closed in rounds.items() if version <= event.version}
    counted = Counter(
        (each.silo, each.base_version) for closed in rounds.values() for each in closed.contributors
    )
    return [update for update, times in counted.items() if times > 1]


@dataclass
class Bent:
    """A silo whose replies to `Train` are changed on their way out, by version."""

    silo: Handles
    bend: Mapping[int, Callable[[Update], Reply]]

    def handle(self, request: Request) -> Reply:
        reply = self.silo.handle(request)
        if isinstance(request, Train) and isinstance(reply, Update):
            return self.bend.get(request.version, lambda update: update)(reply)
        return reply


@dataclass
class Absent:
    """A silo that does not train some versions: it never sees the request."""

    silo: Handles
    versions: frozenset[int]
    name: str = ""

    def handle(self, request: Request) -> Reply:
        if isinstance(request, Train) and request.version in self.versions:
            return Refused(silo=self.name, code="policy", reason="not today")
        return self.silo.handle(request)


class Losing:
    """Beside any channel: counts requests, and loses silos. The nth request of a kind to a silo ends that silo's
    process, before or after it worked."""

    def __init__(self, *given: Any, losses: Losses = MappingProxyType({}), **named: Any) -> None:
        super().__init__(*given, **named)
        self.losses = losses
        self.asked: Counter[tuple[str, str]] = Counter()
        self.lost = 0

    async def call(self: Any, silo: str, request: Request) -> Reply:
        kinds = [(silo, type(request).__name__)]
        if isinstance(request, Ask):
            kinds.append((silo, request.step))
        self.asked.update(kinds)
        planted = (self.losses.get((*kind, self.asked[kind])) for kind in kinds)
        how = next(filter(None, planted), None)
        if how is None:
            return await super().call(silo, request)
        self.lost += 1
        if how != "before":
            await super().call(silo, request)
        if how != "reply":
            await self.restart(silo)
        raise SiloLost(silo, f"planted: {how}")


class LossyChannel(Losing, LocalChannel):
    """In this process."""

    def __init__(self, start: Makers, losses: Losses = MappingProxyType({})) -> None:
        super().__init__(start, losses=losses)


def bent(site_of: dict[str, PlainSite], silo: str, bend: Mapping[int, Callable[[Update], Reply]]) -> Makers:
    """Honest silos, but for one."""
    makers: dict[str, Any] = dict(silo_makers(site_of))
    honest = makers[silo]
    return {**makers, silo: lambda: Bent(honest(), bend)}


def absent(site_of: dict[str, PlainSite], silo: str, versions: frozenset[int]) -> Makers:
    """Honest silos, but one stays away from some versions."""
    makers: dict[str, Any] = dict(silo_makers(site_of))
    honest = makers[silo]
    return {**makers, silo: lambda: Absent(honest(), versions, silo)}


class Unheard(LocalChannel):
    """Silo c's answer to requests of one kind is still on its way when the driver dies."""

    def __init__(self, start: Makers, kind: type[Request]) -> None:
        super().__init__(start)
        self.kind = kind

    async def call(self, silo: str, request: Request) -> Reply:
        if silo == "c" and isinstance(request, self.kind):
            await asyncio.Event().wait()
        return await super().call(silo, request)

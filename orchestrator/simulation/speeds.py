"""Speeds of silos as a person states them: ``--speeds`` on the command line, or a YAML file.

silo-0=0.5,silo-1=2         seconds per local step, by name
1x7,2,4,8                   the same in the job's order: seven silos of 1, then 2, 4 and 8
dm                          a profile, by name
speeds.yaml                 with latency, bandwidth, jitter, stalls and outages

# speeds.yaml
per: step                   # or epoch: seconds per pass over the silo's rows, however many those are
latency_s: 0.05             # each way; what is said here holds for every silo
bytes_per_s: 12.5e6         # each way
jitter: 0.1
silos:
  silo-0: 0.5
  silo-1: {seconds: 2, bytes_per_s: 1e6, stalls: {share: 0.05, factor: 4}, outages: [[100, 160]]}
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, field_validator

from orchestrator.core import document
from orchestrator.core.errors import BadInput
from orchestrator.core.messages import SiloId
from orchestrator.core.random import rng_of
from orchestrator.simulation.timings import Spent, Task

Unit = Literal["step", "epoch"]


class _Spec(BaseModel, frozen=True, extra="forbid"):
    pass


class Stalls(_Spec, frozen=True):
    """Now and then a task takes ``factor`` times as long to train."""

    share: float = Field(ge=0, le=1)
    factor: float = Field(gt=0)


class _Machine(_Spec, frozen=True):
    """What may be said of one silo, or of all."""

    overhead_s: float = Field(default=0.0, ge=0)
    """At the silo, per task, besides training."""
    latency_s: float = Field(default=0.0, ge=0)
    """Of each message, each way."""
    bytes_per_s: float | None = Field(default=None, gt=0)
    """Of its line, each way; None: no limit."""
    jitter: float = Field(default=0.0, ge=0, le=3)
    """Training takes ``exp(jitter * z)`` times its usual time, with a standard normal z for every task."""
    stalls: Stalls | None = None


class Speed(_Machine, frozen=True):
    """One silo."""

    seconds: float = Field(gt=0)
    """Per local step, or per epoch."""
    outages: tuple[tuple[float, float], ...] = ()
    """From and to, in virtual seconds: the silo cannot be reached, and what it had in hand is lost."""

    @field_validator("outages")
    @classmethod
    def _in_order(cls, outages: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        ends = [moment for outage in outages for moment in outage]
        if ends != sorted(ends):
            raise ValueError("give [from, to] pairs in the order of time")
        return outages


def _speed(value: Any) -> Any:
    return {"seconds": value} if isinstance(value, int | float) else value


class SpeedsFile(_Machine, frozen=True):
    """The YAML document. What it says of all silos holds where a silo says nothing else."""

    per: Unit = "step"
    silos: dict[str, Annotated[dict[str, Any], BeforeValidator(_speed)]] = Field(min_length=1)


class Speeds:
    """Durations from stated speeds (`Timings`). Draws are keyed by (seed, silo, task number)."""

    def __init__(self, silos: Mapping[SiloId, Speed], per: Unit = "step", seed: int = 0) -> None:
        self.silos, self.per, self.seed = dict(silos), per, seed

    def spent(self, task: Task) -> Spent:
        speed = self.silos[task.silo]
        amount = task.num_steps if self.per == "step" else task.num_epochs
        return Spent(
            down=_link(speed, task.bytes_down),
            other=speed.overhead_s,
            train=amount * speed.seconds * self._factor(speed, task),
            up=_link(speed, task.bytes_up),
        )

    def _factor(self, speed: Speed, task: Task) -> float:
        rng = rng_of(self.seed, "duration", task.silo, task.number)
        factor = math.exp(speed.jitter * rng.standard_normal())
        stalled = speed.stalls is not None and rng.random() < speed.stalls.share
        return factor * speed.stalls.factor if speed.stalls is not None and stalled else factor

    def away(self, silo: SiloId, now: float) -> bool:
        return any(start <= now < stop for start, stop in self.silos[silo].outages)

    def next_outage(self, silo: SiloId, now: float) -> float:
        return min((start for start, _ in self.silos[silo].outages if start >= now), default=math.inf)

    def of(self, **common: Any) -> "Speeds":
        """The same silos with these in common (``latency_s=0``)."""
        silos = {name: speed.model_copy(update=common) for name, speed in self.silos.items()}
        return Speeds(silos, self.per, self.seed)

    def told(self) -> dict[str, Any]:
        """For the record."""
        silos = {name: speed.model_dump(exclude_defaults=True) for name, speed in self.silos.items()}
        return {"per": self.per, "silos": silos}


def _link(speed: Speed, num_bytes: int) -> float:
    return speed.latency_s + (num_bytes / speed.bytes_per_s if speed.bytes_per_s else 0.0)


_EXCHANGE: dict[str, Any] = {"latency_s": 1.0, "jitter": 0.1}
"""Two seconds per exchange."""

PROFILES: Mapping[str, tuple[tuple[float, ...], Mapping[str, Any]]] = {
    "even": ((1.0,), {}),
    "dm": ((0.58, 0.75, 1.51, 3.33), _EXCHANGE),
    "geo8": ((0.5, 1.0, 2.0, 4.0), {**_EXCHANGE, "stalls": {"share": 0.05, "factor": 4.0}}),
}
"""Seconds per step, given to the silos in turn, and what holds for all. ``dm``: four kinds of accelerator. ``geo8``:
from .5 to 4 by doubling, and one task in twenty four times slower."""


def speeds_of(text: str, silos: Sequence[SiloId], seed: int = 0, per: Unit = "step") -> Speeds:
    """What ``text`` says of these silos. Raises `BadInput` for what does not fit them."""
    if text in PROFILES:
        cycle, common = PROFILES[text]
        stated = {silo: {**common, "seconds": cycle[i % len(cycle)]} for i, silo in enumerate(silos)}
        return Speeds(_validated(stated, silos, f"--speeds {text}"), per, seed)
    if text.endswith((".yaml", ".yml")):
        return _from_file(Path(text), silos, seed)
    source = f"--speeds {text}"
    stated = _by_name(text, source) if "=" in text else _in_turn(text, silos, source)
    return Speeds(_validated(stated, silos, source), per, seed)


def _from_file(path: Path, silos: Sequence[SiloId], seed: int) -> Speeds:
    file = document.load(path, SpeedsFile)
    common = file.model_dump(exclude={"per", "silos"}, exclude_unset=True)
    stated = {name: {**common, **each} for name, each in file.silos.items()}
    return Speeds(_validated(stated, silos, f"{path}: silos"), file.per, seed)


def _by_name(text: str, source: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for each in text.split(","):
        name, _, seconds = each.partition("=")
        if name.strip() in found:
            raise BadInput(f"{source}: {name.strip()} stands twice")
        found[name.strip()] = {"seconds": _number(seconds, source)}
    return found


def _in_turn(text: str, silos: Sequence[SiloId], source: str) -> dict[str, dict[str, Any]]:
    listed: list[float] = []
    for each in text.split(","):
        repeated = re.fullmatch(r"(.*)x(\d+)", each.strip())
        seconds, times = repeated.groups() if repeated else (each, "1")
        listed += [_number(seconds, source)] * int(times)
    if len(listed) != len(silos):
        raise BadInput(f"{source}: {len(listed)} speeds for the {len(silos)} silos of the job")
    return {silo: {"seconds": seconds} for silo, seconds in zip(silos, listed, strict=True)}


def _number(text: str, source: str) -> float:
    try:
        return float(text)
    except ValueError:
        known = ", ".join(PROFILES)
        raise BadInput(
            f"{source}: {text.strip()!r} is no number of seconds; give NAME=SECONDS,..., SECONDS,... in the job's "
            f"order (1x7,2,4,8), a file (.yaml) or one of: {known}"
        ) from None


def _validated(
    stated: Mapping[str, Mapping[str, Any]], silos: Sequence[SiloId], source: str
) -> dict[SiloId, Speed]:
    for name in stated:
        if name not in silos:
            raise BadInput(f"{source}: {name} is not a silo of the job; there are: {', '.join(silos)}")
    for silo in silos:
        if silo not in stated:
            raise BadInput(f"{source}: says nothing of the job's silo {silo}")
    return {silo: document.validate(dict(stated[silo]), Speed, f"{source}: {silo}") for silo in silos}

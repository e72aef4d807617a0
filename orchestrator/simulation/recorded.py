"""Durations as a past run recorded them, for running the job again under another policy."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.core.errors import BadInput
from orchestrator.core.events import EVENT, Contributor, RoundClosed
from orchestrator.core.messages import SiloId
from orchestrator.core.random import rng_of
from orchestrator.journal import read_journal
from orchestrator.simulation.timings import Spent, Steady, Task

JOURNAL = "journal.jsonl"


@dataclass(frozen=True, slots=True)
class Sample:
    """What one update of the past run took."""

    step_s: float
    other_s: float
    """At the silo, besides training."""


class Recorded(Steady):
    """A silo's nth task takes per step what its nth recorded one took; beyond those, what one of them took that is
    drawn by (seed, silo, task number). Lines cost ``latency_s`` and ``bytes_per_s``, each way: a journal does not tell
    the silo's line from the driver's waiting."""

    def __init__(
        self,
        samples: dict[SiloId, list[Sample]],
        source: str,
        seed: int = 0,
        latency_s: float = 0.0,
        bytes_per_s: float | None = None,
    ) -> None:
        self.samples, self.source, self.seed = samples, source, seed
        self.latency_s, self.bytes_per_s = latency_s, bytes_per_s

    def spent(self, task: Task) -> Spent:
        sample = self._sample(task)
        return Spent(
            down=self._link(task.bytes_down),
            other=sample.other_s,
            train=task.num_steps * sample.step_s,
            up=self._link(task.bytes_up),
        )

    def _sample(self, task: Task) -> Sample:
        known = self.samples[task.silo]
        if task.number < len(known):
            return known[task.number]
        return known[int(rng_of(self.seed, "recorded", task.silo, task.number).integers(len(known)))]

    def _link(self, num_bytes: int) -> float:
        return self.latency_s + (num_bytes / self.bytes_per_s if self.bytes_per_s else 0.0)

    def told(self) -> dict[str, Any]:
        """For the record."""
        return {"run": self.source, "latency_s": self.latency_s, "bytes_per_s": self.bytes_per_s}


def rounds_of(run_dir: Path) -> list[RoundClosed]:
    """The rounds that count, in their order. Raises `JournalDamaged`."""
    rounds: dict[int, RoundClosed] = {}
    for line in read_journal(run_dir / JOURNAL)[0]:
        if line.get("type") == "round_closed":
            closed = EVENT.validate_python(line)
            assert isinstance(closed, RoundClosed)
            rounds = {version: each for version, each in rounds.items() if version < closed.version}
            rounds[closed.version] = closed
    return [rounds[version] for version in sorted(rounds)]


def recorded(rounds: Iterable[RoundClosed], silos: Sequence[SiloId], source: str, **line: Any) -> Recorded:
    """The timings in a journal. Raises `BadInput` where a silo has none."""
    given = sorted(
        (each for closed in rounds for each in closed.contributors), key=lambda each: each.base_version
    )
    samples = {silo: [_sample(each) for each in given if each.silo == silo] for silo in silos}
    for silo, known in samples.items():
        if not known:
            raise BadInput(f"--timings {source}: no update of the job's silo {silo} is on record there")
    return Recorded(samples, source, **line)


def _sample(given: Contributor) -> Sample:
    train = given.seconds.get("train", 0.0)
    return Sample(train / max(given.num_steps, 1), sum(given.seconds.values()) - train)

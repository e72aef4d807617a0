"""Durations as a past run recorded them, for running the job again under another policy."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.core.errors import BadInput
from orchestrator.core.events import Contributor, RoundClosed, parse
from orchestrator.core.messages import SiloId
from orchestrator.core.random import rng_of
from orchestrator.history import History
from orchestrator.journal import JOURNAL, read_journal
from orchestrator.simulation.timings import Spent, Steady, Task


@dataclass(frozen=True, slots=True)
class Sample:
    """What one update of the past run took."""

    step_s: float
    other_s: float
    """At the silo, besides training."""
    transfer_s: float
    num_bytes: int
    """Both ways."""


class Recorded(Steady):
    """A silo's nth task takes per step what its nth recorded one took; beyond those, what one of them took that is
    drawn by (seed, silo, task number). Its way there and back takes as long as it took, per byte."""

    def __init__(self, samples: dict[SiloId, list[Sample]], source: str, seed: int = 0) -> None:
        self.samples, self.source, self.seed = samples, source, seed

    def spent(self, task: Task) -> Spent:
        sample = self._sample(task)
        byte_s = sample.transfer_s / max(sample.num_bytes, 1)
        return Spent(
            down=task.bytes_down * byte_s,
            other=sample.other_s,
            train=task.num_steps * sample.step_s,
            up=task.bytes_up * byte_s,
        )

    def _sample(self, task: Task) -> Sample:
        known = self.samples[task.silo]
        if task.number < len(known):
            return known[task.number]
        return known[int(rng_of(self.seed, "recorded", task.silo, task.number).integers(len(known)))]

    def told(self) -> dict[str, Any]:
        """For the record."""
        return {"run": self.source}


def rounds_of(run_dir: Path) -> list[RoundClosed]:
    """The rounds that count, in their order. Raises `JournalDamaged`."""
    rounds = History.of(parse(read_journal(run_dir / JOURNAL)[0])).rounds
    return [rounds[version] for version in sorted(rounds)]


def recorded(rounds: Iterable[RoundClosed], silos: Sequence[SiloId], source: str, seed: int = 0) -> Recorded:
    """The timings in a journal. Raises `BadInput` where a silo has none."""
    given = sorted(
        (each for closed in rounds for each in closed.contributors), key=lambda each: each.base_version
    )
    samples = {silo: [_sample(each) for each in given if each.silo == silo] for silo in silos}
    for silo, known in samples.items():
        if not known:
            raise BadInput(f"--timings {source}: no update of the job's silo {silo} is on record there")
    return Recorded(samples, source, seed)


def _sample(given: Contributor) -> Sample:
    train, transfer = (given.seconds.get(phase, 0.0) for phase in ("train", "transfer"))
    other = sum(given.seconds.values()) - train - transfer
    return Sample(
        train / max(given.num_steps, 1), max(0.0, other), transfer, given.bytes_up + given.bytes_down
    )

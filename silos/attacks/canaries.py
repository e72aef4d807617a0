"""Memorised canaries (Carlini et al. 2019): records that mean nothing, which a silo puts among its training rows to see
afterwards whether the model knows them.

A canary is a mixture of two rows of the silo with the label of a third. For each that is planted, some of the same kind
are held back: a model that does not memorise cannot tell the two apart. Which they are follows from a secret that never
leaves the silo, and is kept so that a training that is repeated is the same.
"""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orchestrator.core.random import rng_of
from silos.attacks.rows import chunks, gathered, rows_at
from silos.attacks.statistics import Scores, exposures, mean_at_least
from silos.attacks.wrapped import Wrapped
from silos.audit import write_private
from silos.tasks.task import At, Batch, Split, Task

HELD_BACK = 4
"""For each that is planted."""
ROWS_EACH = 10
"""Training rows for each canary, at least: so they stay few among the rows."""
FEWEST = 5
POOL = 2_000
"""Rows from which they are mixed."""


@dataclass(frozen=True, slots=True)
class Canaries:
    """Rows of two kinds that differ in nothing but that the model was trained on one of them."""

    planted: Batch
    held_back: Batch


@dataclass(frozen=True, slots=True)
class Exposed:
    """What the model knows of the canaries, in bits."""

    mean: float
    low: float
    """Lower bound of the mean, 95 %."""


def exposed(planted: Scores, held_back: Scores) -> Exposed:
    """Of the losses of both kinds."""
    bits = exposures(planted, held_back)
    return Exposed(float(bits.mean()), mean_at_least(bits))


def planted(task: Task, wanted: int, secret: int) -> Task:
    """The task with as many canaries as it can bear; as it is where that is none."""
    count = number_of(wanted, task.num_examples("train"))
    return Planted(task, made(task, secret, count), secret) if count else task


def number_of(wanted: int, num_rows: int) -> int:
    """How many a silo of so many training rows plants; 0: too few to tell anything."""
    count = min(wanted, num_rows // ROWS_EACH)
    return count if count >= FEWEST else 0


def made(task: Task, secret: int, count: int) -> Canaries:
    """``count`` to plant, and `HELD_BACK` times as many of the same kind."""
    rng = rng_of(secret, "canaries")
    pool = gathered(task.train_batches(At(secret, "canaries", 0, 0), 256), POOL)
    rows, total = len(pool[0]), count * (1 + HELD_BACK)
    one, other = rng.integers(rows, size=total), rng.integers(rows, size=total)
    third = np.array([_unlike(pool, first, rng) for first in one])
    whole = (_mixed(pool[0], one, other, rng), *rows_at(pool[1:], third))
    return Canaries(tuple(e[:count] for e in whole), tuple(e[count:] for e in whole))


def _mixed(inputs: Tensor, one: Any, other: Any, rng: np.random.Generator) -> Tensor:
    (first,), (second,) = rows_at((inputs,), one), rows_at((inputs,), other)
    return torch.where(torch.from_numpy(rng.random(tuple(first.shape)) < 0.5), first, second)


def _unlike(pool: Batch, row: int, rng: np.random.Generator) -> int:
    """A row with another label, where one is found soon."""
    found = int(rng.integers(len(pool[0])))
    for _ in range(20):
        if any(not torch.equal(each[found], each[row]) for each in pool[1:]):
            break
        found = int(rng.integers(len(pool[0])))
    return found


class Planted(Wrapped):
    """The task, with canaries among its training rows."""

    def __init__(self, task: Task, canaries: Canaries, secret: int) -> None:
        super().__init__(task)
        self.canaries, self._secret = canaries, secret

    def num_examples(self, split: Split) -> int:
        return self.task.num_examples(split) + (len(self.canaries.planted[0]) if split == "train" else 0)

    def train_batches(self, at: At, batch_size: int) -> Iterator[Batch]:
        """An epoch with the canaries at places of their own in each."""
        count = len(self.canaries.planted[0])
        rng = rng_of(self._secret, at.seed, at.silo, at.version, at.epoch)
        places = sorted(rng.choice(self.num_examples("train"), size=count, replace=False))
        ours = rows_at(self.canaries.planted, rng.permutation(count))
        rows = _merged(self.task.train_batches(at, batch_size), ours, places)
        company = tuple(each[:1] for each in ours)
        yield from _in_company(_rebatched(rows, batch_size), company, batch_size)


def _merged(batches: Iterator[Batch], ours: Batch, places: list[int]) -> Iterator[Batch]:
    """The batches, with our rows put in where their places lie; what is left comes at the end."""
    seen = used = 0
    for batch in batches:
        start = 0
        while used < len(places) and places[used] - used < seen + len(batch[0]):
            stop = places[used] - used - seen
            yield tuple(each[start:stop] for each in batch)
            yield tuple(each[used : used + 1] for each in ours)
            start, used = stop, used + 1
        yield tuple(each[start:] for each in batch)
        seen += len(batch[0])
    yield tuple(each[used:] for each in ours)


def _rebatched(pieces: Iterator[Batch], batch_size: int) -> Iterator[Batch]:
    waiting: list[Batch] = []
    count = 0
    for piece in pieces:
        waiting.append(piece)
        count += len(piece[0])
        if count < batch_size:
            continue
        whole = tuple(torch.cat(column) for column in zip(*waiting, strict=True))
        full = count - count % batch_size
        yield from chunks(tuple(each[:full] for each in whole), batch_size)
        waiting, count = [tuple(each[full:] for each in whole)], count - full
    if count:
        yield tuple(torch.cat(column) for column in zip(*waiting, strict=True))


def _in_company(batches: Iterator[Batch], company: Batch, batch_size: int) -> Iterator[Batch]:
    """A batch of one row gets another: batch normalisation cannot train on one."""
    for batch in batches:
        alone = len(batch[0]) == 1 < batch_size
        yield tuple(map(torch.cat, zip(batch, company, strict=True))) if alone else batch


def secret_in(path: Path) -> int:
    """The silo's own, made at first use. Raises `BadInput` where it cannot be kept."""
    if not path.exists():
        write_private(path, secrets.token_hex(32) + "\n")
    return int(path.read_text(encoding="utf-8"), 16)

"""What a local training's steps are made of: epochs of batches, each with its gradient."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from torch import Tensor

from orchestrator.core.protocols import Contrast, Part, Phase, Strategy
from orchestrator.local import Local
from silos.gradient import Gradient
from silos.network import Network
from silos.precision import LossScale
from silos.tasks.task import At, Task


class Step(Protocol):
    """Gradient of one batch (`GradAt`)."""

    loss: Tensor
    """Mean over the batch, at the last call."""

    @property
    def num_rows(self) -> int:
        """That ``loss`` is of."""
        ...

    def __call__(self, point: Tensor, part: Part = "all", contrast: Contrast | None = None) -> Tensor: ...


class Steps(Protocol):
    """Of one silo, for any number of trainings."""

    @property
    def steps_per_epoch(self) -> int: ...

    def phase(self, trains: str, version: int) -> AbstractContextManager[None]:
        """Around the steps of a phase; ``trains``: ``all``, ``shared`` or ``own``."""
        ...

    def epoch(self, place: At, done: int) -> Iterator[Step]:
        """An epoch, from after its first steps that are ``done``."""
        ...


class ShuffledSteps:
    """Every row once in an epoch, in batches in an order of the job's seed."""

    def __init__(self, network: Network, task: Task, scale: LossScale | None = None) -> None:
        self._network, self._task, self._scale = network, task, scale

    @property
    def steps_per_epoch(self) -> int:
        return -(-self._task.num_examples("train") // self._network.local.batch_size)

    def phase(self, trains: str, version: int) -> AbstractContextManager[None]:
        return nullcontext()

    def epoch(self, place: At, done: int) -> Iterator[Step]:
        batches = iter(self._task.train_batches(place, self._network.local.batch_size))
        for _ in range(done):
            next(batches, None)
        network, task, scale = self._network, self._task, self._scale
        return (Gradient(network, task, network.on_device(batch), scale) for batch in batches)


def length(strategy: Strategy, local: Local, version: int, asked: int | None) -> Phase:
    """Of a training: as the driver asks, or else as the job or the silo's own document says."""
    if version == 0 and strategy.alone:
        return Phase(epochs=strategy.alone)
    if asked is not None:
        return Phase(steps=asked)
    return Phase(steps=local.steps) if local.steps is not None else Phase(epochs=local.num_epochs)


def num_steps(strategy: Strategy, local: Local, steps: Steps, version: int, asked: int | None) -> int:
    """Of all phases of a training."""
    phases = strategy.phases(length(strategy, local, version, asked))
    return sum(each.steps or steps.steps_per_epoch * (each.epochs or 1) for each in phases)

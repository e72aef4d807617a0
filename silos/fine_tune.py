"""A silo makes the final model its own, and keeps that only where it helps.

Local steps make the model better for some silos and worse for others (FLamby: Camelyon .619 -> .549; Ogier du
Terrail et al. 2022, arXiv 2210.04620). So a fifth of the training rows is set aside, the best step on those rows is
kept, and only if it is better there than the model was at the start.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator.core.metrics import MetricSums, larger_is_better
from orchestrator.core.random import seed_of
from orchestrator.local import FineTune, Optimizer
from silos.gradient import Gradient
from silos.optimizer import make_optimizer
from silos.precision import LossScale, Overflow
from silos.site import Order
from silos.tasks.task import At, Batch
from silos.trainer import TEST_BATCH, TorchTrainer

LOOKS = 10
"""Points of the curve besides the start, unless the caller names them."""
CACHED_BYTES = 1 << 30
"""Rows are held in memory, so that those set aside stay the same ones; of a larger data set the first so many bytes
of a shuffled epoch."""


@dataclass(frozen=True, slots=True)
class Point:
    """Of the curve."""

    step: int
    validation: MetricSums
    test: MetricSums
    """Empty unless asked for. Never what decides."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """What came of it."""

    accepted: bool
    step: int
    """Of the model: the best one, or 0."""
    metric: str
    """Decided, on the validation rows."""
    curve: tuple[Point, ...]
    model: dict[str, Tensor]
    """The module's state: the best step's, or the one it began with."""


def fine_tune(
    trainer: TorchTrainer,
    order: Order,
    plan: FineTune,
    looks: tuple[int, ...] | None = None,
    with_test: bool = False,
) -> Tuned:
    """From the received model with the silo's private layers. ``looks``: steps after which it is measured, besides the
    start. Afterwards the trainer holds the resulting model. Same order, same bits."""
    received = trainer.load(order)
    seed = seed_of(trainer.job.seed, "fine_tune", trainer.silo, order.version)
    torch.manual_seed(seed)
    tuning, validation = _split(_rows(trainer, order.version))
    search = _Search(trainer, validation, with_test)
    search.look(0)
    if not len(tuning[0]):
        return search.ended()
    size = trainer.local.batch_size
    total = plan.steps or (plan.epochs or 1) * -(-len(tuning[0]) // size)
    points = set(looks) if looks is not None else {-(-total * i // LOOKS) for i in range(1, LOOKS + 1)}
    descent = _Descent(trainer, received, order.version, plan)
    draw = torch.Generator().manual_seed(seed)
    for step, batch in zip(range(1, total + 1), _batches(tuning, size, draw), strict=False):
        descent.step(batch)
        order.tick("fine-tuning", step, total)
        if step in points:
            search.look(step)
    return search.ended()


class _Search:
    """For the step that is best on the validation rows."""

    def __init__(self, trainer: TorchTrainer, validation: Batch, with_test: bool) -> None:
        self._trainer, self._validation, self._with_test = trainer, validation, with_test
        self._metric = trainer.job.stop.metric
        self._curve: list[Point] = []
        self._best, self._best_value = 0, -float("inf")
        self._model: dict[str, Tensor] = {}

    def look(self, step: int) -> None:
        """Measure the model as it is, and keep it if it is the best so far."""
        trainer, rows = self._trainer, self._validation
        figures = trainer.measure(zip(*(each.split(TEST_BATCH) for each in rows), strict=True))
        test = trainer.measure(trainer.task.test_batches(TEST_BATCH)) if self._with_test else {}
        self._curve.append(Point(step, figures, test))
        value = self._value(figures)
        if not step or value > self._best_value:
            self._best, self._best_value = step, value
            self._model = {name: each.clone() for name, each in trainer.flat.module.state_dict().items()}

    def _value(self, figures: MetricSums) -> float:
        """Larger is better; an undefined figure is the worst."""
        if self._metric not in figures:
            self._metric = "loss"
        value = figures[self._metric].value if self._metric in figures else None
        if value is None:
            return -float("inf")
        return value if larger_is_better(self._metric) else -value

    def ended(self) -> Tuned:
        self._trainer.flat.module.load_state_dict(self._model)
        return Tuned(self._best > 0, self._best, self._metric, tuple(self._curve), self._model)


def _rows(trainer: TorchTrainer, version: int) -> Batch:
    """The silo's training rows, each once, in an order drawn by the job's seed."""
    at = At(trainer.job.seed, trainer.silo, version, 0)
    batches, held = [], 0
    for batch in trainer.task.train_batches(at, trainer.local.batch_size):
        batches.append(batch)
        held += sum(each.nbytes for each in batch)
        if held >= CACHED_BYTES:
            break
    num_rows = trainer.num_examples["train"]  # a task may fill up a last batch of one with another row
    return tuple(torch.cat(column)[:num_rows] for column in zip(*batches, strict=True))


def _split(rows: Batch) -> tuple[Batch, Batch]:
    """To train on, and to decide by: a fifth, at least one row."""
    fifth = max(1, len(rows[0]) // 5)
    return tuple(each[fifth:] for each in rows), tuple(each[:fifth] for each in rows)


def _batches(rows: Batch, size: int, draw: torch.Generator) -> Iterator[Batch]:
    """Epoch after epoch. A last batch of one row is left out where there are others: batch normalisation cannot train
    on one."""
    while True:
        chosen = torch.randperm(len(rows[0]), generator=draw).split(size)
        for some in chosen[:-1] if len(chosen) > 1 and len(chosen[-1]) == 1 else chosen:
            yield tuple(each[some] for each in rows)


class _Descent:
    """Plain gradients, applied as the strategy adapts a model, or by a new local optimizer."""

    def __init__(
        self, trainer: TorchTrainer, received: dict[str, Tensor], version: int, plan: FineTune
    ) -> None:
        self._trainer, self._flat, self._version = trainer, trainer.flat, version
        self._scale = LossScale() if trainer.local.precision == "fp16" else None
        spec = trainer.local.optimizer
        self._lr = plan.lr or spec.lr
        self._rate = trainer.job.strategy.adaptation(received) if plan.lr is None else None
        self._optimizer = make_optimizer(
            spec.model_copy(update={"lr": self._lr}) if self._rate is None else Optimizer(lr=1.0),
            self._flat.parameter_of("all", version),
        )

    def step(self, batch: Batch) -> None:
        network = self._trainer.network
        network.call.train()
        self._flat.freeze_for(self._version)
        try:
            Gradient(network, self._trainer.task, network.on_device(batch), self._scale)(self._flat.shared)
        except Overflow:
            return
        most = self._trainer.local.clip_grad_norm
        if most is not None:
            torch.nn.utils.clip_grad_norm_([self._flat.parameter], most)
        if self._rate is not None:
            self._flat.gradient[: self._flat.num_shared].mul_(self._rate)
            self._flat.gradient[self._flat.num_shared :].mul_(self._lr)
        self._optimizer.step()

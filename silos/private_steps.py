"""Steps of DP-SGD: units taken by chance, their gradients cut and added up, noise once a step."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from orchestrator.core.errors import BadJob
from orchestrator.core.protocols import Contrast, Part
from orchestrator.privacy.dp_sgd import DpSgd, chance, steps_per_epoch
from silos.clipped import Ghost, Single, chosen
from silos.draws import Draws
from silos.network import Network
from silos.normalisation import check_unmixed
from silos.tasks.task import At, Batch, ByRow

SAMPLE = 16
"""Rows on which engines are compared."""


class PrivateSteps:
    """`silos.steps.Steps` with differential privacy. A unit is a row, or all rows of one patient."""

    def __init__(self, network: Network, task: Any, spec: DpSgd) -> None:
        """Raises `BadInput` for a task or a model with which that cannot be."""
        self._network, self._task, self._spec = network, _by_row(task, spec), spec
        self._rows = _rows_of_units(self._task, spec)
        self.num_units = len(self._rows)
        self.noise_multiplier = spec.noise_multiplier
        """None until it has been found for the job's target."""
        self._engines: dict[tuple[str, int], Literal["ghost", "single"]] = {}
        """By what is trained."""
        check_unmixed(network.flat)
        network.flat.module.train()
        with self.phase("all", 0):
            pass  # an engine that cannot do the model says so now

    @property
    def chance(self) -> float:
        """With which a unit is in a step."""
        return chance(self.num_units, self._network.local.batch_size)

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.num_units, self._network.local.batch_size)

    @contextmanager
    def phase(self, trains: str, version: int) -> Iterator[None]:
        flat = self._network.flat
        flat.freeze_for(version, trains)
        trained = flat.parameter_of(trains, version).grad
        assert trained is not None  # a view of the model's flat memory
        self._trained, self._total = trained, torch.zeros_like(trained)
        engine = self._clipped = self._engine(trains, flat.num_held(version))
        before = {
            name: each.clone() for name, each in flat.module.named_buffers() if each.is_floating_point()
        }
        try:
            yield
            _check_unchanged(before, dict(flat.module.named_buffers()))
        finally:
            if isinstance(engine, Ghost):
                engine.close()

    def epoch(self, place: At, done: int) -> Iterator["PrivateGradient"]:
        """Drawn anew whenever it is begun: a training that goes on from its checkpoint uses no noise twice, and of
        what it drew before nothing has left the silo."""
        draws = self._draws(place, done)
        taken = [self._taken(draws) for _ in range(self.steps_per_epoch - done)]
        batches = iter(self._task.train_rows([rows for each in taken for rows in each], draws.seed()))
        for each in taken:
            pieces = islice(batches, len(each))
            yield PrivateGradient(self, pieces, draws)
            if next(pieces, None) is not None:
                raise RuntimeError("a step that did not ask for its gradient is not what is accounted for")

    def gradient(self, pieces: Iterable[Batch], draws: Draws) -> Tensor:
        """The noised mean gradient, in the model's memory: what of it is shared."""
        flat, spec, total = self._network.flat, self._spec, self._total.zero_()
        assert self.noise_multiplier is not None  # found before round 0
        for piece in pieces:
            self._clipped.add(self._network.on_device(piece), total)
        draws.add_normal(total, self.noise_multiplier * spec.max_grad_norm)
        flat.clear_gradient()
        self._trained.copy_(total).div_(self._network.local.batch_size)
        return flat.gradient[: flat.num_shared]

    def stands_at(self, point: Tensor) -> bool:
        return point.data_ptr() == self._network.flat.shared.data_ptr()

    def _draws(self, place: At, done: int) -> Draws:
        seed = self._spec.insecure_test_noise_seed
        if seed is None:
            return Draws.fresh()
        return Draws.insecure(seed, place.silo, place.version, place.epoch, done)

    def _taken(self, draws: Draws) -> list[Tensor]:
        """Rows of one step: in pieces that fit in memory, or patient by patient."""
        units = draws.chosen(self.num_units, self.chance)
        if self._spec.unit == "patient":
            return [draws.some_of(self._rows[int(unit)], self._spec.max_records) for unit in units]
        return [piece for piece in torch.split(units, self._spec.physical_batch) if len(piece)]

    def _engine(self, trains: str, held: int) -> Ghost | Single:
        """Compared once for each set of layers that is trained."""
        network, spec, trained = self._network, self._spec, self._trained
        if spec.unit == "patient":
            return Single(network, self._task, spec.max_grad_norm, trained, whole=True)
        known = self._engines.get((trains, held))
        made = chosen(
            *(known or spec.engine, network, self._task, spec.max_grad_norm, trained),
            sample=self._sample if known is None else None,
        )
        self._engines[trains, held] = "ghost" if isinstance(made, Ghost) else "single"
        return made

    def _sample(self) -> Batch:
        """Some rows from all over the data set."""
        num_rows = self._task.num_examples("train")
        rows = torch.linspace(0, num_rows - 1, min(SAMPLE, num_rows)).long()
        return self._network.on_device(next(iter(self._task.train_rows([rows], 0))))


class PrivateGradient:
    """Of one step (`silos.steps.Step`). Of a loss nothing is known: it would be outside the budget."""

    num_rows = 0
    loss = torch.zeros(())

    def __init__(self, steps: PrivateSteps, pieces: Iterable[Batch], draws: Draws) -> None:
        self._steps, self._pieces, self._draws = steps, pieces, draws
        self._asked = False

    def __call__(self, point: Tensor, part: Part = "all", contrast: Contrast | None = None) -> Tensor:
        """Raises RuntimeError for what is not accounted for."""
        if self._asked or part != "all" or contrast is not None or not self._steps.stands_at(point):
            raise RuntimeError(
                "dp_sgd accounts for one gradient a step, of the whole batch's plain loss, where the model stands"
            )
        self._asked = True
        return self._steps.gradient(self._pieces, self._draws)


def _by_row(task: Any, spec: DpSgd) -> ByRow:
    for name in ("train_rows", *(["train_groups"] if spec.unit == "patient" else [])):
        if not hasattr(task, name):
            raise BadJob(
                f"privacy: dp_sgd takes rows by chance, and the task '{type(task).__name__}' has no '{name}' "
                "(silos.tasks.task.ByRow)"
            )
    return task  # type: ignore[no-any-return]


def _check_unchanged(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """Raises `BadJob` where a model has kept something of its inputs, to which no noise was added."""
    for name, each in before.items():
        if not torch.equal(each, after[name]):
            raise BadJob(
                f"privacy: training changes '{name}', a buffer of the model: what that keeps of the rows has no noise; "
                "use a model without it, or freeze it"
            )


def _rows_of_units(task: ByRow, spec: DpSgd) -> Sequence[Tensor]:
    """The rows of each unit."""
    if spec.column is None:
        return torch.split(torch.arange(task.num_examples("train")), 1)
    groups = task.train_groups(spec.column)
    order, sizes = np.argsort(groups, kind="stable"), np.bincount(groups)
    return torch.split(torch.from_numpy(order), sizes.tolist())

"""The local training loop in torch: phases, epochs, batches, steps."""

from collections.abc import Iterator

import torch
from torch import Tensor

from orchestrator.core.metrics import Sums
from orchestrator.core.protocols import LocalRun, Phase, Strategy
from orchestrator.core.random import seed_of
from silos.gradient import Gradient
from silos.network import Network
from silos.optimizer import Momentum, make_optimizer
from silos.precision import LossScale
from silos.site import Order
from silos.tasks.task import At, Batch, Task


class LocalTraining:
    """One local training of ``network`` on the batches of ``task``, in the directions of ``strategy``."""

    def __init__(
        self, network: Network, task: Task, strategy: Strategy, run: LocalRun, at: At, order: Order
    ) -> None:
        """``at``: the place of the first epoch."""
        self._network, self._task, self._strategy, self._run = network, task, strategy, run
        self._at, self._order = at, order
        self._scale = LossScale() if network.local.precision == "fp16" else None
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=network.device)
        self._seen = self._done = self._num_steps = 0

    @property
    def losses(self) -> Sums:
        """Sum of the losses of the rows trained on, and their number."""
        return Sums("mean", (float(self._loss_sum), float(self._seen)))

    def fit(self, length: Phase) -> None:
        """Train as the strategy divides ``length``."""
        torch.manual_seed(seed_of(self._at.seed, "train", self._at.silo, self._at.version))
        phases = self._strategy.phases(length)
        self._num_steps = sum(self._steps_of(phase) for phase in phases)
        self._network.call.train()
        self._network.flat.freeze_for(self._run.version)
        epoch = self._at.epoch
        for phase in phases:
            self._begin(phase)
            for batch in self._batches(phase, epoch):
                self._step(batch)
                if self._order.enough():
                    break
            epoch += self._epochs_of(phase)

    def _begin(self, phase: Phase) -> None:
        """With a new optimizer, on what is trained in this phase."""
        self._trains = phase.trains
        self._parameter = self._network.flat.parameter_of(phase.trains, self._run.version)
        self._optimizer = make_optimizer(self._network.local.optimizer, self._parameter)
        for group in self._optimizer.param_groups:
            group["lr"] = self._run.lr
        self._momentum = Momentum(self._optimizer.param_groups[0])

    def _batches(self, phase: Phase, first_epoch: int) -> Iterator[Batch]:
        steps = 0
        for epoch in range(first_epoch, first_epoch + (phase.steps or phase.epochs or 1)):
            at = self._at._replace(epoch=epoch)
            for batch in self._task.train_batches(at, self._network.local.batch_size):
                yield self._network.on_device(batch)
                steps += 1
                if phase.steps is not None and steps >= phase.steps:
                    return

    def _step(self, batch: Batch) -> None:
        run, grad_at = self._run, Gradient(self._network, self._task, batch, self._scale)
        if self._trains == "own":
            grad_at(run.params)
        else:
            self._put(self._strategy.direction(run, grad_at))
        self._clip()
        if self._scale is None or self._scale.accepts(self._network.flat.gradient):
            self._optimizer.step()
            if self._trains != "own":
                run.num_steps += 1
                run.path += self._momentum.next(run.lr)
        self._loss_sum += grad_at.loss * len(batch[0])
        self._seen += len(batch[0])
        self._done += 1
        self._order.tick("training", self._done, self._num_steps)

    def _put(self, direction: Tensor) -> None:
        """The strategy's direction where the optimizer looks for the gradient."""
        flat = self._network.flat
        shared = flat.gradient[: flat.num_shared]
        if direction.data_ptr() != shared.data_ptr():
            shared.copy_(direction)

    def _clip(self) -> None:
        most = self._network.local.clip_grad_norm
        if most is not None:
            torch.nn.utils.clip_grad_norm_([self._parameter], most)

    def _steps_of(self, phase: Phase) -> int:
        return phase.steps or self._steps_per_epoch * (phase.epochs or 1)

    def _epochs_of(self, phase: Phase) -> int:
        """Begun in this phase."""
        return phase.epochs or -(-(phase.steps or 1) // self._steps_per_epoch)

    @property
    def _steps_per_epoch(self) -> int:
        return -(-self._task.num_examples("train") // self._network.local.batch_size)

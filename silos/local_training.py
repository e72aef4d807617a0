"""The local training loop in torch: phases, epochs, batches, steps."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator.core.metrics import Sums
from orchestrator.core.protocols import LocalRun, Phase, Strategy
from orchestrator.core.random import seed_of
from orchestrator.core.vector import Vector
from silos.mid_round import EVERY_MINUTE, Rhythm
from silos.network import Network
from silos.optimizer import Momentum, kept_of, make_optimizer, remind
from silos.precision import LossScale, Overflow
from silos.resumption import Left, captured
from silos.site import Order
from silos.state import Kept
from silos.steps import ShuffledSteps, Step, Steps
from silos.tasks.task import At, Task


@dataclass(slots=True)
class Position:
    """How far a training is: a phase, an epoch of it, and batches done in the epoch, the phase and the training."""

    phase: int = 0
    epoch: int = 0
    in_epoch: int = 0
    in_phase: int = 0
    done: int = 0


class LocalTraining:
    """One local training of ``network`` on the batches of ``task``, in the directions of ``strategy``."""

    def __init__(
        self,
        network: Network,
        task: Task,
        strategy: Strategy,
        run: LocalRun,
        at: At,
        order: Order,
        rhythm: Rhythm = EVERY_MINUTE,
        steps: Steps | None = None,
    ) -> None:
        """``at``: the place of the first epoch. ``steps``: default: each row once in an epoch."""
        self.network, self.run, self.order, self._rhythm = network, run, order, rhythm
        self._strategy, self._at = strategy, at
        self.scale = LossScale() if network.local.precision == "fp16" else None
        self._steps = steps or ShuffledSteps(network, task, self.scale)
        self.position = Position()
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=network.device)
        self.seen = self._num_steps = 0

    @property
    def losses(self) -> Sums:
        """Sum of the losses of the rows trained on, and their number."""
        return Sums("mean", (float(self.loss_sum), float(self.seen)))

    def fit(self, length: Phase) -> None:
        """Train as the strategy divides ``length``; from where the same training was left, if it was."""
        torch.manual_seed(seed_of(self._at.seed, "train", self._at.silo, self._at.version))
        phases = self._strategy.phases(length)
        self._num_steps = sum(self._num_steps_of(phase) for phase in phases)
        self.network.call.train()
        self.network.flat.freeze_for(self.run.version)
        self._left = self._found()
        epoch = self._at.epoch + sum(self._epochs_of(phase) for phase in phases[: self.position.phase])
        for phase in phases[self.position.phase :]:
            with self._steps.phase(phase.trains, self.run.version):
                self._fit(phase, epoch)
            epoch += self._epochs_of(phase)

    def _fit(self, phase: Phase, epoch: int) -> None:
        self._begin(phase)
        for step in self._steps_of(phase, epoch):
            self._step(step)
            self._checkpoint()
            if self.order.enough():
                break
        self._end(phase)

    def _found(self) -> Left | None:
        """The same training, as it was left."""
        self._state_before = dict(self.order.state)
        found = self.order.mid_round.load() if self.order.mid_round is not None else None
        if found is None or found[1]["circumstances"] != self.circumstances:
            return None
        left = Left(*found)
        left.take_up(self)
        self.position = Position(**left.position)
        return left

    @property
    def circumstances(self) -> list[str]:
        """What decides the bits of a training besides the order."""
        network = self.network
        return [network.local.model_dump_json(), network.device.type, torch.__version__]

    def changed_state(self) -> dict[str, Vector]:
        """What the strategy has written into the silo's private state since the training began."""
        before = self._state_before
        return {name: each for name, each in self.order.state.items() if each is not before.get(name)}

    def _checkpoint(self) -> None:
        mid_round, done = self.order.mid_round, self.position.done
        if mid_round is not None and mid_round.due(self._rhythm, done):
            mid_round.save(done, *captured(self))

    def _begin(self, phase: Phase) -> None:
        """With a new optimizer, on what is trained in this phase; or with the one that the last training left."""
        self._trains = phase.trains
        self._parameter = self.network.flat.parameter_of(phase.trains, self.run.version)
        self.optimizer = make_optimizer(self.network.local.optimizer, self._parameter)
        self.momentum = Momentum(self.optimizer.param_groups[0])
        if self._left is not None:
            remind(self.optimizer, self._left.optimizer)
            self.momentum.held = self._left.held
        elif self._strategy.keeps_optimizer:
            remind(self.optimizer, Kept(self.order.state, f"optimizer/{phase.trains}", 0))
        for group in self.optimizer.param_groups:
            group["lr"] = self.run.lr

    def _end(self, phase: Phase) -> None:
        self.position = Position(phase=self.position.phase + 1, done=self.position.done)
        if self._strategy.keeps_optimizer:
            self.order.state.update(
                {f"optimizer/{phase.trains}/{name}": each for name, each in kept_of(self.optimizer).items()}
            )

    def _steps_of(self, phase: Phase, first_epoch: int) -> Iterator[Step]:
        at = self.position
        for epoch in range(at.epoch, phase.steps or phase.epochs or 1):
            at.epoch = epoch
            steps = self._steps.epoch(self._at._replace(epoch=first_epoch + epoch), at.in_epoch)
            self._take_up_draws()
            for step in steps:
                yield step
                if phase.steps is not None and at.in_phase >= phase.steps:
                    return
            at.in_epoch = 0

    def _take_up_draws(self) -> None:
        if self._left is not None:
            self._left.take_up_draws(self.network.device)
            self._left = None

    def _step(self, step: Step) -> None:
        at = self.position
        with suppress(Overflow):  # such a batch is left out
            self._descend(self.run, step)
        self.loss_sum += step.loss * step.num_rows
        self.seen += step.num_rows
        at.in_epoch, at.in_phase, at.done = at.in_epoch + 1, at.in_phase + 1, at.done + 1
        self.order.tick("training", at.done, self._num_steps)

    def _descend(self, run: LocalRun, grad_at: Step) -> None:
        if self._trains == "own":
            grad_at(run.params)
        else:
            self._put(self._strategy.direction(run, grad_at))
        most = self.network.local.clip_grad_norm
        if most is not None:
            torch.nn.utils.clip_grad_norm_([self._parameter], most)
        self.optimizer.step()
        if self._trains != "own":
            run.num_steps += 1
            run.path += self.momentum.next(run.lr)

    def _put(self, direction: Tensor) -> None:
        """The strategy's direction where the optimizer looks for the gradient."""
        flat = self.network.flat
        shared = flat.gradient[: flat.num_shared]
        if direction.data_ptr() != shared.data_ptr():
            shared.copy_(direction)

    def _num_steps_of(self, phase: Phase) -> int:
        return phase.steps or self._steps.steps_per_epoch * (phase.epochs or 1)

    def _epochs_of(self, phase: Phase) -> int:
        """Begun in this phase."""
        return phase.epochs or -(-(phase.steps or 1) // self._steps.steps_per_epoch)

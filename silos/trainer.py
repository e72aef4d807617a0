"""The local training loop in torch."""

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orchestrator.core.metrics import MetricSums, Sums, pooled
from orchestrator.core.protocols import Contrast, LocalRun, Part, Phase
from orchestrator.core.random import seed_of
from orchestrator.core.vector import Parts, Vector
from orchestrator.job import Job
from orchestrator.local import Local
from silos.flat_model import FlatModel, layers, private_buffers
from silos.optimizer import Momentum, make_optimizer
from silos.precision import LossScale
from silos.site import Order, Tick, Trained
from silos.state import Kept
from silos.tasks.task import At, Batch, Task

TEST_BATCH = 512
_GENERATOR = threading.Lock()
"""Torch's generator belongs to the process: silos in threads of one must not seed it at once."""


class TorchTrainer:
    """Trains the job's model on the task's batches. One model, one set of flat vectors, reused every round."""

    def __init__(
        self, job: Job, silo: str, task: Task, device: str = "auto", local: Local | None = None
    ) -> None:
        """``local``: the silo's own settings of local training, where they differ from the job's."""
        self.job, self.silo, self.task, self.local = job, silo, task, local or job.local
        self.torch_device = torch.device(_device(device))
        torch.set_num_threads(job.local.threads)
        with _GENERATOR:
            torch.manual_seed(job.seed)
            module = task.model()
        if job.local.channels_last:
            module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        private = (*job.private, *layers(module, job.strategy.private_layers))
        self.flat = FlatModel(
            module, job.shared, private, self.torch_device, frozen=job.frozen, unfreeze=job.unfreeze
        )
        self.call = torch.compile(module) if job.local.compile else module
        self._first_parts = self.flat.parts()
        self._first_private = self._private_state()
        make_optimizer(
            self.local.optimizer, self.flat.parameter
        )  # a wrong optimizer name or argument is an error now, not in round 0

    @property
    def schema_digest(self) -> str:
        return self.flat.schema_digest

    @property
    def num_parameters(self) -> int:
        return self.flat.num_parameters

    @property
    def num_shared(self) -> int:
        return self.flat.num_shared + self.flat.buffers.numel()

    @property
    def num_examples(self) -> dict[str, int]:
        return {"train": self.task.num_examples("train"), "test": self.task.num_examples("test")}

    @property
    def device(self) -> str:
        return str(self.torch_device)

    def describe(self) -> dict[str, Any]:
        batch = next(self.task.test_batches(1), None) or next(self.task.train_batches(At(0, "", 0, 0), 1))
        return {
            "entries": [entry._asdict() for entry in self.flat.entries],
            "input_shape": list(batch[0].shape[1:]),
            "input_dtype": str(batch[0].dtype).removeprefix("torch."),
        }

    def initial(self) -> Parts:
        return self._first_parts

    def load(self, order: Order) -> dict[str, Tensor]:
        """Put the received model and the silo's private state in place; the received parts on the device."""
        received = self._tensors(order.received)
        self.flat.load(received)
        self._restore_private(order.state)
        return received

    def evaluate(self, order: Order) -> MetricSums:
        self.load(order)
        return self.measure_test(order.tick)

    def train(self, order: Order) -> Trained:
        began = perf_counter()
        received = self.load(order)
        loaded = perf_counter()
        metrics = self.measure_test(order.tick)
        evaluated = perf_counter()
        run = self._run(order, received)
        losses, num_examples = self._fit(run, order)
        trained = perf_counter()
        self._keep_private(order.state)
        buffers = self._buffer_deltas(received)
        report = self.job.strategy.report(run)
        parts = {name: _to_numpy(part) for name, part in {**report.parts, **buffers}.items()}
        return Trained(
            parts=parts,
            scalars=dict(report.scalars),
            num_examples=num_examples,
            num_steps=run.num_steps,
            metrics=metrics,
            train_metrics={"loss": losses},
            seconds={
                "load": loaded - began,
                "evaluate": evaluated - loaded,
                "train": trained - evaluated,
                "report": perf_counter() - trained,
            },
        )

    def _run(self, order: Order, received: Mapping[str, Tensor]) -> LocalRun:
        flat = self.flat
        extra = {name: part for name, part in received.items() if name not in ("params", "buffers")}
        return LocalRun(
            params=flat.shared,
            anchor=received["params"],
            received=extra,
            kept=_DeviceKept(Kept(order.state, "strategy", flat.num_shared), self.torch_device),
            exact_path=self.local.optimizer.is_sgd,
            version=order.version,
            buffers=flat.buffers if flat.buffers.numel() else None,
            own=flat.private if flat.private.numel() else None,
            own_gradient=flat.gradient[flat.num_shared :] if flat.private.numel() else None,
        )

    def _fit(self, run: LocalRun, order: Order) -> tuple[Sums, int]:
        """Train; the sum of batch losses and the number of the silo's training rows."""
        torch.manual_seed(seed_of(self.job.seed, "train", self.silo, order.version))
        run.lr = self.local.optimizer.lr * self.local.schedule.factor(order.version, self.job.rounds.total)
        phases = self.job.strategy.phases(self._length(order))
        fit = _Fit(self, run, order.tick, sum(self._num_steps(phase) for phase in phases))
        self.call.train()
        self.flat.freeze_for(order.version)
        epoch = 0
        for phase in phases:
            fit.begin(phase)
            for batch in self._batches(order.version, phase, epoch):
                fit.step(batch)
                if order.enough():
                    break
            epoch += self._num_epochs(phase)
        return fit.losses, self.num_examples["train"]

    def _length(self, order: Order) -> Phase:
        """As the driver asks, or else as the job or the silo's own document says."""
        if order.num_steps is not None:
            return Phase(steps=order.num_steps)
        if self.local.steps is not None:
            return Phase(steps=self.local.steps)
        return Phase(epochs=self.local.num_epochs)

    def _batches(self, version: int, phase: Phase, first_epoch: int) -> Iterator[Batch]:
        steps = 0
        for epoch in range(first_epoch, first_epoch + (phase.steps or phase.epochs or 1)):
            at = At(self.job.seed, self.silo, version, epoch)
            for batch in self.task.train_batches(at, self.local.batch_size):
                yield self.on_device(batch)
                steps += 1
                if phase.steps is not None and steps >= phase.steps:
                    return

    def _num_steps(self, phase: Phase) -> int:
        return phase.steps or self._steps_per_epoch * (phase.epochs or 1)

    def _num_epochs(self, phase: Phase) -> int:
        """Begun in this phase."""
        return phase.epochs or -(-(phase.steps or 1) // self._steps_per_epoch)

    @property
    def _steps_per_epoch(self) -> int:
        return -(-self.num_examples["train"] // self.local.batch_size)

    def measure_test(self, tick: Tick) -> MetricSums:
        """Of the model in place, on the test split."""
        total = -(-self.num_examples["test"] // TEST_BATCH)
        return self.measure(self.task.test_batches(TEST_BATCH), lambda done: tick("evaluating", done, total))

    def measure(self, batches: Iterable[Batch], done: Callable[[int], None] = lambda _: None) -> MetricSums:
        """Of the model in place; ``done`` is told the number of batches so far."""
        self.call.eval()
        reports: list[MetricSums] = []
        with torch.inference_mode():
            for batch in batches:
                with self.autocast():
                    reports.append(self.task.measure(self.call, self.on_device(batch)))
                done(len(reports))
        return pooled(reports)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Mixed precision as the job asks for it."""
        if self.job.local.precision == "float32":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.job.local.precision == "bf16" else torch.float16
        return torch.autocast(self.torch_device.type, dtype=dtype)

    def on_device(self, batch: Batch) -> Batch:
        moved = tuple(tensor.to(self.torch_device, non_blocking=True) for tensor in batch)
        if self.local.channels_last and moved[0].dim() == 4:
            moved = (moved[0].contiguous(memory_format=torch.channels_last), *moved[1:])
        return moved

    def _tensors(self, parts: Parts) -> dict[str, Tensor]:
        return {name: _from_numpy(part).to(self.torch_device) for name, part in parts.items()}

    def _buffer_deltas(self, received: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self.flat.buffers.numel():
            return {}
        return {"buffers": self.flat.buffers - received["buffers"]}

    def _private_state(self) -> dict[str, Vector]:
        state = {name: _to_numpy(buffer).copy() for name, buffer in private_buffers(self.flat).items()}
        private = _to_numpy(self.flat.private)
        return {**state, "": private.copy()} if private.size else state

    def _restore_private(self, state: Mapping[str, Vector]) -> None:
        """Private layers and counters as the version before left them, or as they were at the start."""
        buffers = private_buffers(self.flat)
        for name, first in self._first_private.items():
            value = torch.from_numpy(np.array(state.get(f"private/{name}", first)))
            target = self.flat.private if name == "" else buffers[name]
            target.copy_(value.reshape(target.shape))

    def _keep_private(self, state: Any) -> None:
        for name, value in self._private_state().items():
            state[f"private/{name}"] = value


class _Fit:
    """One local training, step by step."""

    def __init__(self, trainer: TorchTrainer, run: LocalRun, tick: Tick, num_steps: int) -> None:
        self._trainer, self._run, self._tick, self._num_steps = trainer, run, tick, num_steps
        self._scale = LossScale() if trainer.local.precision == "fp16" else None
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=trainer.torch_device)
        self._seen = self._done = 0

    @property
    def losses(self) -> Sums:
        return Sums("mean", (float(self._loss_sum), float(self._seen)))

    def begin(self, phase: Phase) -> None:
        """With a new optimizer, on what is trained in this phase."""
        trainer = self._trainer
        self._trains = phase.trains
        self._parameter = trainer.flat.parameter_of(phase.trains, self._run.version)
        self._optimizer = make_optimizer(trainer.local.optimizer, self._parameter)
        for group in self._optimizer.param_groups:
            group["lr"] = self._run.lr
        self._momentum = Momentum(self._optimizer.param_groups[0])

    def step(self, batch: Batch) -> None:
        run, grad_at = self._run, Gradient(self._trainer, batch, self._scale)
        if self._trains == "own":
            grad_at(run.params)
        else:
            self._put(self._trainer.job.strategy.direction(run, grad_at))
        self._clip()
        if self._scale is None or self._scale.accepts(self._trainer.flat.gradient):
            self._optimizer.step()
            if self._trains != "own":
                run.num_steps += 1
                run.path += self._momentum.next(run.lr)
        self._loss_sum += grad_at.loss * len(batch[0])
        self._seen += len(batch[0])
        self._done += 1
        self._tick("training", self._done, self._num_steps)

    def _put(self, direction: Tensor) -> None:
        """The strategy's direction where the optimizer looks for the gradient."""
        flat = self._trainer.flat
        shared = flat.gradient[: flat.num_shared]
        if direction.data_ptr() != shared.data_ptr():
            shared.copy_(direction)

    def _clip(self) -> None:
        most = self._trainer.local.clip_grad_norm
        if most is not None:
            torch.nn.utils.clip_grad_norm_([self._parameter], most)


class Gradient:
    """Gradient of one batch's loss at any point of the shared parameters (`GradAt`)."""

    def __init__(self, trainer: TorchTrainer, batch: Batch, scale: LossScale | None = None) -> None:
        self._trainer, self._batch, self._scale = trainer, batch, scale
        self.loss: Tensor = torch.zeros(())

    def __call__(self, point: Tensor, part: Part = "all", contrast: Contrast | None = None) -> Tensor:
        flat, batch = self._trainer.flat, _part_of(self._batch, part)
        if point.data_ptr() == flat.shared.data_ptr():
            return self._backward(batch)
        here = flat.shared.clone()
        flat.shared.copy_(point)
        gradient = self._backward(batch)
        flat.shared.copy_(here)
        return gradient

    def _backward(self, batch: Batch) -> Tensor:
        trainer = self._trainer
        trainer.flat.clear_gradient()
        with trainer.autocast():
            loss = trainer.task.loss(trainer.call, batch)
        if self._scale is None:
            loss.backward()
        else:
            (loss * self._scale.factor).backward()
            trainer.flat.gradient.div_(self._scale.factor)
        self.loss = loss.detach()
        return trainer.flat.gradient[: trainer.flat.num_shared]


def _part_of(batch: Batch, part: Part) -> Batch:
    """The rows of a part; a batch of one row is its own support and query."""
    half = (len(batch[0]) + 1) // 2
    if part == "all" or len(batch[0]) == 1:
        return batch
    rows = slice(None, half) if part == "support" else slice(half, None)
    return tuple(tensor[rows] for tensor in batch)


class _DeviceKept:
    """A strategy's memory, as tensors on the training device."""

    def __init__(self, kept: Kept, device: torch.device) -> None:
        self._kept, self._device = kept, device
        self._tensors: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._tensors:
            self._tensors[name] = torch.from_numpy(np.array(self._kept[name])).to(self._device)
        return self._tensors[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        self._tensors[name] = value
        self._kept[name] = _to_numpy(value)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors or name in self._kept


def _device(wish: str) -> str:
    if wish != "auto":
        return wish
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _from_numpy(vector: Vector) -> Tensor:
    """A tensor on the array's own memory. Received models are read-only, and nothing here writes to them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(vector)


def _to_numpy(tensor: Any) -> Vector:
    vector: Vector = tensor.detach().to("cpu").reshape(-1).float().numpy()
    return vector

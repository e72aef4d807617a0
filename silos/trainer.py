"""The local training loop in torch."""

import contextlib
import threading
import warnings
from collections.abc import Iterator, Mapping
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orchestrator.core.metrics import MetricSums, Sums, pooled
from orchestrator.core.protocols import LocalRun
from orchestrator.core.random import seed_of
from orchestrator.core.vector import Parts, Vector
from orchestrator.job import Job
from silos.flat_model import FlatModel, private_buffers
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
        self, job: Job, silo: str, task: Task, device: str = "auto", batch_size: int | None = None
    ) -> None:
        self.job, self.silo, self.task = job, silo, task
        self.torch_device = torch.device(_device(device))
        torch.set_num_threads(job.local.threads)
        with _GENERATOR:
            torch.manual_seed(job.seed)
            module = task.model()
        if job.local.channels_last:
            module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.flat = FlatModel(module, job.shared, job.private, self.torch_device)
        self.call = torch.compile(module) if job.local.compile else module
        self.batch_size = batch_size or job.local.batch_size
        self._first_parts = self.flat.parts()
        self._first_private = self._private_state()
        make_optimizer(
            job.local.optimizer, self.flat.parameter
        )  # a wrong optimizer name or argument is an error now, not in round 0

    @property
    def schema_digest(self) -> str:
        return self.flat.schema_digest

    @property
    def num_parameters(self) -> int:
        return self.flat.vector.numel()

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

    def evaluate(self, order: Order) -> MetricSums:
        self.flat.load(self._on_device(order.received))
        self._restore_private(order.state)
        return self._measure(order.tick)

    def train(self, order: Order) -> Trained:
        began = perf_counter()
        received = self._on_device(order.received)
        self.flat.load(received)
        self._restore_private(order.state)
        loaded = perf_counter()
        metrics = self._measure(order.tick)
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
        extra = {name: part for name, part in received.items() if name not in ("params", "buffers")}
        kept = _DeviceKept(Kept(order.state, "strategy", self.flat.num_shared), self.torch_device)
        return LocalRun(params=self.flat.shared, anchor=received["params"], received=extra, kept=kept)

    def _fit(self, run: LocalRun, order: Order) -> tuple[Sums, int]:
        """Train; the sum of batch losses and the number of the silo's training rows."""
        job, local = self.job, self.job.local
        torch.manual_seed(seed_of(job.seed, "train", self.silo, order.version))
        optimizer = make_optimizer(local.optimizer, self.flat.parameter)
        run.lr = local.optimizer.lr * local.schedule.factor(order.version, job.rounds.total)
        for group in optimizer.param_groups:
            group["lr"] = run.lr
        momentum = Momentum(optimizer.param_groups[0])
        scale = LossScale() if local.precision == "fp16" else None
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.torch_device)
        seen, total = 0, self._total_steps()
        self.call.train()
        for batch in self._batches(order.version):
            grad_at = _Gradient(self, batch, scale)
            self._apply(job.strategy.direction(run, grad_at))
            if scale is None or scale.accepts(self.flat.gradient):
                optimizer.step()
                run.num_steps += 1
                run.path += momentum.next(run.lr)
            loss_sum += grad_at.loss * len(batch[0])
            seen += len(batch[0])
            order.tick("training", run.num_steps, total)
        return Sums("mean", (float(loss_sum), float(seen))), self.num_examples["train"]

    def _apply(self, direction: Tensor) -> None:
        """Put the strategy's direction where the optimizer looks for the gradient."""
        shared = self.flat.gradient[: self.flat.num_shared]
        if direction.data_ptr() != shared.data_ptr():
            shared.copy_(direction)
        if self.job.local.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_([self.flat.parameter], self.job.local.clip_grad_norm)

    def _batches(self, version: int) -> Iterator[Batch]:
        local, steps = self.job.local, 0
        epochs = local.num_epochs if local.steps is None else local.steps
        for epoch in range(epochs):
            at = At(self.job.seed, self.silo, version, epoch)
            for batch in self.task.train_batches(at, self.batch_size):
                yield self._moved(batch)
                steps += 1
                if local.steps is not None and steps >= local.steps:
                    return

    def _total_steps(self) -> int:
        per_epoch = -(-self.num_examples["train"] // self.batch_size)
        return self.job.local.steps or per_epoch * self.job.local.num_epochs

    def _measure(self, tick: Tick) -> MetricSums:
        self.call.eval()
        reports, done = [], 0
        total = -(-self.num_examples["test"] // TEST_BATCH)
        with torch.inference_mode():
            for batch in self.task.test_batches(TEST_BATCH):
                with self.autocast():
                    reports.append(self.task.measure(self.call, self._moved(batch)))
                done += 1
                tick("evaluating", done, total)
        return pooled(reports)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Mixed precision as the job asks for it."""
        if self.job.local.precision == "float32":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.job.local.precision == "bf16" else torch.float16
        return torch.autocast(self.torch_device.type, dtype=dtype)

    def _moved(self, batch: Batch) -> Batch:
        moved = tuple(tensor.to(self.torch_device, non_blocking=True) for tensor in batch)
        if self.job.local.channels_last and moved[0].dim() == 4:
            moved = (moved[0].contiguous(memory_format=torch.channels_last), *moved[1:])
        return moved

    def _on_device(self, parts: Parts) -> dict[str, Tensor]:
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


class _Gradient:
    """Gradient of one batch's loss at any point of the shared parameters. The result lies in the model's
    gradient vector until the next call."""

    def __init__(self, trainer: TorchTrainer, batch: Batch, scale: LossScale | None) -> None:
        self._trainer, self._batch, self._scale = trainer, batch, scale
        self.loss: Tensor = torch.zeros(())

    def __call__(self, point: Tensor) -> Tensor:
        flat = self._trainer.flat
        if point.data_ptr() == flat.shared.data_ptr():
            return self._backward()
        here = flat.shared.clone()
        flat.shared.copy_(point)
        gradient = self._backward()
        flat.shared.copy_(here)
        return gradient

    def _backward(self) -> Tensor:
        trainer = self._trainer
        trainer.flat.clear_gradient()
        with trainer.autocast():
            loss = trainer.task.loss(trainer.call, self._batch)
        if self._scale is None:
            loss.backward()
        else:
            (loss * self._scale.factor).backward()
            trainer.flat.gradient.div_(self._scale.factor)
        self.loss = loss.detach()
        return trainer.flat.gradient[: trainer.flat.num_shared]


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

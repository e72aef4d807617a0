"""A silo's trainer in torch: loads what it received, measures, trains, reports."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from orchestrator.core.errors import BadJob
from orchestrator.core.metrics import MetricSums, pooled
from orchestrator.core.protocols import LocalRun, Phase
from orchestrator.core.random import seed_of
from orchestrator.core.vector import Parts, Vector
from orchestrator.dp_sgd_legality import unfit
from orchestrator.job import Job
from orchestrator.local import Local
from silos.adapters import adapted
from silos.contrast import last_linear
from silos.flat_model import FlatModel, layers, private_buffers
from silos.local_training import LocalTraining
from silos.mid_round import EVERY_MINUTE, Rhythm
from silos.network import Network
from silos.normalisation import unmixed
from silos.optimizer import make_optimizer
from silos.private_plan import PrivatePlan
from silos.private_steps import PrivateSteps
from silos.site import Order, Tick, Trained
from silos.spending import Charge, Spend
from silos.state import Kept
from silos.steps import ShuffledSteps, Steps, length
from silos.symmetries import symmetries_of
from silos.tasks.task import At, Batch, Task
from silos.tensors import DeviceKept, device_of, on_device, to_numpy

TEST_BATCH = 512
_GENERATOR = threading.Lock()
"""Torch's generator belongs to the process: silos in threads of one must not seed it at once."""


class TorchTrainer:
    """Trains the job's model on the task's batches. One model, one set of flat vectors, reused every round."""

    def __init__(
        self,
        job: Job,
        silo: str,
        task: Task,
        device: str = "auto",
        local: Local | None = None,
        rhythm: Rhythm = EVERY_MINUTE,
    ) -> None:
        """``local``: the silo's own settings of local training, where they differ from the job's; ``rhythm``: of the
        checkpoints of a training."""
        self.job, self.silo, self.task, self.local = job, silo, task, local or job.local
        self.rhythm = rhythm
        self.torch_device = device_of(device)
        torch.set_num_threads(job.local.threads)
        with _GENERATOR:
            torch.manual_seed(job.seed)
            module = unmixed(adapted(task.model(), job.adapters, job.seed), job)
            torch.manual_seed(seed_of(job.seed, "alone", silo))
            self._own_start = unmixed(task.model(), job).state_dict() if job.strategy.alone else {}
        if job.strategy.contrasts:
            last_linear(module)
        if job.local.channels_last:
            module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.flat = FlatModel(
            *(module, job.shared, _private(job, module), self.torch_device),
            frozen=("*",) if job.adapters is not None else job.frozen,
            unfreeze=job.unfreeze,
        )
        self.network = Network(self.flat, self.local, self.torch_device)
        self.private = self._private_steps()
        """Where the job wants differential privacy of its records."""
        self._plan = self._private_plan()
        self._symmetries = symmetries_of(self.flat) if job.strategy.permutes else ()
        self.loaded = ""
        self._begin()
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
            **(
                {"symmetries": [asdict(each) for each in self._symmetries]} if self.job.strategy.whole else {}
            ),
        }

    def begin_with(self, weights: Mapping[str, NDArray[np.float32]], digest: str) -> None:
        self.flat.load(on_device(self._first_parts, self.torch_device))
        self._restore_private({})
        self.flat.load_tensors(weights)
        self.loaded = digest
        self._begin()

    def _begin(self) -> None:
        """What the model is now is what the first version has."""
        self._first_parts = self.flat.parts()
        self._first_private = self._private_state()

    def initial(self) -> Parts:
        return self._first_parts

    def load(self, order: Order) -> dict[str, Tensor]:
        """Put the received model and the silo's private state in place; the received parts on the device."""
        received = on_device(order.received, self.torch_device)
        self.flat.load(received)
        self._restore_private(order.state)
        return received

    def evaluate(self, order: Order) -> MetricSums:
        self.load(order)
        return self.measure_test(order.tick)

    def settle(self, had: Sequence[Charge], run_id: str, order: Order | None = None) -> None:
        if self._plan is not None and order is None:
            self._plan.settle(had, run_id)
        elif self._plan is not None and order is not None:
            self._plan.settle(had, run_id, order.version, order.num_steps)

    def most(self, version: int) -> Spend | None:
        return None if self._plan is None else self._plan.most(version)

    def spends(self, order: Order) -> Spend | None:
        return None if self._plan is None else self._plan.spends(order.version, order.num_steps)

    def train(self, order: Order) -> Trained:
        began = perf_counter()
        received = self.load(order)
        loaded = perf_counter()
        metrics = self.measure_test(order.tick)
        evaluated = perf_counter()
        run = self.local_run(order, received)
        self.job.strategy.begin(run)
        if self.job.strategy.alone and order.version == 0:
            self._start_alone()
        seed = seed_of(self.job.seed, "draw", order.draw) if order.draw else self.job.seed
        at = At(seed, self.silo, order.version, 0)
        training = LocalTraining(
            *(self.network, self.task, self.job.strategy, run, at, order, self.rhythm), steps=self.private
        )
        training.fit(self.length(order))
        trained = perf_counter()
        self.keep_private(order.state)
        report = self.job.strategy.report(run)
        buffers = self._buffer_deltas(received)
        parts = {name: to_numpy(part) for name, part in {**report.parts, **buffers}.items()}
        return Trained(
            parts=parts,
            scalars=dict(report.scalars),
            num_examples=self.num_examples["train"],
            num_steps=run.num_steps,
            metrics=metrics,
            train_metrics={} if self.private else {"loss": training.losses},
            seconds={
                "load": loaded - began,
                "evaluate": evaluated - loaded,
                "train": trained - evaluated,
                "report": perf_counter() - trained,
                **_checkpoints(order),
            },
        )

    def kept(self, order: Order) -> DeviceKept:
        """The strategy's memory in the order's state, on the training device."""
        return DeviceKept(Kept(order.state, "strategy", self.flat.num_shared), self.torch_device)

    @property
    def steps_per_training(self) -> int:
        """Local steps, as the job, or the silo's own document, says."""
        return self.local.steps or self._steps.steps_per_epoch * self.local.num_epochs

    @property
    def _steps(self) -> Steps:
        return self.private or ShuffledSteps(self.network, self.task)

    def _private_steps(self) -> PrivateSteps | None:
        spec = self.job.dp_sgd
        if spec is None:
            return None
        for reason in unfit(self.local):
            raise BadJob(f"{reason} (of the job, or of silo.yaml)")
        return PrivateSteps(self.network, self.task, spec)

    def _private_plan(self) -> PrivatePlan | None:
        spec = self.job.dp_sgd
        return PrivatePlan(self.job, spec, self.local, self.private) if spec and self.private else None

    def local_run(self, order: Order, received: Mapping[str, Tensor]) -> LocalRun:
        """A training from the received parts, as the strategy sees it."""
        flat = self.flat
        extra = {name: part for name, part in received.items() if name not in ("params", "buffers")}
        return LocalRun(
            params=flat.shared,
            anchor=received["params"],
            received=extra,
            kept=self.kept(order),
            lr=self.local.optimizer.lr * self.local.schedule.factor(order.version, self.job.rounds.total),
            exact_path=self.local.optimizer.is_sgd,
            version=order.version,
            buffers=flat.buffers if flat.buffers.numel() else None,
            own=flat.private if flat.private.numel() else None,
            own_gradient=flat.gradient[flat.num_shared :] if flat.private.numel() else None,
            silo=self.silo,
            symmetries=self._symmetries,
        )

    def _start_alone(self) -> None:
        """The model of this silo's own seed, in place of the received one."""
        self.flat.module.load_state_dict(self._own_start)

    def length(self, order: Order) -> Phase:
        """As the driver asks, or else as the job or the silo's own document says."""
        return length(self.job.strategy, self.local, order.version, order.num_steps)

    def measure_test(self, tick: Tick) -> MetricSums:
        """Of the model in place, on the test split."""
        total = -(-self.num_examples["test"] // TEST_BATCH)
        return self.measure(self.task.test_batches(TEST_BATCH), lambda done: tick("evaluating", done, total))

    def measure(self, batches: Iterable[Batch], done: Callable[[int], None] = lambda _: None) -> MetricSums:
        """Of the model in place; ``done`` is told the number of batches so far."""
        network = self.network
        network.call.eval()
        reports: list[MetricSums] = []
        with torch.inference_mode():
            for batch in batches:
                with network.autocast():
                    reports.append(self.task.measure(network.call, network.on_device(batch)))
                done(len(reports))
        return pooled(reports)

    def _buffer_deltas(self, received: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self.flat.buffers.numel():
            return {}
        return {"buffers": self.flat.buffers - received["buffers"]}

    def _private_state(self) -> dict[str, Vector]:
        state = {name: to_numpy(buffer).copy() for name, buffer in private_buffers(self.flat).items()}
        private = to_numpy(self.flat.private)
        return {**state, "": private.copy()} if private.size else state

    def _restore_private(self, state: Mapping[str, Vector]) -> None:
        """Private layers and counters as the version before left them, or as they were at the start."""
        buffers = private_buffers(self.flat)
        for name, first in self._first_private.items():
            value = torch.from_numpy(np.array(state.get(f"private/{name}", first)))
            target = self.flat.private if name == "" else buffers[name]
            target.copy_(value.reshape(target.shape))

    def keep_private(self, state: Any) -> None:
        """What stays at the silo, into its state."""
        for name, value in self._private_state().items():
            state[f"private/{name}"] = value


def _private(job: Job, module: nn.Module) -> tuple[str, ...]:
    """Globs over names of what stays at the silo; raises `BadJob` where the strategy finds no layer of its kind."""
    strategy = job.strategy
    own = strategy.private_globs or layers(module, strategy.private_layers)
    if strategy.private_layers == "norm" and not own:
        raise BadJob(
            f"strategy.name: {strategy.name} keeps layers of normalisation at the silo, and this model has none: "
            "that is fedavg"
        )
    return (*job.private, *own)


def _checkpoints(order: Order) -> dict[str, float]:
    """Seconds of the training that went into checkpoints, where there were any."""
    seconds = 0.0 if order.mid_round is None else order.mid_round.seconds
    return {"checkpoint": seconds} if seconds else {}

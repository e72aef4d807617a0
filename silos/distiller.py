"""FedMD at a silo: a network of its own, and what it says about public rows."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.core.metrics import MetricSums
from orchestrator.core.protocols import LocalRun, Phase
from orchestrator.core.vector import Parts
from orchestrator.job import Job
from orchestrator.local import Local
from orchestrator.strategies.fedmd import FedMD
from silos.local_training import LocalTraining
from silos.mid_round import EVERY_MINUTE, Rhythm
from silos.site import Order, Trained
from silos.tasks import own
from silos.tasks.order import shuffled
from silos.tasks.task import At, Batch, Split, Task
from silos.tensors import on_device, to_numpy
from silos.trainer import TEST_BATCH, TorchTrainer

PUBLIC = At(0, "public", 0, 0)
"""The order of the public rows, at every silo and in every job."""


@dataclass(frozen=True, slots=True)
class Public:
    """Rows that all silos hold alike."""

    inputs: Tensor
    fingerprint: str
    """Digest of the files."""

    @classmethod
    def of(cls, task: Task, fingerprint: str) -> "Public":
        """The training rows of a task; what its labels say is of no use here."""
        inputs = torch.cat([batch[0] for batch in task.train_batches(PUBLIC, TEST_BATCH)])
        return cls(inputs[: task.num_examples("train")], fingerprint)


class Digest:
    """The task of saying about the public rows what all say (`silos.tasks.task.Task`, as far as training goes)."""

    def __init__(self, inputs: Tensor, said: Tensor, temperature: float) -> None:
        """``said``: logits ``[rows, outputs]``."""
        self._inputs, self._said, self._temperature = inputs, said.cpu(), temperature

    def num_examples(self, split: Split) -> int:
        return len(self._inputs)

    def train_batches(self, at: At, batch_size: int) -> Iterator[Batch]:
        for rows in shuffled(len(self._inputs), at, batch_size):
            yield self._inputs[rows], self._said[rows]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return distance(own.logits(model(batch[0])), batch[1], self._temperature)


def distance(logits: Tensor, said: Tensor, temperature: float) -> Tensor:
    """``T^2 * KL(softmax(said / T) | softmax(logits / T))``, a mean over the rows (Hinton et al. 2015, arXiv
    1503.02531); one output is the logit of the second of two classes."""
    ours, theirs = (_classes(each) / temperature for each in (logits.reshape(said.shape), said))
    divergence = functional.kl_div(
        ours.log_softmax(1), theirs.log_softmax(1), reduction="batchmean", log_target=True
    )
    return temperature**2 * divergence


def _classes(logits: Tensor) -> Tensor:
    logits = logits.float()
    return functional.pad(logits, (1, 0)) if logits.shape[1] == 1 else logits


class Distiller(TorchTrainer):
    """Trains the silo's own network: first to say what all say, then on the silo's rows. No parameter leaves."""

    def __init__(
        self,
        job: Job,
        silo: str,
        task: Task,
        public: Public,
        device: str = "auto",
        local: Local | None = None,
        rhythm: Rhythm = EVERY_MINUTE,
    ) -> None:
        """``task`` has the silo's own network. Raises `BadInput` where that cannot read the public rows."""
        super().__init__(job, silo, task, device, local, rhythm)
        assert isinstance(job.strategy, FedMD)
        self.strategy, self.public = job.strategy, public
        said: Tensor = own.call(f"local.model on the public set '{job.strategy.public}'", self.say)
        self.shape = tuple(said.shape)
        """Public rows, outputs."""

    @property
    def schema_digest(self) -> str:
        """Of the public rows and the number of outputs: the silos' networks may differ."""
        return hashlib.sha256(json.dumps([self.public.fingerprint, self.shape]).encode()).hexdigest()

    @property
    def num_shared(self) -> int:
        return self.shape[0] * self.shape[1]

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "entries": []}

    def initial(self) -> Parts:
        """Nothing is agreed on yet."""
        return {"params": np.zeros(self.num_shared, np.float32)}

    def load(self, order: Order) -> dict[str, Tensor]:
        """The silo's own model, as its last training left it."""
        first = super().initial()
        parts = {name: order.state.get(f"model/{name}", each) for name, each in first.items()}
        return super().load(replace(order, received=parts))

    def train(self, order: Order) -> Trained:
        began = perf_counter()
        received, consensus = self.load(order), on_device(order.received, self.torch_device)["params"]
        loaded = perf_counter()
        metrics: MetricSums = self.measure_test(order.tick)
        evaluated = perf_counter()
        if consensus.any():
            self._digest(consensus, order, received)
        run = self.local_run(order, received)
        training = self._training(self.task, run, order)
        training.fit(self.length(order))
        trained = perf_counter()
        order.state.update({f"model/{name}": each for name, each in self.flat.parts().items()})
        self.keep_private(order.state)
        said = LocalRun(params=self.say().reshape(-1), anchor=consensus, received={}, kept=run.kept)
        report = self.strategy.report(said)
        return Trained(
            parts={name: to_numpy(part) for name, part in report.parts.items()},
            scalars=dict(report.scalars),
            num_examples=self.num_examples["train"],
            num_steps=run.num_steps,
            metrics=metrics,
            train_metrics={"loss": training.losses},
            seconds={
                "load": loaded - began,
                "evaluate": evaluated - loaded,
                "train": trained - evaluated,
                "report": perf_counter() - trained,
            },
        )

    def _digest(self, consensus: Tensor, order: Order, received: dict[str, Tensor]) -> None:
        """Learn to say it. A training that goes on after the silo's death does this part again."""
        task = Digest(self.public.inputs, consensus.reshape(self.shape), self.strategy.temperature)
        run = self.local_run(order, received)
        training = self._training(task, run, replace(order, mid_round=None))
        training.fit(Phase(epochs=self.strategy.digest_epochs))

    def _training(self, task: Any, run: LocalRun, order: Order) -> LocalTraining:
        at = At(self.job.seed, self.silo, order.version, 0)
        return LocalTraining(self.network, task, self.strategy, run, at, order, self.rhythm)

    @torch.no_grad()
    def say(self) -> Tensor:
        """Logits of the public rows, ``[rows, outputs]``."""
        network = self.network
        network.call.eval()
        said = []
        for inputs in self.public.inputs.split(TEST_BATCH):
            with network.autocast():
                logits = own.logits(network.call(network.on_device((inputs,))[0]))
            said.append(logits.float().reshape(len(inputs), -1))
        return torch.cat(said)

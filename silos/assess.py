"""What the federation does for this silo: its model beside what the silo could have alone, on the silo's own test rows.

The received model has been trained on the rows that decide on fine-tuning, too: it does well on them, so that a
fine-tuned one is accepted rather too seldom. The model trained alone gets plain local steps, as many as the run had of
the silo; its last state counts, for no row is set aside to choose another.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Literal

from orchestrator.core.messages import Judged
from orchestrator.core.metrics import MetricSums
from orchestrator.core.protocols import LocalRun, Phase
from orchestrator.core.random import seed_of
from orchestrator.local import FineTune
from orchestrator.strategies.fedavg import FedAvg
from silos import bootstrap
from silos.bootstrap import Outputs
from silos.fine_tune import fine_tune
from silos.local_training import LocalTraining
from silos.site import Assessment, Order, OwnModel
from silos.tasks.task import At
from silos.trainer import TEST_BATCH, TorchTrainer


def assess(trainer: TorchTrainer, order: Order) -> Assessment:
    """By the job's ``report``. Same order, same bits."""
    return _Assessing(trainer, order).done()


class _Assessing:
    def __init__(self, trainer: TorchTrainer, order: Order) -> None:
        self.trainer, self.order, self.settings = trainer, order, trainer.job.report
        self.metrics: dict[str, MetricSums] = {}
        self.outputs: dict[str, Outputs] = {}
        self.curve: tuple[tuple[int, MetricSums], ...] = ()
        self.accepted = self.num_steps = 0
        self.seconds: dict[str, float] = {}
        self.own: OwnModel | None = None

    def done(self) -> Assessment:
        parts = {
            "global": self._received,
            "personal": self._own,
            "alone": self._alone,
            "fine_tuned": self._tuned,
        }
        for name, part in parts.items():
            with self._timed(name):
                part()
        with self._timed("intervals"):
            models = self._judged()
        return Assessment(
            models=models,
            curve=self.curve,
            accepted=self.accepted,
            num_steps=self.num_steps,
            seconds=self.seconds,
            own=self.own,
        )

    def _received(self) -> None:
        self.trainer.load(self.order)
        self._keep("global")
        self._look("global")

    def _own(self) -> None:
        trainer = self.trainer
        received = trainer.load(self.order)
        own = trainer.job.strategy.personal(trainer.kept(self.order), received["params"])
        if own is not None:
            trainer.flat.load({**received, "params": own})
            self._keep("personal")
            self._look("personal")

    def _alone(self) -> None:
        each = self.trainer.steps_per_training
        wanted = self.order.num_steps or self.order.trainings * each
        if self.order.num_steps and self.order.trainings:
            each = max(1, self.order.num_steps // self.order.trainings)
        wants = self.settings.alone and not self.trainer.private  # else it would be outside the budget
        self.num_steps = min(wanted, self.settings.max_steps) if wants else 0
        if self.num_steps:
            train_alone(self.trainer, self.order, self.num_steps, each)
            self._look("alone")

    def _tuned(self) -> None:
        looks = self.settings.adapt
        if self.trainer.private or not looks or not self.trainer.num_examples["test"]:
            return
        tuned = fine_tune(self.trainer, self.order, FineTune(steps=looks[-1]), looks=looks, with_test=True)
        self.curve = tuple((point.step, point.test) for point in tuned.curve)
        self.accepted = tuned.step if tuned.accepted else 0
        if self.accepted and self.own is not None and self.own.kind == "global":
            self._keep("fine_tuned")
        self._look("fine_tuned")

    def _keep(self, kind: Literal["personal", "fine_tuned", "global"]) -> None:
        """The model in place, for the silo itself."""
        self.own = OwnModel(kind, self.trainer.flat.state())

    def _look(self, name: str) -> None:
        """Measure the model in place, and keep what it says of each test row."""
        trainer, seen = self.trainer, Outputs()
        total = -(-trainer.num_examples["test"] // TEST_BATCH)
        watch = seen.watching(trainer.network.call)
        try:
            self.metrics[name] = trainer.measure(
                seen.measured(trainer.task.test_batches(TEST_BATCH)),
                lambda done: self.order.tick("evaluating", done, total),
            )
        finally:
            watch.remove()
        self.outputs[name] = seen

    def _judged(self) -> dict[str, Judged]:
        drawn = self._drawn()
        alone = drawn.get("alone")
        found = {}
        for name, metrics in self.metrics.items():
            gains = bootstrap.gains(drawn[name], alone) if alone and name in drawn and name != "alone" else {}
            verdicts = {metric: bootstrap.verdict(metric, gain) for metric, gain in gains.items()}
            found[name] = Judged(metrics, bootstrap.intervals(drawn.get(name, ())), gains, verdicts)
        return found

    def _drawn(self) -> dict[str, list[dict[str, float]]]:
        task, rows = self.trainer.task, {name: each.rows() for name, each in self.outputs.items()}
        known = {
            name: each
            for name, each in rows.items()
            if each is not None and bootstrap.repeatable(task, each, self.metrics[name])
        }
        if not known:
            return {}
        outputs = {name: output for name, (output, _) in known.items()}
        rest = next(iter(known.values()))[1]
        seed, times = (
            seed_of(self.trainer.job.seed, "bootstrap", self.trainer.silo),
            self.settings.resamples,
        )
        return bootstrap.resampled(
            task, outputs, rest, seed, times, lambda done: self.order.tick("resampling", done, times)
        )

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = perf_counter()
        yield
        self.seconds[name] = perf_counter() - began


def train_alone(trainer: TorchTrainer, order: Order, num_steps: int, each: int) -> None:
    """So many plain local steps from the job's initial parameters, in trainings of ``each`` steps, one after the
    other: what the run would be if this silo were all of it. The trainer holds the result."""
    trainer.load(Order(version=0, received=trainer.initial(), state={}, tick=order.tick))
    for version, first in enumerate(range(0, num_steps, each)):
        at = At(trainer.job.seed, trainer.silo, version, 0)
        run = _plain_run(trainer, order, version)
        training = LocalTraining(trainer.network, trainer.task, FedAvg(), run, at, order)
        training.fit(Phase(steps=min(each, num_steps - first)))


def _plain_run(trainer: TorchTrainer, order: Order, version: int) -> LocalRun:
    factor = trainer.local.schedule.factor(version, trainer.job.rounds.total)
    shared = trainer.flat.shared
    return LocalRun(
        params=shared,
        anchor=shared,
        received={},
        kept=trainer.kept(order),
        lr=trainer.local.optimizer.lr * factor,
        version=version,
    )

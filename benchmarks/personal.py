"""Silos that want a model of their own, on Fashion-MNIST: the real driver, silos and trainer, in this process.

`python -m benchmarks.personal meta`: each silo tells two kinds of clothes apart, and which of them is called 0 differs
from silo to silo. Silos that never took part adapt the model in a few steps; a table of their accuracy after 0, 1, 5
and 10 steps. FedAvg and Reptile adapt at the best of several rates, chosen on the silos held out themselves, which
favours them; the others at the rate that is part of the method.

`python -m benchmarks.personal personal`: ten silos with two kinds of clothes each, few images, one network of ten
classes; a table of the mean and the worst silo's accuracy with the model that each method leaves to it.

Means and standard deviations over seeds. One process, one thread; silos take turns.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.fashion import ROOT, Images
from benchmarks.open_site import OpenSite
from orchestrator.core.events import Event, RunClosed
from orchestrator.core.metrics import MetricSums, Sums
from orchestrator.core.vector import Parts
from orchestrator.driver import Driver
from orchestrator.job import Job
from orchestrator.local import FineTune
from orchestrator.store import Store
from orchestrator.transport.local import LocalChannel
from silos.fine_tune import fine_tune
from silos.silo import Silo
from silos.site import Order, Trained
from silos.state import SiloState
from silos.tasks.order import shuffled
from silos.tasks.task import At, Batch, Split
from silos.trainer import TorchTrainer

STEPS = (0, 1, 5, 10)
RATES = (0.01, 0.03, 0.1, 0.3)
"""Of fine-tuning, where a method has none of its own."""
ROUNDS = {"meta": 40, "personal": 40}
Silos = list[float]
"""Accuracies in per cent, one for each silo."""
_TURN = threading.Lock()


@dataclass
class Clothes:
    """A silo's images in memory."""

    split: dict[str, Batch]
    network: Callable[[], nn.Module]

    def model(self) -> nn.Module:
        return self.network()

    def num_examples(self, split: Split) -> int:
        return len(self.split[split][1])

    def train_batches(self, at: At, batch_size: int) -> Iterator[Batch]:
        images, labels = self.split["train"]
        for rows in shuffled(len(labels), at, batch_size):
            yield images[rows], labels[rows]

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        images, labels = self.split["test"]
        yield from zip(images.split(batch_size), labels.split(batch_size), strict=True)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1])

    @torch.no_grad()
    def measure(self, model: nn.Module, batch: Batch) -> MetricSums:
        logits, count = model(batch[0]), float(len(batch[1]))
        loss = functional.cross_entropy(logits, batch[1], reduction="sum").item()
        right = float((logits.argmax(dim=1) == batch[1]).sum().item())
        return {"loss": Sums("mean", (loss, count)), "accuracy": Sums("mean", (right, count))}


def network(num_classes: int, norm: bool = False) -> nn.Module:
    """On images of half the width: 196, 128, 64, classes; with batch normalisation, or without."""
    norms = [nn.BatchNorm1d(width) if norm else nn.Identity() for width in (128, 64)]
    first, second = (nn.Linear(196, 128), norms[0], nn.ReLU()), (nn.Linear(128, 64), norms[1], nn.ReLU())
    return nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), *first, *second, nn.Linear(64, num_classes))


class _Trainer(TorchTrainer):
    """Silos take turns."""

    def train(self, order: Order) -> Trained:
        with _TURN:
            return super().train(order)

    def evaluate(self, order: Order) -> MetricSums:
        with _TURN:
            return super().evaluate(order)


@dataclass
class _Site(OpenSite):
    """It knows the trainer that it made."""

    opened: Any = None

    def trainer(self, job: Job) -> TorchTrainer:
        self.opened = super().trainer(job)
        return self.opened


@dataclass
class Finished:
    """A run at its end: the last version, and what each silo keeps."""

    job: Job
    broadcast: Parts
    sites: dict[str, _Site]
    states: dict[str, dict[str, np.ndarray]]

    def order(self, silo: str, **parts: np.ndarray) -> Order:
        """On the last version, with other ``parts`` in the place of its own."""
        received = {**self.broadcast, **parts}
        state = dict(self.states.get(silo, {}))
        return Order(version=self.job.rounds.total, received=received, state=state, tick=lambda *_: None)

    def accuracy(self, silo: str) -> float:
        """Of what the silo has: its private layers, or its own model, or else the common one."""
        own = self.job.strategy.personal(_Kept(self.states[silo]), self.broadcast["params"])
        order = self.order(silo) if own is None else self.order(silo, params=own)
        return _accuracy(self.sites[silo].opened.evaluate(order))

    def tuned(self, silo: str, plan: FineTune) -> float:
        trainer = self.sites[silo].opened
        fine_tune(trainer, self.order(silo), plan)
        return _accuracy(trainer.measure_test(lambda *_: None))


class _Kept(dict[str, np.ndarray]):
    """A strategy's memory in a silo's state."""

    def __init__(self, state: Mapping[str, np.ndarray]) -> None:
        marked = "strategy/"
        super().__init__({n.removeprefix(marked): each for n, each in state.items() if n.startswith(marked)})


def _accuracy(sums: MetricSums) -> float:
    return 100 * float(sums["accuracy"].value or 0.0)


def federate(document: dict[str, Any], tasks: Mapping[str, Clothes]) -> Finished:
    """Run a job of these silos to its end."""
    names = tuple(document["silos"])
    job = Job.model_validate(document)
    with tempfile.TemporaryDirectory() as scratch:
        sites = {name: _Site(name, tasks[name], Path(scratch), _Trainer) for name in names}
        states: dict[str, dict[str, np.ndarray]] = {}

        def observe(event: Event) -> None:
            if isinstance(event, RunClosed):  # the silos forget the run next
                for name in names:
                    states[name] = SiloState(sites[name].state_folder("run")).after(job.rounds.total)

        channel = LocalChannel({name: lambda site=site: Silo(site) for name, site in sites.items()})
        driver = Driver(job, channel, Store(Path(scratch) / "run"), "run", observe=observe)
        try:
            outcome = asyncio.run(driver.run())
        finally:
            channel.close()
        assert outcome.status == "done", outcome
    return Finished(job, dict(job.strategy.broadcast(driver.model.state)), sites, states)


def document(silos: tuple[str, ...], seed: int, strategy: dict[str, Any], **sections: Any) -> dict[str, Any]:
    task = {"name": "image_classification", "dataset": "clothes", "num_classes": 10, "channels": 1}
    return {
        "name": "personal",
        "task": {**task, "model": {"name": "cnn"}},
        "silos": list(silos),
        "strategy": strategy,
        "stop": {"metric": "accuracy"},
        "report": {"silos": False, "drift": False},
        "seed": seed,
        **sections,
    }


# Meta-learning

META: dict[str, dict[str, Any]] = {
    "FedAvg": {"name": "fedavg"},
    "Reptile": {"name": "reptile", "epsilon": 0.5},
    "FOMAML": {"name": "fomaml", "alpha": 0.1, "inner_steps": 3},
    "Per-FedAvg (HF)": {"name": "per_fedavg", "alpha": 0.1},
    "Meta-SGD": {"name": "meta_sgd", "alpha": 0.1, "alpha_lr": 0.05},
}
NUM_TRAINING, NUM_HELD_OUT, ROWS = 20, 10, 100


def pairs(images: Images, seed: int) -> dict[str, Clothes]:
    """Silos with two kinds of clothes, called 0 and 1 in an order of their own."""
    rng = np.random.default_rng(seed)
    pools = {split: by_class(getattr(images, split)[1], rng) for split in ("train", "test")}
    silos = {}
    for number in range(NUM_TRAINING + NUM_HELD_OUT):
        held_out = number >= NUM_TRAINING
        kinds, num_test = rng.choice(10, size=2, replace=False), ROWS if held_out else 2
        split = {
            name: drawn(getattr(images, name), pools[name], kinds, np.arange(2), each // 2)
            for name, each in (("train", ROWS), ("test", num_test))
        }
        silos[f"{'new' if held_out else 'silo'}-{number}"] = Clothes(split, lambda: network(2))
    return silos


def by_class(labels: Tensor, rng: np.random.Generator) -> list[list[int]]:
    """Rows of each class, in a random order."""
    return [list(rng.permutation(np.flatnonzero(labels.numpy() == kind))) for kind in range(10)]


def drawn(split: Batch, pool: list[list[int]], kinds: Any, names: Any, each: int) -> Batch:
    """``each`` images of every kind, none of them drawn before, and what the silo calls them."""
    rows = torch.tensor([pool[kind].pop() for kind in kinds for _ in range(each)])
    return split[0][rows], torch.from_numpy(np.repeat(names, each).astype(np.int64))


def meta(images: Images, seed: int, rounds: int) -> dict[str, Silos]:
    """By method and number of steps: accuracies of the silos held out."""
    tasks = pairs(images, seed)
    training, new = (tuple(name for name in tasks if name.startswith(kind)) for kind in ("silo", "new"))
    found: dict[str, Silos] = {}
    for method, strategy in META.items():
        began = time.perf_counter()
        local = {"steps": 5, "batch_size": 40, "optimizer": {"name": "sgd", "lr": 0.1}}
        made = document(training, seed, strategy, rounds={"total": rounds}, local=local)
        ended = federate(made, tasks)
        rates = RATES if strategy["name"] in ("fedavg", "reptile") else (None,)
        curves = [[_curve(ended, tasks[name], name, rate) for name in new] for rate in rates]
        best = max(curves, key=lambda each: float(np.mean([curve[5] for curve in each])))
        rows = {f"{method}, {steps} steps": [curve[steps] for curve in best] for steps in STEPS}
        tell(seed, rows, began)
        found |= rows
    return found


def _curve(ended: Finished, task: Clothes, silo: str, rate: float | None) -> dict[int, float]:
    """Accuracy after so many steps."""
    trainer = TorchTrainer(ended.job, silo, task, "cpu")
    plan = FineTune(steps=STEPS[-1], lr=rate)
    tuned = fine_tune(trainer, ended.order(silo), plan, looks=STEPS[1:], with_test=True)
    return {point.step: _accuracy(point.test) for point in tuned.curve}


# Personalisation

PERSONAL: dict[str, tuple[dict[str, Any], bool]] = {
    "FedAvg": ({"name": "fedavg"}, False),
    "alone": ({"name": "ditto", "lambda": 0.0}, False),
    "Ditto, lambda 0.1": ({"name": "ditto", "lambda": 0.1}, False),
    "Ditto, lambda 1": ({"name": "ditto", "lambda": 1.0}, False),
    "APFL": ({"name": "apfl"}, False),
    "FedPer": ({"name": "fedper"}, False),
    "FedRep": ({"name": "fedrep"}, False),
    "FedAvg, batch norm": ({"name": "fedavg"}, True),
    "FedBN": ({"name": "fedbn"}, True),
}
"""Strategies, and whether the network has batch normalisation."""


def two_labels(images: Images, seed: int, norm: bool, rows: int) -> dict[str, Clothes]:
    """The partition of the learning targets, ``rows`` images of each silo; tests of the silo's own kinds."""
    owners, rng = images.owners("lab2", seed), np.random.default_rng(seed)
    labels, pool = images.train[1].numpy(), by_class(images.test[1], rng)
    silos = {}
    for number in range(10):
        every = np.flatnonzero(owners == number)
        mine, kinds = torch.from_numpy(rng.permutation(every)[:rows]), np.unique(labels[every])
        train = images.train[0][mine], images.train[1][mine]
        test = drawn(images.test, pool, kinds, kinds, TESTED // len(kinds))
        silos[f"silo-{number}"] = Clothes({"train": train, "test": test}, lambda: network(10, norm))
    return silos


TESTED = 200


def personal(images: Images, seed: int, rounds: int) -> dict[str, Silos]:
    """By method: accuracies of the ten silos, each on its own kinds."""
    found: dict[str, Silos] = {}
    for method, (strategy, norm) in PERSONAL.items():
        began, tasks = time.perf_counter(), two_labels(images, seed, norm, rows=ROWS)
        local = {"epochs": 2, "batch_size": 20, "optimizer": {"name": "sgd", "lr": 0.1}}
        made = document(tuple(tasks), seed, strategy, rounds={"total": rounds}, local=local)
        ended = federate(made, tasks)
        rows = {method: [ended.accuracy(name) for name in tasks]}
        if strategy["name"] == "fedavg":
            tuned = [ended.tuned(name, FineTune(epochs=10)) for name in tasks]
            rows[f"{method}, fine-tuned where it helps"] = tuned
        tell(seed, rows, began)
        found |= rows
    return found


# The tables


def tell(seed: int, rows: Mapping[str, Silos], began: float) -> None:
    figures = ", ".join(f"{name} {np.mean(each):.1f} (worst {min(each):.1f})" for name, each in rows.items())
    print(f"seed {seed}: {figures}; {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)


def table(found: list[dict[str, Silos]]) -> str:
    """Mean over silos and the worst of them: each the mean over seeds and its standard deviation."""
    lines = [f"| | mean of the silos | worst silo | seeds: {len(found)} |", "|---|---|---|---|"]
    for name in found[0]:
        by_seed = [each[name] for each in found]
        cells = [
            f"{np.mean(figures):.1f} ± {np.std(figures):.1f}"
            for figures in ([float(np.mean(each)) for each in by_seed], [min(each) for each in by_seed])
        ]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | |")
    return "\n".join(lines)


def main() -> None:
    """Print a table; with ``--out`` write every silo's figures as JSON, too."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("meta", "personal"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    images = Images(ROOT)
    made = meta if given.what == "meta" else personal
    found = [made(images, seed, given.rounds or ROUNDS[given.what]) for seed in given.seeds]
    print(table(found))
    if given.out is not None:
        given.out.write_text(json.dumps(dict(zip(map(str, given.seeds), found, strict=True)), indent=1))


if __name__ == "__main__":
    main()

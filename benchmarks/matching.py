"""Networks trained apart, each from its own seed: averaged plainly, matched at the silos, matched layer by layer.

    python -m benchmarks.matching points digits fashion [--seeds 0 1 2] [--partitions iid dir0.5] [--alone 30]

``points``: an MLP 32-64-10 on 10 classes of 4 Gaussian clusters, 8 silos of 256 rows, 1500 steps alone (the setting of
notes/algorithms.md, 2.9). ``digits``: the small CNN on the eight silos of examples/digits. ``fashion``: the small CNN
on Fashion-MNIST, 10 silos. The real trainer and strategies, without a driver; all silos compute in this process, one
after another. Accuracy on all test rows. ``silo``: aligned with the largest silo's network; ``layers``: the layer by
layer procedure, in which silos train a round more for each layer; ``+5``: after 5 rounds of FedAvg. ``stayed``: share
of the units that alignment left in their place.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.fashion import ROOT, SILOS, Images, OneSilosImages, job
from orchestrator.core.messages import CohortInfo
from orchestrator.core.metrics import MetricSums, Sums
from orchestrator.core.protocols import State
from orchestrator.core.vector import Parts, Vector
from orchestrator.job import Job, load_job
from orchestrator.strategies.fedavg import FedAvg
from orchestrator.strategies.matching import align
from silos.configured_site import ConfiguredSite
from silos.site import Order
from silos.symmetries import symmetries_of
from silos.tasks.task import At, Batch, Split
from silos.trainer import TorchTrainer

ROUNDS = 5
DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits"


@dataclass
class Points:
    """A task: rows in 32 dimensions."""

    train: Batch
    test: Batch

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))

    def num_examples(self, split: Split) -> int:
        return len(self.train[1] if split == "train" else self.test[1])

    def train_batches(self, at: At, batch_size: int) -> Any:
        seed = hash((at.seed, at.version, at.epoch)) % 2**31
        order = torch.randperm(len(self.train[1]), generator=torch.Generator().manual_seed(seed))
        for rows in order.split(batch_size):
            yield self.train[0][rows], self.train[1][rows]

    def test_batches(self, batch_size: int) -> Any:
        yield from zip(*(part.split(batch_size) for part in self.test), strict=True)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1])

    @torch.no_grad()
    def measure(self, model: nn.Module, batch: Batch) -> MetricSums:
        right = float((model(batch[0]).argmax(1) == batch[1]).sum().item())
        return {"accuracy": Sums("mean", (right, float(len(batch[1]))))}


def points(partition: str, seed: int, num_silos: int = 8, rows: int = 256) -> list[Points]:
    """Silos' tasks; ``dir0.5``: each silo's shares of the classes are drawn."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(10, 4, 32)) * 0.9

    def drawn(labels: np.ndarray) -> Batch:
        x = centres[labels, rng.integers(0, 4, len(labels))] + rng.normal(size=(len(labels), 32))
        return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(labels)

    test = drawn(rng.integers(0, 10, 5000))
    shares = [
        rng.dirichlet(np.full(10, 0.5)) if partition == "dir0.5" else np.full(10, 0.1)
        for _ in range(num_silos)
    ]
    return [Points(drawn(rng.choice(10, rows, p=share)), test) for share in shares]


def fashion(images: Images, partition: str, seed: int) -> list[OneSilosImages]:
    owners = images.owners(partition, seed)
    return [
        OneSilosImages(images, torch.from_numpy(np.flatnonzero(owners == i)), i, seed)
        for i in range(len(SILOS))
    ]


class Silos:
    """All silos of one setting, by the strategy that their trainers follow."""

    def __init__(self, tasks: Sequence[Any], work: Job) -> None:
        self.names = [f"silo-{i}" for i in range(len(tasks))]
        self.tasks, self.work = dict(zip(self.names, tasks, strict=True)), work
        rows = np.array([task.num_examples("train") for task in tasks], float)
        self.shares = [float(each) for each in rows / rows.sum()]

    def trainers(self, strategy: Mapping[str, Any]) -> dict[str, TorchTrainer]:
        document = self.work.model_dump(mode="json") | {"strategy": strategy, "silos": self.names}
        made = Job.model_validate(document)
        return {name: TorchTrainer(made, name, task, "cpu") for name, task in self.tasks.items()}

    def cohort(self, scalars: Sequence[dict[str, float]]) -> CohortInfo:
        return CohortInfo(len(self.names), tuple(self.shares), tuple(scalars))


def trained(trainer: TorchTrainer, version: int, received: Parts, state: dict[str, Vector]) -> Any:
    """A report that later trainings leave alone, and its scalars."""
    result = trainer.train(Order(version=version, received=received, state=state, tick=lambda *_: None))
    return {name: part.copy() for name, part in result.parts.items()}, result.scalars


def averaged(silos: Silos, params: Vector, first: int) -> Vector:
    """After `ROUNDS` of FedAvg."""
    trainers, strategy = silos.trainers({"name": "fedavg"}), FedAvg()
    state: State = strategy.init({"params": params})
    for version in range(first, first + ROUNDS):
        updates = [trained(each, version, {"params": state["params"]}, {})[0] for each in trainers.values()]
        fold = strategy.fold(state, updates, silos.shares, version, ())
        state = strategy.step(state, fold, silos.cohort([{}] * len(updates)))
    return state["params"]


def measured(silos: Silos, epochs: int) -> dict[str, float]:
    """One setting, one seed: accuracies by name."""
    trainers = silos.trainers({"name": "fedma", "at": "driver", "alone_epochs": epochs})
    one = next(iter(trainers.values()))
    strategy, symmetries = one.job.strategy, symmetries_of(one.flat)
    state: State = strategy.init(one.initial())
    states: dict[str, dict[str, Vector]] = {name: {} for name in trainers}
    updates = [
        trained(each, 0, {"params": state["params"]}, states[name])[0] for name, each in trainers.items()
    ]
    own = [state["params"] + update["delta"] for update in updates]
    lead = int(np.argmax(silos.shares))

    def accuracy(params: Vector) -> float:
        sums = []
        for trainer in trainers.values():
            trainer.flat.load({"params": torch.from_numpy(params)})
            sums.append(trainer.measure_test(lambda *_: None)["accuracy"].values)
        right, count = np.sum(sums, axis=0)
        return float(right / count)

    def mean_of(models: Sequence[Vector]) -> Vector:
        return np.einsum("i,ij->j", np.asarray(silos.shares, np.float32), np.asarray(models))

    matched, stayed = [model.copy() for model in own], []
    for number, model in enumerate(matched):
        if number != lead:
            stayed.append(align(model, own[lead], symmetries))
    plain, at_silo = mean_of(own), mean_of(matched)
    for version in range(len(symmetries) + 1):
        if version:
            reports = [
                trained(each, version, {"params": state["params"]}, states[name])
                for name, each in trainers.items()
            ]
            updates = [parts for parts, _ in reports]
        fold = strategy.fold(state, updates, silos.shares, version, symmetries)
        state = strategy.step(state, fold, silos.cohort([{"leads": 0.0}] * len(updates)))
    first = len(symmetries) + 1
    return {
        "mean local": mean(accuracy(each) for each in own),
        "ensemble": ensembled(trainers.values(), own),
        "plain": accuracy(plain),
        "silo": accuracy(at_silo),
        "layers": accuracy(state["params"]),
        "plain +5": accuracy(averaged(silos, plain, first)),
        "silo +5": accuracy(averaged(silos, at_silo, first)),
        "layers +5": accuracy(averaged(silos, state["params"], first)),
        "stayed": mean(stayed),
    }


def ensembled(trainers: Iterable[TorchTrainer], models: Sequence[Vector]) -> float:
    """Mean of the networks' probabilities."""
    right = count = 0
    for trainer in trainers:
        trainer.flat.module.eval()
        for inputs, labels in trainer.task.test_batches(512):
            total = torch.zeros(())
            for params in models:
                trainer.flat.load({"params": torch.from_numpy(params)})
                with torch.no_grad():
                    total = total + trainer.flat.module(inputs).softmax(1)
            right += int((total.argmax(1) == labels).sum())
            count += len(labels)
    return right / count


def tables(
    title: str,
    make: Callable[[str, int], Silos],
    epochs: int,
    partitions: Sequence[str],
    seeds: Sequence[int],
) -> None:
    print(f"\n{title}, {len(seeds)} seeds", flush=True)
    rows = {}
    for partition in partitions:
        found = []
        for seed in seeds:
            found.append(measured(make(partition, seed), epochs))
            print(partition, seed, {name: round(each, 3) for name, each in found[-1].items()}, flush=True)
        rows[partition] = found
    names = list(next(iter(rows.values()))[0])
    print("|", " | ".join(["data", *names]), "|\n|" + "---|" * (1 + len(names)))
    for partition, found in rows.items():
        print("|", " | ".join([partition, *(shown([each[name] for each in found]) for name in names)]), "|")


def shown(values: Sequence[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def digits(seed: int) -> Silos:
    work = load_job(DIGITS / "job.yaml")
    local = {"epochs": 2, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9}}
    document = work.model_dump(mode="json") | {"local": local, "seed": seed}
    made = Job.model_validate(document)
    tasks = [ConfiguredSite(DIGITS / "silos" / name / "silo.yaml").trainer(made).task for name in made.silos]
    return Silos(tasks, made)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="+", choices=["points", "digits", "fashion"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--partitions", nargs="+", default=["iid", "dir0.5"])
    parser.add_argument("--alone", type=int, default=30, help="epochs of a silo alone, for images")
    parser.add_argument("--data", type=Path, default=ROOT, help="folder of Fashion-MNIST")
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = Images(options.data)

    def of_points(partition: str, seed: int) -> Silos:
        local = {"epochs": 5, "batch_size": 32, "optimizer": {"name": "sgd", "lr": 0.2}}
        return Silos(points(partition, seed), job({"name": "fedavg"}, 99, seed=seed, local=local))

    def of_fashion(partition: str, seed: int) -> Silos:
        return Silos(fashion(images, partition, seed), job({"name": "fedavg"}, 99, seed=seed))

    if "points" in options.settings:
        tables("MLP 32-64-10, 8 silos, 1500 steps alone", of_points, 188, options.partitions, options.seeds)
    if "digits" in options.settings:
        title = f"Small CNN, digits, 8 silos, {options.alone} epochs alone"
        tables(title, lambda _, seed: digits(seed), options.alone, ["as given"], options.seeds)
    if "fashion" in options.settings:
        title = f"Small CNN, Fashion-MNIST, 10 silos, {options.alone} epochs alone"
        tables(title, of_fashion, options.alone, options.partitions, options.seeds)


if __name__ == "__main__":
    main()

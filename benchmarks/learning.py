"""Accuracy of the algorithms on Fashion-MNIST with ten silos, at a fixed budget, and of pooled training beside them.

    python -m benchmarks.learning --cells FOLDER [--methods fedavg scaffold] [--partitions iid] [--seeds 0 1 2]

One run of the real driver is one cell. Cells are kept as JSON lines in ``FOLDER/cells.jsonl`` and not run again, so
that the same command goes on where it was ended; ``--table`` prints what is there. About a minute of one core each.

Pooled training sees all 60,000 images, with the same model, initial weights, optimiser and batch size; its momentum
goes on, where a silo's begins anew in each round. A row ``pooled`` after as many steps as a silo makes in all rounds
(``rounds x K``, with K the mean over silos weighted by their images: 938, 94 a round, for silos of one size) holds it
to as many steps as the federation's model has behind it; ``pooled, all`` to as many gradients as all silos compute.
"""

import argparse
import asyncio
import json
import math
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks import measure
from benchmarks.fashion import PARTITIONS, ROOT, SILOS, Images, job, makers
from orchestrator.core import events
from orchestrator.driver import Driver
from orchestrator.store import Store
from orchestrator.transport.local import LocalChannel
from silos.tasks.vision_models import SmallCnn

BATCH = 64
METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {"strategy": {"name": "fedavg"}},
    "scaffold": {"strategy": {"name": "scaffold"}},
    "fedadam": {"strategy": {"name": "fedavg", "server": {"name": "adam", "lr": 0.01}}},
    "fednova": {"strategy": {"name": "fednova"}},
    "fedprox": {"strategy": {"name": "fedprox", "mu": 0.01}},
    "feddyn": {"strategy": {"name": "feddyn", "alpha": 0.1}},
    "fedavg, batch norm": {"strategy": {"name": "fedavg"}, "norm": "batch"},
    "fedbn": {"strategy": {"name": "fedbn"}, "norm": "batch"},
    "fedadam, lr .003": {"strategy": {"name": "fedavg", "server": {"name": "adam", "lr": 0.003}}},
    "fedadam, lr .03": {"strategy": {"name": "fedavg", "server": {"name": "adam", "lr": 0.03}}},
    "feddyn, alpha .01": {"strategy": {"name": "feddyn", "alpha": 0.01}},
    "fedavgm": {"strategy": {"name": "fedavg", "server": {"name": "sgd", "momentum": 0.5}}},
}
"""The section ``strategy`` of the job, and the model's ``norm``. Those with a comma are variants of a grid."""
SHOWN = [name for name in METHODS if ", lr" not in name and ", alpha" not in name]


class Cells:
    """What has been measured, by method, partition, seed, rounds and epochs."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "cells.jsonl"

    def read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []

    def has(self, cell: dict[str, Any]) -> bool:
        return any(all(known.get(key) == value for key, value in cell.items()) for known in self.read())

    def add(self, cell: dict[str, Any]) -> None:
        with self.file.open("a") as out:
            out.write(json.dumps(cell) + "\n")


def federated(images: Images, cell: dict[str, Any]) -> dict[str, Any]:
    """One run: accuracy on the whole test set of versions 1, 2, ...; of FedBN, where each silo has a model of its
    own, the mean over the silos' models (each on a tenth of the test set, the last version on all of it)."""
    method = METHODS[cell["method"]]
    seen: list[events.Event] = []
    with tempfile.TemporaryDirectory(prefix="learning") as name:
        folder = Path(name)
        silos = makers(images, cell["partition"], cell["seed"], folder, method.get("norm", "none"))
        channel = LocalChannel(silos)
        work = job(method["strategy"], cell["rounds"], cell["epochs"])
        outcome = asyncio.run(Driver(work, channel, Store(folder / "run"), "run", seen.append).run())
        channel.close()
    assert outcome.status == "done", outcome
    closed = sorted((e for e in seen if isinstance(e, events.RoundClosed)), key=lambda e: e.version)
    (last,) = [e for e in seen if isinstance(e, events.VersionEvaluated)]
    figures = [*(e.evaluated.overall for e in closed[1:]), last.evaluated.overall]
    return {"accuracy": [round(f["accuracy"], 5) for f in figures]}


def steps_of(images: Images, partition: str, seed: int) -> tuple[float, int]:
    """Batches of an epoch: the mean over silos weighted by their images, and the sum."""
    rows = np.bincount(images.owners(partition, seed), minlength=len(SILOS))
    steps = np.ceil(rows / BATCH)
    return float((steps * rows).sum() / rows.sum()), int(steps.sum())


def pooled(images: Images, seed: int, at: Sequence[int]) -> dict[int, float]:
    """Accuracy on the test set after so many steps of training on all images."""
    torch.manual_seed(0)
    model = SmallCnn(1, (28, 28), 10).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-5)
    found, batches = {}, _batches(images, seed)
    for step in range(1, max(at) + 1):
        pixels, labels = next(batches)
        optimizer.zero_grad()
        functional.cross_entropy(model(pixels), labels).backward()
        optimizer.step()
        if step in at:
            found[step] = round(_accuracy(model, images), 5)
    return found


def _batches(images: Images, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Epoch after epoch, without end."""
    pixels, labels = images.train
    generator = torch.Generator().manual_seed(1000003 * seed)
    while True:
        for rows in torch.randperm(len(labels), generator=generator).split(BATCH):
            yield pixels[rows].contiguous(memory_format=torch.channels_last), labels[rows]


def _accuracy(model: torch.nn.Module, images: Images) -> float:
    with torch.inference_mode():
        logits = torch.cat([model(part) for part in images.test[0].split(512)])
    return float((logits.argmax(1) == images.test[1]).double().mean())


def measured(images: Images, cell: dict[str, Any]) -> dict[str, Any]:
    if cell["method"] != "pooled":
        return federated(images, cell)
    length = cell["rounds"] * cell["epochs"]
    steps = {name: steps_of(images, name, cell["seed"]) for name in PARTITIONS}
    at = {name: round(length * one) for name, (one, _) in steps.items()}
    whole = length * math.ceil(len(images.train[1]) / BATCH)
    found = pooled(images, cell["seed"], sorted({*at.values(), whole}))
    return {
        "steps": {**at, "all": whole},
        "accuracy_at": {**{name: found[step] for name, step in at.items()}, "all": found[whole]},
    }


def wanted(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    length = {"rounds": options.rounds, "epochs": options.epochs}
    for seed in options.seeds:
        for method in options.methods:
            where = ["all"] if method == "pooled" else options.partitions
            for partition in where:
                yield {"method": method, "partition": partition, "seed": seed, **length}


def table(cells: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """Mean ± deviation over seeds of the last version's accuracy, in percent; how many seeds, where not three."""
    cells = [c for c in cells if (c["rounds"], c["epochs"]) == (options.rounds, options.epochs)]
    rows = []
    for method in dict.fromkeys(c["method"] for c in cells if c["method"] != "pooled"):
        ours = [c for c in cells if c["method"] == method]
        by_partition = [
            [c["accuracy"][-1] for c in ours if c["partition"] == partition] for partition in PARTITIONS
        ]
        rows.append([method, *(spread(values) for values in by_partition)])
    centre = [c["accuracy_at"] for c in cells if c["method"] == "pooled"]
    if centre:
        rows.append(
            ["pooled, as many steps", *(spread([each[name] for each in centre]) for name in PARTITIONS)]
        )
        rows.append(["pooled, as many gradients", *[spread([each["all"] for each in centre])] * 3])
    return measure.markdown_table(["method", *PARTITIONS], rows)


def spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    deviation = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{deviation}" + ("" if len(values) == 3 else f" ({len(values)})")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=Path, required=True)
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--methods", nargs="+", default=["pooled", *SHOWN], choices=["pooled", *METHODS])
    parser.add_argument("--partitions", nargs="+", default=list(PARTITIONS), choices=PARTITIONS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=1, help="local epochs of a round")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cells, images = Cells(options.cells), Images(options.root)
    for cell in () if options.table else wanted(options):
        if cells.has(cell):
            continue
        began, cpu = time.perf_counter(), time.process_time()
        found = measured(images, cell)
        cost = {
            "seconds": round(time.perf_counter() - began, 1),
            "cpu_s": round(time.process_time() - cpu, 1),
        }
        cells.add({**cell, **found, **cost, "commit": _commit(), "date": time.strftime("%Y-%m-%d %H:%M")})
        print(json.dumps({**cell, **found, **cost}), flush=True)
    print(table(cells.read(), options))


def _commit() -> str:
    """Of the code that ran; ``+`` with changes that are not committed."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return done.stdout.strip()


if __name__ == "__main__":
    main()

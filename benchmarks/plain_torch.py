"""A federated job's work without any orchestration: plain PyTorch processes that share memory.

Each process reads its own images of Fashion-MNIST, evaluates the model it received on a test share of its
own, trains one epoch of SGD, and the weights are averaged through shared memory between two barriers.
Nothing is checked, recorded or recoverable. Run: `python -m benchmarks.plain_torch --silos 4 --rounds 5`.

Prints one line of JSON: `seconds_rounds` (from the moment all processes are ready to the end of the last
round, evaluations included), `seconds_total` (from the start of this process to the printing),
`accuracy` (of the final model, mean over the test shares, measured after the clock of the rounds stopped).
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from benchmarks.measure import load_average, seconds_since_process_start

PATIENCE_S = 300.0  # nobody waits longer at a barrier
LEARNING_RATE, MOMENTUM = 0.01, 0.9


def simple_cnn() -> nn.Sequential:
    """The simple CNN of NIID-Bench for 28 x 28 grey images: 44,426 parameters."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def load_share(root: Path, split: str, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Images `start` to `stop` of a split (`train` or `t10k`), scaled to 0..1, and their labels."""
    raw = root / "FashionMNIST" / "raw"
    images = _read_idx(raw / f"{split}-images-idx3-ubyte.gz", header=16, item=784, start=start, stop=stop)
    labels = _read_idx(raw / f"{split}-labels-idx1-ubyte.gz", header=8, item=1, start=start, stop=stop)
    return torch.from_numpy(images).view(-1, 1, 28, 28) / 255, torch.from_numpy(labels).long()


def _read_idx(path: Path, header: int, item: int, start: int, stop: int) -> NDArray[np.uint8]:
    """Items `start` to `stop` of a compressed IDX file, unpacked no further than needed."""
    with gzip.open(path) as file:
        file.seek(header + start * item)
        data = file.read((stop - start) * item)
    if len(data) != (stop - start) * item:
        raise ValueError(f"{path} has fewer than {stop} items")
    return np.frombuffer(data, np.uint8).copy()


@dataclass
class Work:
    """What every process is given: the arguments, the shared memory, the meeting point."""

    given: argparse.Namespace
    rows: Any  # shared float32 array, silos x parameters: the weights after local training
    accuracies: Any  # shared float64 array, one per silo: accuracy of the final model
    seconds: Any  # shared float64: duration of the rounds
    barrier: Barrier

    def meet(self) -> None:
        """Wait for all processes."""
        self.barrier.wait(PATIENCE_S)

    def average(self, model: nn.Module, index: int) -> None:
        """Replace the model by the mean of all silos' models; every silo has as many images."""
        rows = np.frombuffer(self.rows, np.float32).reshape(self.given.silos, -1)
        rows[index] = parameters_to_vector(model.parameters()).detach().numpy()
        self.meet()
        mean = torch.from_numpy(rows.mean(axis=0))
        self.meet()
        vector_to_parameters(mean, model.parameters())


class HandSgd:
    """SGD with momentum without torch.optim, whose first optimizer imports torch._dynamo (seconds of CPU)."""

    def __init__(self, params: list[Tensor]) -> None:
        self.params, self.velocity = params, [torch.zeros_like(p) for p in params]

    def reset(self) -> None:
        """Forget the momentum, as every round does."""
        torch._foreach_zero_(self.velocity)

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for p in self.params:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One step along the velocity."""
        torch._foreach_mul_(self.velocity, MOMENTUM)
        torch._foreach_add_(self.velocity, [p.grad for p in self.params if p.grad is not None])
        torch._foreach_add_(self.params, self.velocity, alpha=-LEARNING_RATE)


class TorchSgd(torch.optim.SGD):
    """torch.optim.SGD that can forget its momentum."""

    def reset(self) -> None:
        """Forget the momentum, as every round does."""
        self.state.clear()


def run_silo(work: Work, index: int) -> None:
    """One process; when it fails, the others do not wait for it."""
    try:
        _run_silo(work, index)
    except Exception:
        work.barrier.abort()
        raise


def _run_silo(work: Work, index: int) -> None:
    """Its data, its training, its part in the average."""
    given = work.given
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)  # the same initial model everywhere
    model = simple_cnn()
    params: list[Tensor] = list(model.parameters())
    optimizer = HandSgd(params) if given.sgd == "hand" else TorchSgd(params, LEARNING_RATE, MOMENTUM)
    train = load_share(given.root, "train", index * given.images, (index + 1) * given.images)
    test = load_share(given.root, "t10k", index * given.test_images, (index + 1) * given.test_images)
    order = torch.Generator().manual_seed(given.seed * 1000 + index)
    work.meet()
    begin = time.perf_counter()
    for _ in range(given.rounds):
        evaluate(model, *test)
        optimizer.reset()
        for batch in torch.randperm(given.images, generator=order).split(given.batch_size):
            train_batch(model, optimizer, train[0][batch], train[1][batch])
        work.average(model, index)
    work.seconds.value = time.perf_counter() - begin
    work.accuracies[index] = evaluate(model, *test)


def train_batch(model: nn.Module, optimizer: HandSgd | TorchSgd, x: Tensor, y: Tensor) -> None:
    """One step of SGD."""
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    optimizer.step()


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Accuracy, 0 to 1."""
    return float((model(x).argmax(dim=1) == y).double().mean())


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Start the processes, wait for them, and report."""
    context = multiprocessing.get_context(given.start)
    num_params = sum(p.numel() for p in simple_cnn().parameters())
    work = Work(
        given,
        rows=context.RawArray("f", given.silos * num_params),
        accuracies=context.RawArray("d", [math.nan] * given.silos),
        seconds=context.RawValue("d", 0.0),
        barrier=context.Barrier(given.silos),
    )
    _run_all(lambda index: context.Process(target=run_silo, args=(work, index)), given.silos)
    return {
        "seconds_rounds": round(work.seconds.value, 4),
        "seconds_total": round(seconds_since_process_start(), 2),
        "accuracy": round(sum(work.accuracies) / given.silos, 4),
        "num_params": num_params,
        "load_average": load_average(),
        **{name: str(value) if isinstance(value, Path) else value for name, value in vars(given).items()},
    }


def _run_all(process: Callable[[int], Any], silos: int) -> None:
    """Run all processes to their end; the first to fail makes the others give up."""
    processes = [process(index) for index in range(silos)]
    for started in processes:
        started.start()
    for started in processes:
        started.join()
    if any(ended.exitcode for ended in processes):
        raise SystemExit(f"a process failed: exit codes {[ended.exitcode for ended in processes]}")


def main() -> None:
    """Read the arguments, print the report."""
    parser = argparse.ArgumentParser(description="Plain PyTorch processes doing a federated job's work")
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("/work/shared/data/fashion_mnist"),
        help="folder in torchvision's layout: ROOT/FashionMNIST/raw/*.gz; only read",
    )
    parser.add_argument("--silos", type=int, default=4, help="processes")
    parser.add_argument("--images", type=int, default=5000, help="training images of each process")
    parser.add_argument("--test-images", type=int, default=1000, help="test images of each process")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of one epoch")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--start",
        choices=("fork", "spawn"),
        default="fork",
        help="fork imports torch once for all; spawn imports it in every process",
    )
    parser.add_argument(
        "--sgd",
        choices=("torch", "hand"),
        default="torch",
        help="torch.optim.SGD, or the same three lines by hand, which start faster",
    )
    print(json.dumps(run(parser.parse_args())))


if __name__ == "__main__":
    main()

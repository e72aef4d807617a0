"""What a step of DP-SGD costs over a plain one: `python -m benchmarks.dp_sgd`.

A CNN of 547,714 parameters with group normalisation, 64 images of 28 x 28, one core. ``plain`` and ``private`` are the
steps of a silo's training, with noise and optimizer; Opacus does the same with its own modules and optimizer, by
per-sample gradients (``hooks``) and by ghost clipping (``ghost``), on the same images. CPU seconds of this process, the
least of several; engines take turns, so that a busy machine hits all of them.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import measure
from orchestrator.local import Local
from orchestrator.privacy.dp_sgd import DpSgd
from silos.draws import Draws
from silos.flat_model import FlatModel
from silos.gradient import Gradient
from silos.network import Network
from silos.optimizer import FlatSgd
from silos.private_steps import PrivateSteps
from silos.tasks.task import Batch

ROWS, BOUND, SIGMA, RATE = 64, 1.0, 1.0, 0.01


class Images:
    """Random ones, as a silo's task."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.batch = torch.randn(ROWS, 1, 28, 28), torch.randint(0, 10, (ROWS,))

    def num_examples(self, split: str) -> int:
        return ROWS

    def train_rows(self, rows: Any, seed: int) -> Any:
        return (tuple(each[chosen] for each in self.batch) for chosen in rows)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1])


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.GroupNorm(8, 32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.GroupNorm(8, 64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(3136, 168), nn.ReLU(), nn.Linear(168, 10)),
    )


def plain() -> Callable[[], None]:
    images, network = Images(), _network()
    optimizer = FlatSgd(network.flat.parameter, lr=RATE)

    def step() -> None:
        Gradient(network, images, images.batch)(network.flat.shared)  # type: ignore[arg-type]
        optimizer.step()

    return step


def private(engine: str) -> Callable[[], None]:
    images, network = Images(), _network()
    spec = DpSgd(max_grad_norm=BOUND, noise_multiplier=SIGMA, engine=engine)  # type: ignore[arg-type]
    optimizer, steps, draws = (
        FlatSgd(network.flat.parameter, lr=RATE),
        PrivateSteps(network, images, spec),
        Draws.fresh(),
    )
    held = ExitStack()
    held.enter_context(steps.phase("all", 0))

    def step(_: ExitStack = held) -> None:
        steps.gradient([images.batch], draws)
        optimizer.step()

    return step


def opacus(mode: str) -> Callable[[], None]:
    from opacus import PrivacyEngine

    images, model, criterion = Images(), cnn(), nn.CrossEntropyLoss()
    rows = torch.utils.data.TensorDataset(*images.batch)
    made = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=RATE),
        data_loader=torch.utils.data.DataLoader(rows, batch_size=ROWS),
        noise_multiplier=SIGMA,
        max_grad_norm=BOUND,
        poisson_sampling=False,
        grad_sample_mode=mode,
        **({"criterion": criterion} if mode == "ghost" else {}),
    )
    module, optimizer = made[0], made[1]
    loss = made[2] if mode == "ghost" else criterion

    def step() -> None:
        optimizer.zero_grad()
        loss(module(images.batch[0]), images.batch[1]).backward()
        optimizer.step()

    return step


def _network() -> Network:
    return Network(FlatModel(cnn()), Local(batch_size=ROWS), torch.device("cpu"))


ENGINES: dict[str, Callable[[], Callable[[], None]]] = {
    "plain": plain,
    "private (ghost)": lambda: private("ghost"),
    "private, record by record": lambda: private("single"),
    "Opacus hooks": lambda: opacus("hooks"),
    "Opacus ghost": lambda: opacus("ghost"),
}


def measured(times: int) -> dict[str, float]:
    """CPU seconds of a step."""
    steps = {name: make() for name, make in ENGINES.items()}
    found: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(times + 2):
        for name, step in steps.items():
            began = time.process_time()
            step()
            if turn >= 2:  # the first ones warm caches up
                found[name].append(time.process_time() - began)
    return {name: min(each) for name, each in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    seconds = measured(given.times)
    table = [
        (name, measure.readable(each), f"{each / seconds['plain']:.2f} x") for name, each in seconds.items()
    ]
    print(measure.markdown_table(["step", "CPU", "over plain"], table))
    if given.json is not None:
        measure.write_json(given.json, {"machine": measure.machine(), "seconds": seconds})


if __name__ == "__main__":
    main()

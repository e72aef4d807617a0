"""Networks and rows on which gradients of single records are looked at."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.local import Local
from silos.flat_model import FlatModel
from silos.network import Network
from silos.site import Order
from silos.tasks.task import Batch
from silos.trainer import TorchTrainer
from tests.support.blobs import Blobs


class Rows(Blobs):
    """`Blobs` by row number, with any network; ``patients``: whom each training row is about."""

    def __init__(self, module: Any, rows: int = 40, patients: Sequence[int] = (), seed: int = 0) -> None:
        super().__init__(seed, rows)
        self._module, self.patients = module, np.asarray(patients, np.int64)

    def model(self) -> nn.Module:
        made: nn.Module = self._module()
        return made

    def train_rows(self, rows: Sequence[Tensor], seed: int) -> Iterator[Batch]:
        images, labels = self.data["train"]
        return ((images[each], labels[each]) for each in rows)

    def train_groups(self, column: str) -> NDArray[np.int64]:
        return self.patients


def convolutions() -> nn.Module:
    """What small CNNs are made of, dropout and an activation in place too."""
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 4, 3, groups=2, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6)),
        *(nn.LayerNorm(6), nn.Linear(6, 2)),
    )


class Sequences(nn.Module):
    """The image's rows as a sequence: a layer on ``[rows, steps, numbers]``, and a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 5)
        self.scale = Scale()
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.scale(functional.relu(self.inner(x[:, 0]))).mean(1))


class Scale(nn.Module):
    """A layer that Opacus has never heard of."""

    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.full((5,), 1.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.by


class Tied(nn.Module):
    """One layer, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 64)
        self.head = nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(functional.relu(self.inner(x.flatten(1)))))


class Mixing(nn.Module):
    """Each record's outputs depend on the others in its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.inner(x.flatten(1))
        return self.head(seen - seen.mean(0))


def network(module: nn.Module, **globs: Any) -> Network:
    torch.manual_seed(1)
    return Network(FlatModel(module, **globs), Local(batch_size=8), torch.device("cpu"))


def gradients(net: Network, task: Blobs, batch: Batch) -> Tensor:
    """Of single records, one a row: torch alone, with no code of ours."""
    rows = []
    for i in range(len(batch[0])):
        params = [param for param in net.flat.module.parameters() if param.requires_grad]
        loss = task.loss(net.flat.module, tuple(each[i : i + 1] for each in batch))
        rows.append(torch.cat([each.reshape(-1) for each in torch.autograd.grad(loss, params)]))
    return torch.stack(rows)


def order_of(made: TorchTrainer, version: int = 0, state: Any = None, **given: Any) -> Order:
    """To train from the initial parameters."""
    parts = dict(made.job.strategy.broadcast(made.job.strategy.init(made.initial())))
    common = {"tick": lambda *_: None, "state": {} if state is None else state, **given}
    return Order(version=version, received=parts, **common)

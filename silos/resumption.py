"""What a checkpoint of a local training holds, and how the training goes on from it with the same bits."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from silos.flat_model import private_buffers
from silos.mid_round import Arrays, Facts
from silos.optimizer import kept_of

if TYPE_CHECKING:
    from silos.local_training import LocalTraining


def captured(training: "LocalTraining") -> tuple[dict[str, NDArray[Any]], Facts]:
    """All that the rest of the training depends on; the arrays are copies."""
    run, scale = training.run, training.scale
    arrays = {name: _array(each) for name, each in _places(training).items()}
    arrays |= {f"memo/{name}": _array(each) for name, each in run.memo.items()}
    arrays |= {f"state/{name}": np.array(each) for name, each in training.changed_state().items()}
    arrays |= {f"optimizer/{name}": each for name, each in kept_of(training.optimizer).items()}
    arrays |= {f"draws/{name}": _array(each) for name, each in _draws(training.network.device)}
    return arrays, {
        "position": asdict(training.position),
        "seen": training.seen,
        "num_steps": run.num_steps,
        "path": run.path,
        "held": training.momentum.held,
        "scale": None if scale is None else [scale.factor, scale.good],
        "circumstances": training.circumstances,
    }


class Left:
    """Where a training was left."""

    def __init__(self, arrays: Arrays, facts: Facts) -> None:
        self._arrays, self._facts = arrays, facts

    @property
    def position(self) -> dict[str, int]:
        return dict(self._facts["position"])

    @property
    def held(self) -> float:
        """As in `silos.optimizer.Momentum`."""
        return float(self._facts["held"])

    @property
    def optimizer(self) -> dict[str, NDArray[Any]]:
        return dict(self._named("optimizer"))

    def take_up(self, training: "LocalTraining") -> None:
        """Model, memory and counts as they were."""
        run, device = training.run, training.network.device
        with torch.no_grad():
            for name, place in _places(training).items():
                place.copy_(_tensor(self._arrays[name]))
        run.memo.update({name: _tensor(each).to(device) for name, each in self._named("memo")})
        training.order.state.update(self._named("state"))
        run.num_steps, run.path = self._facts["num_steps"], self._facts["path"]
        training.seen = self._facts["seen"]
        if training.scale is not None:
            training.scale.factor, training.scale.good = self._facts["scale"]

    def take_up_draws(self, device: torch.device) -> None:
        """Torch's generators go on from there: once the batches already trained on have been passed over."""
        for name, each in self._named("draws"):
            if name == "cpu":
                torch.set_rng_state(_tensor(each))
            else:
                torch.get_device_module(device).set_rng_state(_tensor(each))

    def _named(self, owner: str) -> Iterator[tuple[str, NDArray[Any]]]:
        prefix = f"{owner}/"
        return (
            (name.removeprefix(prefix), each)
            for name, each in self._arrays.items()
            if name.startswith(prefix)
        )


def _places(training: "LocalTraining") -> dict[str, Tensor]:
    flat = training.network.flat
    buffers = {f"buffer/{name}": each for name, each in private_buffers(flat).items()}
    return {"vector": flat.vector, "buffers": flat.buffers, "losses": training.loss_sum, **buffers}


def _draws(device: torch.device) -> Iterator[tuple[str, Tensor]]:
    yield "cpu", torch.get_rng_state()
    if device.type != "cpu":
        yield "device", torch.get_device_module(device).get_rng_state()


def _array(tensor: Tensor) -> NDArray[Any]:
    return np.array(tensor.detach().cpu())


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(array))

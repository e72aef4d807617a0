"""The local optimizer on the flat parameter."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from orchestrator.core.errors import BadJob
from orchestrator.local import Optimizer

_SGD_ARGUMENTS = {"lr", "momentum", "dampening", "weight_decay", "nesterov"}
_UNFIT = {"lbfgs": "evaluates the loss several times a step", "sparseadam": "needs sparse gradients"}


class Steps(Protocol):
    """What the trainer needs of an optimizer."""

    param_groups: list[dict[str, Any]]

    def step(self) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


class FlatSgd:
    """The update of ``torch.optim.SGD``, to the bit, on one flat parameter.

    The first optimizer of ``torch.optim`` in a process imports torch's compiler: 3.7 s of start-up at every silo,
    for three operations on one vector (measured: docs/benchmarks.md).
    """

    def __init__(self, parameter: nn.Parameter, **arguments: Any) -> None:
        self.parameter = parameter
        self.param_groups = [
            {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False, **arguments}
        ]
        self._velocity: Tensor | None = None

    @torch.no_grad()
    def step(self) -> None:
        group, vector = self.param_groups[0], self.parameter.data
        assert self.parameter.grad is not None
        direction = self.parameter.grad
        if group["weight_decay"]:
            direction = direction.add(vector, alpha=group["weight_decay"])
        if group["momentum"]:
            direction = self._with_momentum(direction, group)
        vector.add_(direction, alpha=-group["lr"])

    def state_dict(self) -> dict[str, Any]:
        """As torch's own."""
        kept = {} if self._velocity is None else {0: {"momentum_buffer": self._velocity}}
        return {"state": kept, "param_groups": self.param_groups}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        velocity = state["state"].get(0, {}).get("momentum_buffer")
        self._velocity = None if velocity is None else velocity.to(self.parameter)

    def _with_momentum(self, direction: Tensor, group: Mapping[str, Any]) -> Tensor:
        if self._velocity is None:
            self._velocity = direction.clone()
        else:
            self._velocity.mul_(group["momentum"]).add_(direction, alpha=1 - group["dampening"])
        if group["nesterov"]:
            return direction.add(self._velocity, alpha=group["momentum"])
        return self._velocity


def make_optimizer(spec: Optimizer, parameter: nn.Parameter) -> Steps:
    """The optimizer that the job names; raises `BadJob` for an unknown name or argument."""
    if spec.name.lower() == "sgd" and spec.arguments.keys() <= _SGD_ARGUMENTS:
        _check_sgd(spec.arguments)
        return FlatSgd(parameter, **spec.arguments)
    if spec.name.lower() in _UNFIT:
        raise BadJob(f"local.optimizer.name: '{spec.name}' {_UNFIT[spec.name.lower()]}")
    kinds = {name.lower(): kind for name, kind in vars(torch.optim).items() if isinstance(kind, type)}
    kind = kinds.get(spec.name.lower())
    if kind is None or not issubclass(kind, torch.optim.Optimizer) or kind is torch.optim.Optimizer:
        raise BadJob(f"local.optimizer.name: torch.optim has no '{spec.name}'")
    try:
        optimizer: Steps = kind([parameter], **spec.arguments)
    except (TypeError, ValueError) as error:
        raise BadJob(f"local.optimizer: {error}") from None
    return optimizer


def kept_of(optimizer: Steps) -> dict[str, NDArray[Any]]:
    """What the optimizer remembers, by name; copies."""
    kept = optimizer.state_dict()["state"].get(0, {})
    return {name: np.array(torch.as_tensor(each).cpu()) for name, each in kept.items() if each is not None}


def remind(optimizer: Steps, kept: Mapping[str, NDArray[Any]]) -> None:
    """Let it go on from what `kept_of` gave."""
    if kept:
        tensors = {name: torch.from_numpy(np.array(each)) for name, each in kept.items()}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": {0: tensors}})


def _check_sgd(arguments: Mapping[str, Any]) -> None:
    numbers = {name: value for name, value in arguments.items() if name != "nesterov"}
    for name, value in numbers.items():
        if not isinstance(value, int | float) or value < 0:
            raise BadJob(f"local.optimizer.{name}: expected a number from 0 up, got {value!r}")
    if arguments.get("nesterov") and (not arguments.get("momentum") or arguments.get("dampening")):
        raise BadJob("local.optimizer.nesterov: needs a momentum, and no dampening")


class Momentum:
    """How strongly the gradients so far are applied in the coming step of SGD: 1 without momentum,
    ``1 + rho + rho^2 + ...`` with it. Other optimizers count as 1 (an approximation)."""

    def __init__(self, group: Mapping[str, Any]) -> None:
        self.rho = float(group.get("momentum") or 0.0)
        self.dampening = float(group.get("dampening") or 0.0)
        self.nesterov = bool(group.get("nesterov"))
        self.held = 0.0

    def next(self, lr: float) -> float:
        """Learning rate times that strength: the step's share of the path."""
        first = self.held == 0.0 or not self.rho
        self.held = self.rho * self.held + (1.0 if first else 1.0 - self.dampening)
        return lr * (1.0 + self.rho * self.held if self.nesterov else self.held)

"""Server optimizers: how the driver moves the model by the mean delta (FedOpt).

Hsu et al. 2019 (FedAvgM, arXiv 1909.06335); Reddi et al. 2021 (adaptive, arXiv 2003.00295, algorithm 2: no bias
correction). ``delta`` is local minus global, so it is added. All arithmetic is float32, element by element.
"""

from abc import ABC, abstractmethod
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, Field, model_validator

from orchestrator.core.protocols import State
from orchestrator.core.vector import Vector


class Sgd(BaseModel, frozen=True, extra="forbid"):
    """``m = momentum * m + delta; params += lr * m`` (Nesterov: ``params += lr * (delta + momentum * m)``).

    With ``delay`` N, every round moves the model by ``lr * delta / N``, and every N-th one also renews ``m`` by the
    mean of the last N deltas and moves the model by ``lr * momentum * m`` (Delayed Nesterov, Liu et al. 2024, algorithm
    3, arXiv 2401.09135): N rounds of one update each are one Nesterov step on their mean.
    """

    name: Literal["sgd"] = "sgd"
    lr: float = Field(default=1.0, gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    nesterov: bool = False
    delay: int = Field(default=1, ge=1)
    """For asynchronous rounds: as many as it takes to hear of every silo once."""

    @model_validator(mode="after")
    def _whose_momentum(self) -> Self:
        if self.delay > 1 and not (self.nesterov and self.momentum):
            raise ValueError("'delay' is of Nesterov's momentum: give 'momentum' and 'nesterov: true'")
        return self

    def init(self, params: Vector) -> State:
        if self.delay > 1:
            waiting = {"waiting": np.zeros_like(params), "num_waiting": np.zeros(1, np.float32)}
            return {"momentum": np.zeros_like(params), **waiting}
        return {"momentum": np.zeros_like(params)} if self.momentum else {}

    def apply(self, state: State, delta: Vector) -> State:
        if self.delay > 1:
            return self._delayed(state, delta)
        if not self.momentum:
            return {"params": _moved(state["params"], delta, self.lr)}
        momentum = self.momentum * state["momentum"]
        momentum += delta
        step: Vector = delta + self.momentum * momentum if self.nesterov else momentum.copy()
        return {"params": _moved(state["params"], step, self.lr), "momentum": momentum}

    def _delayed(self, state: State, delta: Vector) -> State:
        part = delta / np.float32(self.delay)
        waiting, number = state["waiting"] + part, state["num_waiting"] + np.float32(1)
        if number[0] < self.delay:
            params = _moved(state["params"], part, self.lr)
            return {"params": params, "waiting": waiting, "num_waiting": number}
        momentum = self.momentum * state["momentum"] + waiting
        part += self.momentum * momentum
        empty = {"waiting": np.zeros_like(waiting), "num_waiting": np.zeros_like(number)}
        return {"params": _moved(state["params"], part, self.lr), "momentum": momentum, **empty}


class _Adaptive(BaseModel, ABC, frozen=True, extra="forbid"):
    """``m = beta1 * m + (1 - beta1) * delta; params += lr * m / (sqrt(v) + tau)``."""

    lr: float = Field(default=0.01, gt=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    tau: float = Field(default=1e-3, gt=0)
    """Adaptivity: the smaller, the more the rates of single parameters differ."""
    initial_v: float = Field(default=0.0, ge=0)
    """First value of ``v``. The paper asks for at least ``tau ** 2``; the authors' code starts at 0."""

    def init(self, params: Vector) -> State:
        return {"m": np.zeros_like(params), "v": np.full_like(params, self.initial_v)}

    def apply(self, state: State, delta: Vector) -> State:
        m = self.beta1 * state["m"] + (1 - self.beta1) * delta
        v = self.second_moment(state["v"], delta * delta)
        step: Vector = m / (np.sqrt(v) + np.float32(self.tau))  # type: ignore[assignment]
        return {"params": _moved(state["params"], step, self.lr), "m": m, "v": v}

    @abstractmethod
    def second_moment(self, v: Vector, squared: Vector) -> Vector: ...


class Adagrad(_Adaptive, frozen=True):
    """``v += delta ** 2``."""

    name: Literal["adagrad"] = "adagrad"

    def second_moment(self, v: Vector, squared: Vector) -> Vector:
        return v + squared


class Adam(_Adaptive, frozen=True):
    """``v = beta2 * v + (1 - beta2) * delta ** 2``."""

    name: Literal["adam"] = "adam"
    beta2: float = Field(default=0.99, ge=0, lt=1)

    def second_moment(self, v: Vector, squared: Vector) -> Vector:
        return self.beta2 * v + (1 - self.beta2) * squared


class Yogi(_Adaptive, frozen=True):
    """``v -= (1 - beta2) * delta ** 2 * sign(v - delta ** 2)``."""

    name: Literal["yogi"] = "yogi"
    beta2: float = Field(default=0.99, ge=0, lt=1)

    def second_moment(self, v: Vector, squared: Vector) -> Vector:
        moved: Vector = v - (1 - self.beta2) * squared * np.sign(v - squared)
        return moved


def _moved(params: Vector, step: Vector, lr: float) -> Vector:
    """``params + lr * step``, in the memory of ``step``: a fresh 344 MB costs several times the addition."""
    if lr != 1.0:
        np.multiply(step, np.float32(lr), out=step)
    return np.add(params, step, out=step)

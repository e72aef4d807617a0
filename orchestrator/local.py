"""What a job says about local training."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator


class _Spec(BaseModel, frozen=True, extra="forbid"):
    pass


class Optimizer(BaseModel, frozen=True, extra="allow"):
    """Any ``torch.optim`` class by name (any case); further keys are its arguments. Its state starts anew with
    every training, so that a silo's update depends on the received model alone."""

    name: str = "sgd"
    lr: float = Field(default=0.01, gt=0)

    @property
    def is_sgd(self) -> bool:
        """SGD, perhaps with momentum: how strongly it applies each gradient is known."""
        return self.name.lower() == "sgd"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"lr": self.lr, **(self.model_extra or {})}


class Constant(_Spec, frozen=True):
    """The same rate in every round."""

    name: Literal["constant"] = "constant"

    def factor(self, version: int, total: int) -> float:
        return 1.0


class Step(_Spec, frozen=True):
    """``gamma`` times smaller every ``every`` versions."""

    name: Literal["step"]
    every: int = Field(ge=1)
    gamma: float = Field(default=0.1, gt=0, le=1)

    def factor(self, version: int, total: int) -> float:
        return float(self.gamma ** (version // self.every))


class Cosine(_Spec, frozen=True):
    """Half a cosine from 1 to ``final`` over the job's rounds, after ``warmup`` rounds of linear rise."""

    name: Literal["cosine"]
    warmup: int = Field(default=0, ge=0)
    final: float = Field(default=0.0, ge=0, le=1)

    def factor(self, version: int, total: int) -> float:
        if version < self.warmup:
            return (version + 1) / (self.warmup + 1)
        done = (version - self.warmup) / max(1, total - self.warmup)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * min(1.0, done))) / 2


Schedule = Annotated[Constant | Step | Cosine, Field(discriminator="name")]


class Local(_Spec, frozen=True):
    """One local training: ``epochs`` over the silo's rows, or a number of ``steps`` (batches)."""

    epochs: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=32, ge=1)
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Constant()
    clip_grad_norm: float | None = Field(default=None, gt=0)
    """Largest norm of a batch gradient."""
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """Mixed precision by autocast; parameters stay float32."""
    channels_last: bool = False
    compile: bool = False
    """``torch.compile`` the model."""
    threads: int = Field(default=1, ge=1)
    """Torch threads on a CPU. Pinned, because the bits of a training depend on it."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give 'epochs' or 'steps', not both")
        return self

    @property
    def num_epochs(self) -> int:
        """Epochs of a training that is not counted in steps."""
        return self.epochs or 1

    def num_steps(self, num_examples: int) -> int:
        """Batches of one training on so many rows."""
        return self.steps or self.num_epochs * max(1, -(-num_examples // self.batch_size))


class FineTune(_Spec, frozen=True):
    """How a silo makes the final model its own: so many ``steps``, or ``epochs``, on its training rows."""

    steps: int | None = Field(default=None, ge=1)
    epochs: int | None = Field(default=None, ge=1)
    """Neither: one epoch."""
    lr: float | None = Field(default=None, gt=0)
    """Default: the local optimizer's."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give 'epochs' or 'steps', not both")
        return self

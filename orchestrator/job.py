"""The job: one document on which the federation agrees. Its sections are the objects that run."""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from orchestrator.aggregation.mean import Mean
from orchestrator.compression.plain import Bf16, Raw
from orchestrator.core import document
from orchestrator.core.random import rng_of
from orchestrator.core.rounds import RoundPolicy
from orchestrator.local import Local
from orchestrator.privacy.clip import Clip
from orchestrator.report import ReportSettings
from orchestrator.round_settings import RoundSettings
from orchestrator.strategies.apfl import Apfl
from orchestrator.strategies.area import Area
from orchestrator.strategies.diloco import DiLoCo
from orchestrator.strategies.ditto import Ditto
from orchestrator.strategies.fedasync import FedAsync
from orchestrator.strategies.fedavg import FedAvg
from orchestrator.strategies.fedbn import FedBN
from orchestrator.strategies.feddyn import FedDyn
from orchestrator.strategies.fedma import FedMA
from orchestrator.strategies.fedmd import FedMD
from orchestrator.strategies.fednova import FedNova
from orchestrator.strategies.fedper import FedPer
from orchestrator.strategies.fedprox import FedProx
from orchestrator.strategies.fedrep import FedRep
from orchestrator.strategies.fomaml import Fomaml
from orchestrator.strategies.meta_sgd import MetaSgd
from orchestrator.strategies.moon import Moon
from orchestrator.strategies.per_fedavg import PerFedAvg
from orchestrator.strategies.reptile import Reptile
from orchestrator.strategies.scaffold import Scaffold
from orchestrator.task import Task
from orchestrator.transfer import Adapters, StartFrom

Averaged = FedAvg | FedProx | Scaffold | FedNova | FedDyn | Moon | DiLoCo | FedAsync | Area | FedMA
"""One model for all."""
Adapted = Fomaml | PerFedAvg | MetaSgd | Reptile
"""A model from which each silo goes on."""
Personal = Ditto | Apfl | FedPer | FedRep | FedBN | FedMD
"""Each silo has its own, in whole or in part."""
Strategy = Annotated[Averaged | Adapted | Personal, Field(discriminator="name")]
Transform = Clip
Codec = Annotated[Raw | Bf16, Field(discriminator="name")]
Combiner = Mean


class _Spec(BaseModel, frozen=True, extra="forbid"):
    pass


class Stop(_Spec, frozen=True):
    """When to stop before the last round, and which version is the best."""

    metric: str = "loss"
    """Pooled metric of the silos' test rows; a name that no silo reports ends the run in round 0."""
    target: float | None = None
    patience: int | None = Field(default=None, ge=1)
    """Stop after so many versions without an improvement by more than ``min_delta``."""
    min_delta: float = Field(default=0.0, ge=0)
    wall_time_s: float | None = Field(default=None, gt=0)


class Gate(_Spec, frozen=True):
    """What an update must satisfy before any rule sees it. Finite numbers are always required."""

    max_norm: float | None = Field(default=None, gt=0)
    """Largest Euclidean norm of the packed update."""


class Tracking(_Spec, frozen=True):
    """Where the run appears in MLflow."""

    experiment: str | None = None
    """Default: the job's name."""
    model: str | None = None
    """Registered model; default: the job's name."""
    every: int = Field(default=10, ge=1)
    """A model is logged every so many versions, besides the best and the last."""


class Keep(_Spec, frozen=True):
    """Checkpoints in the run directory; every version is one, and the best stays."""

    newest: int = Field(default=3, ge=2)


class Job(_Spec, frozen=True):
    """The document that the federation agrees on (``job.yaml``)."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    task: Task
    silos: tuple[str, ...] = Field(min_length=1)
    required_silos: tuple[str, ...] = ()
    """No round closes without these."""
    held_out: tuple[str, ...] = ()
    """Silos of the job that join but never train the model; at the end it is tried on them, and adapted to them
    (``report``). Their figures stand apart."""
    rounds: RoundSettings
    strategy: Strategy = FedAvg()
    local: Local = Local()
    shared: tuple[str, ...] = ("*",)
    """Globs over names of parameters and float buffers that are trained together."""
    private: tuple[str, ...] = ()
    """Globs over names that stay at the silo (FedBN: ``['*bn*']``; a head of its own: ``['head.*']``)."""
    start_from: StartFrom | None = None
    """Weights that version 0 begins with: a file, torchvision's, or a past run's (``start_from: runs/ID``). They are
    taken by name, where shapes fit; every silo gets them once."""
    adapters: Adapters | None = None
    frozen: tuple[str, ...] = ()
    """Globs over names of parameters and float buffers that are neither trained nor sent. Names in ``private``, and in
    globs of ``shared`` other than ``*``, are not frozen: ``frozen: ['*'], shared: ['head.*']`` trains the head."""
    unfreeze: dict[int, tuple[str, ...]] = {}
    """Frozen no longer, by the version from which on they are trained: ``{5: ['layer4.*'], 10: ['*']}``. What is to
    be trained some day travels from the start."""
    privacy: tuple[Transform, ...] = ()
    codec: Codec = Raw()
    combine: Combiner = Mean()
    gate: Gate = Gate()
    stop: Stop = Stop()
    report: ReportSettings = ReportSettings()
    keep: Keep = Keep()
    seed: int = Field(default=0, ge=0)
    tracking: Tracking = Tracking()

    @field_validator("silos", "required_silos", "held_out")
    @classmethod
    def _names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError("a silo's name stands twice")
        for name in names:
            if not name.replace("-", "").replace("_", "").isalnum() or name in {"global", "overall"}:
                raise ValueError(
                    f"'{name}' is no silo name: letters, digits, - and _ (not 'global', 'overall')"
                )
        return names

    @model_validator(mode="after")
    def _legal(self) -> Self:
        from orchestrator.legality import refusals  # the table needs this class for its annotations

        for reason in refusals(self):
            raise ValueError(reason)
        return self

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical document, defaults written out."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def training(self) -> tuple[str, ...]:
        """Silos that train: all but those held out."""
        return tuple(silo for silo in self.silos if silo not in self.held_out)

    @cached_property
    def policy(self) -> RoundPolicy:
        return self.rounds.policy(max(1, len(self.training)), frozenset(self.required_silos))

    @property
    def datasets(self) -> tuple[str, ...]:
        """Data sets that every silo must have."""
        public = (self.strategy.public,) if isinstance(self.strategy, FedMD) else ()
        return (self.task.dataset, *public)

    @property
    def corrects_rates(self) -> bool:
        """Whether silos that deliver rarely count for more when they do."""
        rounds = self.rounds
        return rounds.rate_correction or (rounds.mode == "auto" and self.strategy.reweighs)

    def sample(self, version: int, candidates: Any, size: int) -> set[str]:
        """The cohort draw for a version: keyed by the seed, so that a resumed run draws the same."""
        drawn = rng_of(self.seed, "cohort", version).choice(len(candidates), size=size, replace=False)
        return {candidates[i] for i in drawn}


def load_job(path: Path) -> Job:
    """Read ``job.yaml``; `BadInput` in one line when it is wrong."""
    return document.load(path, Job)


def json_schema() -> dict[str, Any]:
    """The published JSON schema of ``job.yaml``."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Job.model_json_schema()}

"""The job: one document on which the federation agrees. Its sections are the objects that run."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, Field, field_validator, model_validator

from orchestrator.aggregation.mean import Mean
from orchestrator.compression.plain import Bf16, Raw
from orchestrator.contract import Contract
from orchestrator.core import document
from orchestrator.core.protocols import Facts, Step
from orchestrator.core.random import rng_of
from orchestrator.core.rounds import RoundPolicy
from orchestrator.local import Local
from orchestrator.privacy.clip import Clip
from orchestrator.privacy.dp_sgd import DpSgd
from orchestrator.privacy.encrypted_sum import EncryptedSum
from orchestrator.privacy.mechanisms import STEPS, AdaptiveClip, Gaussian
from orchestrator.privacy.ring_sum import FixedPointSum, RingSum
from orchestrator.privacy.secure_sum import SecureSum
from orchestrator.privacy.two_aggregators import TwoAggregatorSum
from orchestrator.release import ReleaseSettings
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
Transform = Annotated[Clip | AdaptiveClip | Gaussian | DpSgd, Field(discriminator="name")]
Codec = Annotated[Raw | Bf16, Field(discriminator="name")]


def _mean_if_unnamed(section: Any) -> Any:
    return {"name": "mean", **section} if isinstance(section, dict) and "name" not in section else section


Combiner = Annotated[
    Annotated[
        Mean | FixedPointSum | SecureSum | TwoAggregatorSum | EncryptedSum, Field(discriminator="name")
    ],
    BeforeValidator(_mean_if_unnamed),
]


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


class Card(_Spec, frozen=True):
    """What only people can say of the model, for its card (``siloray card``)."""

    intended_use: str = ""
    not_for: str = ""
    """What it must not be used for."""
    limits: str = ""
    """Known ones: whom the data are not about, where the model was not tried."""
    contact: str = ""


class Keep(_Spec, frozen=True):
    """Checkpoints in the run directory; every version is one, and the best stays."""

    newest: int = Field(default=3, ge=2)
    updates: int = Field(default=0, ge=0, le=10_000)
    """Versions of which the silos' updates stay, too, so that ``siloray verify RUN --replay VERSION`` can compute the
    round anew. They are what the silos gave, in full: whoever can read the run directory can study them."""


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
    contract: Contract | None = None
    """What every silo's rows must be, before the first round."""
    privacy: tuple[Transform, ...] = ()
    codec: Codec = Raw()
    combine: Combiner = Mean()
    gate: Gate = Gate()
    stop: Stop = Stop()
    report: ReportSettings = ReportSettings()
    card: Card = Card()
    release: ReleaseSettings | None = None
    """Without it the registry's alias moves to the best version whatever the model tells of the silos' rows."""
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

        for place in document.not_finite(self.model_dump()):
            raise ValueError(f"{place}: a number that is finite is wanted")
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
        return self.rounds.policy(max(1, len(self.training)), self.needed_silos)

    @cached_property
    def loosest_policy(self) -> RoundPolicy:
        """The numbers of rounds that wait least, whatever mode ``auto`` comes to."""
        return self.rounds.relaxed(self.policy) if self.rounds.mode == "auto" else self.policy

    @property
    def needed_silos(self) -> frozenset[str]:
        """Without whom no round closes: those that the job requires, and those whom its sums cannot do without."""
        return frozenset(self.required_silos) | (self.sums.helpers if self.sums else frozenset())

    @property
    def sums(self) -> RingSum | None:
        """The combiner, where updates leave in sums of whole numbers only."""
        return self.combine if isinstance(self.combine, RingSum) else None

    @property
    def least_in_sum(self) -> int:
        """Fewest silos of which the driver may learn the sum."""
        groups = self.sums.groups if self.sums else None
        return self.policy.min_silos if groups is None else groups.size

    @property
    def max_in_sum(self) -> int:
        """Most updates in one sum: where updates may be late, a silo's last one and the one before may be in it."""
        return self.policy.cohort_size * (2 if self.loosest_policy.most_stale else 1)

    @property
    def noise(self) -> Gaussian | None:
        """What hides one silo among the others."""
        return next((each for each in self.privacy if isinstance(each, Gaussian)), None)

    @cached_property
    def facts(self) -> Facts:
        """Raises `BadJob` where no noise meets the target."""
        noise = self.noise
        if noise is None:
            return Facts(min_silos=self.policy.min_silos)
        multiplier, least = noise.multiplier(self.rounds.total), 0.0
        if noise.where == "silos" and self.sums is not None:
            quantum = self.sums.fixed_point(self.max_in_sum).quantum
            least = STEPS * quantum * self.policy.min_silos**0.5 / multiplier
        return Facts(min_silos=self.policy.min_silos, noise_multiplier=multiplier, least_bound=least)

    def steps(self, settings: Mapping[str, float]) -> list[Step]:
        """The privacy steps as they are for a version with these settings."""
        facts, made = self.facts, list[Step]()
        for transform in self.privacy:
            made.append(transform.adapted(settings, facts))
            facts = replace(facts, bound=made[-1].bound)
        return made

    @property
    def extra_parts(self) -> dict[str, int]:
        """Parts that the privacy steps add to an update, with their sizes."""
        return {name: size for transform in self.privacy for name, size in transform.extra.items()}

    @property
    def dp_sgd(self) -> DpSgd | None:
        """How the silos' training keeps single records, or patients, private; None where it does not."""
        return next((each for each in self.privacy if isinstance(each, DpSgd)), None)

    @property
    def alters_updates(self) -> bool:
        """Whether a privacy step does something to updates; ``dp_sgd`` is in the training, and leaves them as they
        are."""
        return any(not isinstance(each, DpSgd) for each in self.privacy)

    @property
    def noise_repeats(self) -> bool:
        """Whether a test wants the noise of some privacy step to be known."""
        return any(getattr(each, "insecure_test_noise_seed", None) is not None for each in self.privacy)

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

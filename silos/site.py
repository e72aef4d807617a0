"""What a silo needs from the place where it runs: its policy, its data and its trainer."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator.at_rest import Key
from orchestrator.core.messages import Judged, LedgerHead, Refused, Update, Vote, Work
from orchestrator.core.metrics import MetricSums
from orchestrator.core.vector import Packet, Parts, Vector
from orchestrator.job import Job
from orchestrator.privacy.sealing import Rules
from silos.identity import Identity
from silos.metrics_rule import MetricsRule
from silos.mid_round import MidRound
from silos.odometer import Spent
from silos.spending import Charge, Spend
from silos.told import whole

Code = Literal["busy", "policy"]

Tick = Callable[[str, int, int], None]
"""Called at every step of the work with (phase, steps done, steps in all); raises `Cancelled` to leave."""


class Cancelled(Exception):
    """The work in hand ends without a result. ``code`` and ``reason`` of the refusal that answers for it: the driver
    no longer wants it, unless something else is said."""

    def __init__(
        self, code: str = "cancelled", reason: str = "the driver no longer wanted this work"
    ) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One training."""

    version: int
    received: Parts
    """The broadcast parts: ``params`` and what else the strategy sends. Read-only."""
    state: MutableMapping[str, Vector]
    """The silo's private state; what is in it afterwards is kept."""
    tick: Tick
    num_steps: int | None = None
    """Local steps that the driver asks for; None: as the job, or the silo's own document, says. Of an assessment:
    those that the run had of the silo, in so many ``trainings``."""
    enough: Callable[[], bool] = lambda: False
    """Whether to end after this step with what is there."""
    mid_round: MidRound | None = None
    """Where the training in progress is put on disk, and may be found."""
    trainings: int = 0
    draw: int = 0
    """Which training from this version: each draws its own batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a training gave."""

    parts: Parts
    """The strategy's vectors. They may lie in the trainer's memory, until its next training."""
    scalars: dict[str, float]
    num_examples: int
    num_steps: int
    metrics: MetricSums
    """Of the received model, on the test split."""
    train_metrics: MetricSums
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class OwnModel:
    """The model that a run leaves to the silo. It stays here."""

    kind: Literal["personal", "fine_tuned", "global"]
    """The strategy's own for this silo; or else the received one after local steps, where these were accepted; or as
    received. With the silo's private layers in each case."""
    tensors: Mapping[str, NDArray[Any]]
    """The module's whole state, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """What a received model does for the silo; fields as in `Assessed`."""

    models: Mapping[str, Judged]
    curve: tuple[tuple[int, MetricSums], ...]
    accepted: int
    num_steps: int
    seconds: dict[str, float]
    own: OwnModel | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """How far the attacks of the job's ``release`` section get on a model; for the silo itself."""

    verdicts: Mapping[str, Literal["pass", "fail", "unable"]]
    """By attack."""
    scores: Mapping[str, float]
    why: Mapping[str, str]
    """Of attacks that were not possible."""
    num_rows: int
    """In the smallest group of rows behind the scores; 0 for none."""
    seconds: Mapping[str, float]

    @property
    def vote(self) -> Vote:
        """``fail`` where any attack gets too far; ``none`` where none was possible."""
        said = set(self.verdicts.values())
        return "fail" if "fail" in said else "pass" if "pass" in said else "none"


class Trainer(Protocol):
    """Local training of one job. The torch one is `silos.trainer.TorchTrainer`."""

    schema_digest: str
    num_parameters: int
    num_shared: int
    num_examples: dict[str, int]
    device: str
    loaded: str
    """Digest of the weights that it was told to begin with; empty for none."""

    def describe(self) -> dict[str, Any]:
        """The model's tensors and an input's shape, without any data: for exports."""
        ...

    def begin_with(self, weights: Mapping[str, NDArray[np.float32]], digest: str) -> None:
        """Begin with these numbers in the tensors of these names. Raises ValueError where one is not the model's, or of
        another shape."""
        ...

    def initial(self) -> Parts: ...

    def evaluate(self, order: Order) -> MetricSums:
        """Measure the received model on the test split, with the silo's private state."""
        ...

    def settle(self, had: Sequence[Charge], run_id: str, order: Order | None = None) -> None:
        """Find the noise that the job's target takes, given what was asked of the data before; asked before a training,
        and, without an order, when the silo joins. Raises `BadJob` where no noise will do."""
        ...

    def most(self, version: int) -> Spend | None:
        """What a training of this version may cost at most, whatever the driver asks for; None as for `spends`."""
        ...

    def spends(self, order: Order) -> Spend | None:
        """What a training by this order costs in privacy; None where it has no noise that could be accounted for."""
        ...

    def train(self, order: Order) -> Trained: ...


class Guard:
    """The organisation's word on the moment and on what leaves, and its record of them. This one has no rules and
    keeps none."""

    @property
    def policy_digest(self) -> str:
        """SHA-256 of the rules as they are now; empty for none."""
        return ""

    def closed(self, job: Job) -> tuple[Code, str] | None:
        """Why the silo does not work on the job now: a code and a sentence."""
        return None

    def joined(self, run_id: str, job: Job) -> None:
        """The silo takes part; raises `BadInput` when that cannot be recorded."""

    def begins(self, job: Job, request: Work, state: Mapping[str, Vector]) -> str | None:
        """Why this work must not begin from this private state; raises `BadInput` when it cannot be recorded that
        it does."""
        return None

    def obey(self, config: Any) -> None:
        """The organisation's document (`silos.config.SiloConfig`) as it is now."""

    def told_of(self, head: LedgerHead | None) -> None:
        """The driver knows this head of the privacy ledger; raises `BadInput` where it is not in it."""

    def planned(self, job: Job, run_id: str, data: str, plan: Sequence[Spend]) -> Spent | None:
        """What data of this fingerprint will have lost when the whole job is done; None where nobody keeps account.
        Raises `Cancelled` where the owner's budget does not allow it."""
        return None

    def had(self, job: Job, data: str) -> Sequence[Charge]:
        """What was asked of data of this fingerprint, as far as anybody keeps account."""
        return ()

    def spends(
        self, job: Job, request: Work, data: str, spends: Sequence[Spend], head: LedgerHead | None = None
    ) -> Spent | None:
        """Enter in the privacy ledger what this work is about to cost; ``head``: as in `told_of`. None where nobody
        keeps account, or nothing is spent. Raises `Cancelled` where the owner's budget does not allow it."""
        return None

    def leaving(self, job: Job, update: Update, packet: Packet) -> str | None:
        """Why this update must not leave; raises `BadInput` when it cannot be recorded that it does."""
        return None

    def left(self, what: str, run_id: str, **facts: Any) -> None:
        """Something else than an update leaves; raises `BadInput` when that cannot be recorded."""

    def refused(self, run_id: str, reply: Refused) -> None:
        """Keep on record that the silo refused."""

    def told(self, run_id: str, error: Exception) -> str:
        """What the driver may know of an error; the silo's own people keep all of it."""
        return whole(error)


class Site(Protocol):
    """One organisation's side of a job."""

    @property
    def name(self) -> str: ...
    @property
    def guard(self) -> Guard: ...
    @property
    def key(self) -> Key | None:
        """Encrypts what the silo keeps of its runs; None: it lies in the clear. Raises `BadInput`."""
        ...

    @property
    def identity(self) -> Identity:
        """The key that the silo signs with; raises `BadInput`."""
        ...

    def review(self, job: Job) -> str | None:
        """Why the organisation will not take part; None if it will."""
        ...

    def trainer(self, job: Job) -> Trainer:
        """Open the data and build the model; raises `BadInput`."""
        ...

    def assess(self, trainer: Any, order: Order) -> Assessment:
        """Compare the received model with what the silo could have without it, as the job's ``report`` says."""
        ...

    def attack(self, trainer: Any, order: Order) -> Findings:
        """Attack the received model with the silo's own rows, as the job's ``release`` says; raises `Cancelled` where
        the organisation's policy is against it."""
        ...

    def tell(self, found: Findings) -> Findings:
        """What may leave of the findings, besides the vote."""
        ...

    def keep(self, run_id: str, own: OwnModel, card: Mapping[str, Any]) -> None:
        """Keep the run's model for the organisation's own use, with what is known of it; raises `BadInput`."""
        ...

    def fingerprint(self, job: Job) -> str:
        """Digest of the data that the job would use."""
        ...

    def files_fingerprint(self, job: Job) -> str:
        """Of the files that hold it, whatever has been approved of them."""
        ...

    @property
    def metrics_rule(self) -> MetricsRule:
        """How metrics leave."""
        ...

    def release(self, metrics: MetricSums) -> MetricSums:
        """The metrics that may leave."""
        ...

    def release_in_sums(self, metrics: MetricSums) -> MetricSums:
        """The metrics that may leave in a sum over silos of which nobody sees a single one."""
        ...

    @property
    def sum_rules(self) -> Rules:
        """The organisation's rules on such sums."""
        ...

    def counts(self, trainer: Trainer) -> dict[str, int]:
        """The numbers of examples that may leave, by split; empty where none may."""
        ...

    def quarantined(self) -> dict[str, int]:
        """The numbers of samples that the data contract leaves out, by split, as far as they may leave; empty without
        a contract."""
        ...

    def labels(self) -> dict[str, int]:
        """The numbers of training rows of each class, as far as they may leave; empty without a data contract."""
        ...

    def describe(self) -> dict[str, Any]:
        """``node``, ``device`` and ``datasets`` (rows by data set and split) for whoever lists silos."""
        ...

    @property
    def own_folder(self) -> Path:
        """Where the silo keeps what outlives its runs."""
        ...

    def state_folder(self, run_id: str) -> Path:
        """Where private state of a run is kept."""
        ...

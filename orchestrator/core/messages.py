"""What driver and silos say to each other. Headers are plain values; arrays travel beside them.

Every request carries the run and the driver's epoch (fencing): a silo that has seen a newer driver refuses
an older one. An update stays at its silo until the driver fetches it, piece by piece, while folding.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ConfigDict

from orchestrator.core.metrics import MetricSums
from orchestrator.core.receipts import Receipt
from orchestrator.core.vector import Packet

SiloId = str


@dataclass(frozen=True, slots=True)
class LedgerHead:
    """Up to where a silo's privacy ledger goes: its number of lines, and the hash of the last one, which stands for
    all of them."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    length: int
    hash: str
    key: str = ""
    """Of the driver that has signed `statement`, in base64 as the signature; empty where none has."""
    signature: str = ""

    def statement(self, silo: SiloId) -> bytes:
        """What a driver signs: that it was told of this head."""
        return f"siloray ledger head\n{silo}\n{self.length}\n{self.hash}".encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Common header of all requests."""

    run_id: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Join(Request):
    """Take part in this job: the silo checks its policy and data and describes itself."""

    job: str
    """The job document as JSON."""
    job_digest: str
    ledger: LedgerHead | None = None
    """The newest head of the silo's privacy ledger that the driver was told of, in any run, and signed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load(Request):
    """Begin with these weights in place of those that the seed gives. Asked once, of a silo that has joined; it is
    answered as `Join` is."""

    layout: tuple[tuple[str, tuple[int, ...]], ...]
    """Names and shapes of the model's tensors, in the order of the vector."""
    model: Any
    """The channel's handle of one part, ``values`` (`Channel.publish`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Initial(Request):
    """Send the initial shared parameters (seeded by the job, so every silo would send the same)."""


MOST_DRAWS = 3
"""Trainings from one version, after the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Train(Request):
    """Evaluate this model version, train from it, and keep the update ready for `Fetch`."""

    version: int
    attempt: int
    model: Any
    """The channel's handle of the broadcast parts (`Channel.publish`)."""
    model_digest: str
    """Identity of the version: the same digest again means the same work."""
    counted: int
    """Version of the silo's newest update that is in the model or will be; -1: none. The silo's private state goes
    on from there, so that work which never counted leaves no trace in it."""
    num_steps: int | None = None
    """Local steps that the driver asks for, in rounds of equal time; None: as the job, or the silo's own document,
    says."""
    inline: int
    """Send the packet with the reply when it has at most this many elements."""
    keep: tuple[int, ...] = ()
    """Versions whose update from this silo the driver has not fetched yet."""
    ledger: LedgerHead | None = None
    """As for `Join`."""
    settings: dict[str, float] = field(default_factory=dict)
    """The job's numbers that evolve, as they are for this version (`RoundClosed.settings`)."""
    draw: int = 0
    """Which training from this version: each draws its own batches. Another one than the first is asked for where the
    update before was opened in another sum, so that nobody may sum it anew."""
    head: str = ""
    """Of the driver's journal, as far as it is durable: the silo signs that it has seen it."""
    head_length: int = 0
    """Lines up to it."""
    contributors: tuple[str, ...] = ()
    """Silos whose updates are in the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate(Request):
    """Evaluate this model version and do not train."""

    version: int
    model: Any
    counted: int
    """As for `Train`."""
    head: str = ""
    """Of the driver's journal, as far as it is durable: the silo signs that it has seen it; empty: no receipt is
    wanted."""
    head_length: int = 0
    """Lines up to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assess(Request):
    """Compare, on the silo's own test rows, this version with what the silo could have without it."""

    version: int
    model: Any
    model_digest: str
    """As for `Train`."""
    counted: int
    """As for `Train`."""
    trainings: int
    """Updates that the silo gave to the run: a model trained alone gets as many trainings."""
    num_steps: int
    """Local steps in them, as far as the driver knows; 0: as many as the silo makes in so many trainings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack(Request):
    """Attack this version with the silo's own rows, as the job's ``release`` section says, and vote on it."""

    version: int
    model: Any
    model_digest: str
    """As for `Train`."""
    counted: int
    """As for `Train`."""
    trainings: int
    """As for `Assess`."""
    num_steps: int
    """As for `Assess`."""
    head: str = ""
    """As for `Evaluate`."""
    head_length: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch(Request):
    """Elements ``start`` to ``stop`` of the update's packet."""

    version: int
    start: int
    stop: int
    tag: str = ""
    """Of the sum for which the packet was sealed; empty where updates are fetched in the clear."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask(Request):
    """A step of a sum that nobody can look into (`orchestrator.privacy.sealing`). Answered while the silo trains."""

    version: int
    attempt: int
    step: str
    fields: dict[str, Any]
    """Plain JSON; bytes as base64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping(Request):
    """Are you alive, and how far are you? Answered while training runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop(Request):
    """Leave the training in hand at the next batch."""

    hand_in: int | None = None
    """Version whose training is to end with what is there, and be reported; None: no work in hand is wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave(Request):
    """The run has ended: its updates and private state may go, and another run may have the silo."""

    finished: bool
    """False when the run was stopped and may go on: its private state stays."""
    head: str = ""
    """Of the driver's journal, as far as it is durable: the silo signs that it has seen it."""
    head_length: int = 0
    """Lines up to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A silo's description of itself, as far as its policy lets it out."""

    silo: SiloId
    incarnation: str
    """Changes whenever the silo's process starts anew."""
    schema_digest: str
    """Digest of names, shapes and order of the shared parameters."""
    num_parameters: int
    num_shared: int
    num_examples: dict[str, int]
    """Examples per split; empty where the policy keeps them in."""
    quarantined: dict[str, int] = field(default_factory=dict)
    """Samples per split that the data contract leaves out; empty without one, or where the policy keeps them in."""
    labels: dict[str, int] = field(default_factory=dict)
    """Training rows of each class; empty without a data contract, or where the policy keeps them in."""
    fingerprint: str
    """Digest of the silo's data files, or of their manifest; a rejoin with other data is refused."""
    device: str
    node: str
    loaded: str = ""
    """Digest of the weights that it has from `Load`; empty for none."""
    model: dict[str, Any]
    """The model's tensors and an input's shape, without any data."""
    versions: dict[str, str]
    metrics: Literal["open", "summed", "noised", "none"] = "open"
    """How metrics on the silo's rows leave (``policy.metrics`` in its ``silo.yaml``)."""
    planned: dict[str, float] = field(default_factory=dict)
    """Public numbers on the privacy that the whole job will cost (``epsilon``, ``delta``, ...); empty where nothing is
    accounted for."""
    key: str = ""
    """Its public Ed25519 key, in base64: what its receipts are signed with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What a silo made of a version. The packet itself is fetched later, unless it came inline."""

    silo: SiloId
    run_id: str
    epoch: int
    version: int
    attempt: int
    model_digest: str
    job_digest: str
    layout: tuple[tuple[str, int], ...]
    """Names and sizes of the packed parts."""
    weight: float
    num_examples: int
    num_steps: int
    scalars: dict[str, float]
    """Public numbers of the strategy (FedNova's normaliser); never part of the clipped vector."""
    metrics: MetricSums
    """Sums of the received model on the silo's test split."""
    train_metrics: MetricSums
    """Sums over the batches trained on."""
    received: str = ""
    """SHA-256 of the model that the silo trained from, as it came (`orchestrator.core.vector.digest_of`)."""
    privacy: dict[str, float] = field(default_factory=dict)
    """Public numbers on the privacy spent with this update: ``epsilon``, ``epsilon_rdp``, ``delta``, ..."""
    ledger: LedgerHead | None = None
    """Of the silo's privacy ledger, with this update's cost in it."""
    summed: tuple[tuple[str, str, int], ...] = ()
    """Names, kinds and sizes of metrics that the silo adds to the sum."""
    hidden: tuple[str, ...] = ()
    """Names of those that it tells in no other way, or not as exactly."""
    settings: str = ""
    """Digest of `Train.settings`; empty for none."""
    draw: int = 0
    """As in `Train`."""
    seconds: dict[str, float]
    """By phase at the silo: load, evaluate, train, pack."""
    packet_bytes: int
    receipt: Receipt | None = None
    packet: Packet | None = None

    @property
    def size(self) -> int:
        """Elements of the packed vector."""
        return sum(size for _, size in self.layout)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """Sums of a version on the silo's test split."""

    silo: SiloId
    version: int
    metrics: MetricSums
    seconds: float
    received: str = ""
    """As in `Update`."""
    summed: tuple[tuple[str, str, int], ...] = ()
    """As in `Update`."""
    hidden: tuple[str, ...] = ()
    """As in `Update`."""
    receipt: Receipt | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """To an `Ask`."""

    silo: SiloId
    version: int
    attempt: int
    step: str
    fields: dict[str, Any]


Verdict = Literal["better", "same", "worse"]


@dataclass(frozen=True, slots=True)
class Judged:
    """A model on a silo's test rows. Intervals hold 95 % of the bootstrap's resamples of these rows; there are none
    where there are too few rows, or where they would tell a number of rows that the silo keeps to itself."""

    metrics: MetricSums
    intervals: dict[str, tuple[float, float]]
    gains: dict[str, tuple[float, float]]
    """Interval of its figure minus that of the model trained alone, on the same resamples."""
    verdicts: dict[str, Verdict]
    """Beside the model trained alone: whether all of ``gains`` lies on one side of zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessed:
    """What became of a version at a silo."""

    silo: SiloId
    version: int
    model_digest: str
    models: dict[str, Judged]
    """``global``: as received. ``fine_tuned``: after local steps that were accepted, else as received. ``alone``:
    trained on this silo's rows only. ``personal``: the strategy's own for this silo."""
    curve: tuple[tuple[int, MetricSums], ...]
    """After so many local steps from the received model."""
    accepted: int
    """Steps of the fine-tuned model; 0: none helped on the silo's validation rows."""
    num_steps: int
    """Of the model trained alone; 0 where the silo keeps its counts to itself."""
    seconds: dict[str, float]


Vote = Literal["pass", "fail", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attacked:
    """What became of the attacks on a version at a silo, as far as its policy lets it out."""

    silo: SiloId
    version: int
    model_digest: str
    vote: Vote
    """``none``: no attack was possible."""
    verdicts: dict[str, Literal["pass", "fail", "unable"]]
    """By attack; empty where only the vote may leave."""
    scores: dict[str, float]
    """Rounded (``auc``, ``tpr_at_1_fpr``, ``exposure``, ``psnr``, ...); empty where only the vote may leave."""
    why: str
    """Why attacks were not possible; empty where all were."""
    seconds: float
    receipt: Receipt | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a silo is: any change of ``marks`` is a sign of life worth waiting for."""

    silo: SiloId
    incarnation: str
    phase: str
    version: int
    num_steps: int
    total_steps: int
    marks: int
    receipt: Receipt | None = None
    """To `Leave`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A slice of an update's packet, or the initial parameters."""

    packet: Packet


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The silo will not: its policy, its data or the request forbids it."""

    silo: SiloId
    code: Literal["policy", "data", "fenced", "unknown", "cancelled", "job", "busy", "failed", "bound"]
    """``bound``: the update was opened in another sum; one of another draw may be summed."""
    reason: str
    of: SiloId = ""
    """In a sum: the silo because of whose part in it."""


Work = Train | Evaluate | Assess | Attack
"""Requests that come with a model and take their time."""

Carrying = Work | Load
"""Requests with vectors, which travel beside them."""

AT_ONCE = (Fetch, Ping, Stop, Ask)
"""Answered while the silo works, in a thread of their own."""

Reply = Joined | Update | Evaluated | Assessed | Attacked | Answer | Progress | Piece | Refused


@dataclass(frozen=True, slots=True)
class CohortInfo:
    """What a strategy may know about the updates of a closing round, in the order of the sum."""

    num_silos: int
    """Silos in the job."""
    weights: tuple[float, ...]
    """Normalised weights, staleness discount not included; they sum to one."""
    scalars: tuple[dict[str, float], ...]
    factors: tuple[float, ...] = ()
    """What the rounds' rules multiply the updates by, besides their weights: the discount of stale ones, and the
    correction for silos that deliver rarely. Empty: nothing."""
    staleness: tuple[int, ...] = ()
    """Versions by which each is late."""
    mass: float = 1.0
    """Weight of all updates together, in that of all silos of the job."""

    @property
    def share(self) -> float:
        """Updates per silo of the job (SCAFFOLD's |S|/N)."""
        return len(self.weights) / self.num_silos

    def mean(self, scalar: str) -> float:
        """Weighted mean of a public scalar."""
        return sum(weight * each[scalar] for weight, each in zip(self.weights, self.scalars, strict=True))

"""What happens in a run. Events marked durable are the journal; the others are for whoever watches.

Everything that people look at (MLflow, summary, plots, console) is made from the journal.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BaseModel, Field, TypeAdapter

from orchestrator.core.receipts import Receipt

MAX_REASON = 2000
"""Characters kept of what somebody else gives as a reason."""


def shortened(text: str) -> str:
    """The text, or the beginning of one that is too long for the journal."""
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 1] + "…"


Reason = Annotated[str, AfterValidator(shortened)]
"""A sentence in which a silo's own words may stand, which it could make as long as it likes."""


class _Event(BaseModel, frozen=True, extra="forbid"):
    durable: ClassVar[bool] = True
    """Whether the event goes into the journal."""
    seq: int = -1
    """Line of the journal; set by the store."""
    time: float = 0.0
    """Wall clock, seconds since 1970; set by the store."""


class Figures(BaseModel, frozen=True):
    """Metrics of one model version: pooled over silos, and silo by silo."""

    version: int
    overall: dict[str, float] = {}
    """Pooled from the silos' sums, as if the test rows lay in one place."""
    silos: dict[str, dict[str, float]] = {}
    missing: list[str] = []
    """Silos of the job whose figure for this version did not come."""


class Contributor(BaseModel, frozen=True):
    """One update that went into a version."""

    silo: str
    base_version: int
    staleness: int
    weight: float
    """What the update was multiplied by in the sum: its share, discounts and corrections included. In a sealed sum as
    far as the silo tells its weight: one that keeps its number of rows to itself counts as the others here."""
    num_examples: int
    num_steps: int
    norm: float | None
    """Euclidean norm of the packed update; None where the driver sees no single update."""
    cosine: float | None = None
    """Of the angle between the packed update and the round's mean; None where the driver sees no single update."""
    train: dict[str, float] = {}
    """Figures over the batches trained on (``loss``)."""
    seconds: dict[str, float] = {}
    """By phase at the silo: load, evaluate, train, report, pack; and ``transfer``: the way there and back."""
    bytes_up: int = 0
    bytes_down: int = 0
    privacy: dict[str, float] = {}
    """Public numbers on the privacy that the silo has spent by then (``epsilon``, ``epsilon_rdp``, ``delta``, ...)."""
    receipt: Receipt | None = None
    """What the silo signed of it."""


class Sealed(BaseModel, frozen=True):
    """What is known of a sum whose terms are not."""

    tag: str
    """SHA-256 of all that its silos agreed on."""
    digest: str
    """SHA-256 of the opened sum."""
    left_out: dict[str, str] = {}
    """Silos that were in it and were lost on the way, and why."""
    cut: int = 0
    """Elements of updates that did not fit the range of the ring, at all silos."""
    groups: list[list[str]] = []
    """Silos that were summed with one another, where a robust rule went over such sums; ``tag`` and ``digest`` are
    then those of theirs."""


class RunOpened(_Event):
    type: Literal["run_opened"] = "run_opened"
    run_id: str
    name: str
    job: dict[str, Any]
    job_digest: str
    epoch: int
    versions: dict[str, str]
    """Python, torch, ray, siloray, numpy."""
    resumed_from: int | None = None
    """Version of the checkpoint that the run goes on from; None for a new run."""
    skipped: list[str] = []
    """Checkpoints that did not verify, with the reason."""
    driver_key: str = ""
    """The driver's public Ed25519 key, in base64, which the lines from here on are signed with; empty: they are not."""
    store_key: str | None = None
    """Id of the key that the run's files are encrypted with; empty: they are in the clear; None: not said, by an older
    Siloray."""


class Simulated(_Event):
    """The clock of this run is simulated: times in its journal are virtual seconds from its beginning, and no silo
    took so long."""

    type: Literal["simulated"] = "simulated"
    seed: int
    """Of the draws of the durations."""
    timings: dict[str, Any]
    """The speeds that were stated, or the run whose timings these are."""


class Rewound(_Event):
    """The newest checkpoints did not verify: what was said about later versions no longer counts."""

    type: Literal["rewound"] = "rewound"
    version: int
    skipped: list[str] = []


class SiloJoined(_Event):
    type: Literal["silo_joined"] = "silo_joined"
    silo: str
    incarnation: str
    fingerprint: str
    num_examples: dict[str, int]
    quarantined: dict[str, int] = {}
    """Samples by split that the data contract leaves out, where the silo says."""
    labels: dict[str, int] = {}
    """Training rows of each class, where the silo says."""
    num_parameters: int
    num_shared: int
    device: str
    node: str
    versions: dict[str, str]
    planned: dict[str, float] = {}
    """Public numbers on the privacy that the whole job will cost."""
    metrics: Literal["open", "summed", "noised", "none"] = "open"
    """How metrics on its rows leave. Open ones are outside what noise in the training guarantees."""
    key: str = ""
    """Its public Ed25519 key, in base64; empty in runs of a time when silos had none."""


class Source(BaseModel, frozen=True):
    """Where weights come from, and who made them."""

    kind: Literal["file", "torchvision", "run"]
    name: str
    """As the job has it."""
    sha256: str
    """Of the file; of a run's version, of its parameters."""
    contributors: list[str]
    """Of a run: each ``RUN/SILO`` in an average that led to it, and whoever stands behind what that run started from.
    Of a file: what the job says of its origin."""
    run_id: str = ""
    version: int = -1
    job_digest: str = ""
    """Of the source's run."""


class StartedFrom(BaseModel, frozen=True):
    """What version 0 took of weights that were there before."""

    source: Source
    digest: str
    """Of the numbers that were taken."""
    loaded: list[str]
    """Tensors that have them."""
    left: list[str]
    """Tensors that begin as the job's seed says: the source has nothing of that name and shape."""


class ModelReady(_Event):
    """Version 0 exists: every silo would make these parameters from the job's seed, and from what it starts from."""

    type: Literal["model_ready"] = "model_ready"
    version: int
    num_shared: int
    schema_digest: str
    model: dict[str, Any]
    """Tensors of the model and an input's shape (``entries``, ``input_shape``, ``input_dtype``)."""
    checkpoint: str
    started_from: StartedFrom | None = None


class SiloDown(_Event):
    type: Literal["silo_down"] = "silo_down"
    silo: str
    version: int
    why: Reason


class UpdateRefused(_Event):
    type: Literal["update_refused"] = "update_refused"
    silo: str
    version: int
    code: str
    """Stable reason code: nonfinite, norm, schema, weight, stale, duplicate, foreign, epoch, policy, bound, ..."""
    reason: Reason


class SiloDeclined(_Event):
    """The silo was asked to join, and takes no part: its policy, its data or its version is against it."""

    type: Literal["silo_declined"] = "silo_declined"
    silo: str
    code: str
    reason: Reason


class SiloBusy(_Event):
    """The silo was asked to join, and will later: it is closed at this hour, or works for another run."""

    type: Literal["silo_busy"] = "silo_busy"
    silo: str
    reason: Reason


class CallRefused(_Event):
    """Somebody at the driver's door was turned away before a request or an answer was believed."""

    type: Literal["call_refused"] = "call_refused"
    who: str
    """The name in the certificate."""
    code: str
    """Stable reason code: member, identity, signature, session, replay, format, length, digest, schema, ..."""
    reason: Reason
    times: int = 1
    """So often this happened until now; the journal has the first, tenth, hundredth, ..."""


class Waiting(_Event):
    type: Literal["waiting"] = "waiting"
    version: int
    silos: list[str]
    """Whom the run waits for."""
    why: Reason
    until_s: float | None
    """Seconds from now until the run gives up (it can be resumed); None: as long as one of these silos says that
    it will join later."""


class ModeChosen(_Event):
    """``mode: auto`` has measured the silos up to this version, and goes on as it found best."""

    type: Literal["mode_chosen"] = "mode_chosen"
    version: int
    mode: Literal["sync", "semi_sync"]
    reason: Reason
    seconds: dict[str, float]
    """Of one training, as the job means it, by silo."""


class RoundOpened(_Event):
    durable: ClassVar[bool] = False
    type: Literal["round_opened"] = "round_opened"
    version: int
    cohort: list[str]


class SiloLaunched(_Event):
    durable: ClassVar[bool] = False
    type: Literal["silo_launched"] = "silo_launched"
    silo: str
    version: int
    attempt: int


class SiloProgress(_Event):
    durable: ClassVar[bool] = False
    type: Literal["silo_progress"] = "silo_progress"
    silo: str
    version: int
    phase: str
    num_steps: int
    total_steps: int


class UpdateArrived(_Event):
    durable: ClassVar[bool] = False
    type: Literal["update_arrived"] = "update_arrived"
    silo: str
    version: int
    staleness: int


class RoundClosed(_Event):
    """The commit record: version ``version`` exists, made by these contributors from ``version - 1``."""

    type: Literal["round_closed"] = "round_closed"
    version: int
    contributors: list[Contributor]
    evaluated: Figures
    """Figures of ``version - 1``, the model that this round's silos received."""
    seconds: dict[str, float]
    """At the driver: wait (open to last arrival), transfer, fold, step, round (open to open)."""
    bytes_up: int
    bytes_down: int
    update_norm: float
    """Euclidean norm of new minus old parameters."""
    checkpoint: str
    """Folder under ``checkpoints/``; empty where the version was not kept."""
    best: bool = False
    """``version - 1`` is the best version so far by the job's metric."""
    lineage: str
    """Digest of everything that went into the version; equal lineages mean equal models."""
    settings: dict[str, float] = {}
    """The job's numbers that evolve, as they are from this version on: a bound that adapts, the range of a ring."""
    sealed: Sealed | None = None
    """Of a sum that nobody can look into."""


class VersionEvaluated(_Event):
    """Figures of the last version, which no round trains from."""

    type: Literal["version_evaluated"] = "version_evaluated"
    evaluated: Figures
    best: bool = False
    receipts: list[Receipt] = []
    """Of the silos that evaluated it: they have seen the history up to there."""


class Assessment(BaseModel, frozen=True):
    """A model on a silo's test rows."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = {}
    """95 % of the bootstrap."""
    gains: dict[str, tuple[float, float]] = {}
    """The same of its figure minus that of the model trained alone."""
    verdicts: dict[str, Literal["better", "same", "worse"]] = {}
    """Beside the model trained alone: ``same`` unless ``gains`` lies on one side of zero."""


class AdaptedFigures(BaseModel, frozen=True):
    """A silo's figures after so many local steps from the received model."""

    steps: int
    metrics: dict[str, float]


class SiloAssessed(_Event):
    """What a version does for a silo, beside what the silo could have alone."""

    type: Literal["silo_assessed"] = "silo_assessed"
    silo: str
    version: int
    lineage: str
    """Of that version: the same work is not asked for again."""
    held_out: bool = False
    models: dict[str, Assessment]
    """``global``, ``fine_tuned``, ``alone``, ``personal``."""
    curve: list[AdaptedFigures] = []
    accepted: int = 0
    """Local steps of the fine-tuned model; 0: the received one is better for the silo."""
    num_steps: int = 0
    """Of the model trained alone; 0 where the silo does not say."""
    run_steps: int = 0
    """Local steps that the run had of the silo, as far as is known."""
    seconds: dict[str, float] = {}


class SiloAttacked(_Event):
    """How far attacks on a version got at a silo, with that silo's own rows; and its vote on the release."""

    type: Literal["silo_attacked"] = "silo_attacked"
    silo: str
    version: int
    lineage: str
    """Of that version: the same work is not asked for again."""
    vote: Literal["pass", "fail", "none"]
    verdicts: dict[str, Literal["pass", "fail", "unable"]] = {}
    """By attack; empty where the silo tells its vote only."""
    scores: dict[str, float] = {}
    """Of the strongest attack of its kind, ``..._low`` the lower bound (95 %) that was judged; empty as above."""
    why: Reason = ""
    """Why attacks were not possible."""
    seconds: float = 0.0
    receipt: Receipt | None = None
    """What the silo signed of it."""


class ReleaseVoted(_Event):
    """Whether the registry's alias may move to this version."""

    type: Literal["release_voted"] = "release_voted"
    version: int
    lineage: str
    votes: dict[str, Literal["pass", "fail"]]
    missing: dict[str, Reason] = {}
    """Silos without a vote, and why."""
    needed: int
    """Votes ``pass`` that it takes."""
    vetoed: list[str] = []
    """Silos with a veto that voted ``fail``."""
    passed: bool


class Spread(BaseModel, frozen=True):
    """A figure over silos, each counting the same."""

    mean: float
    std: float
    """Population."""
    worst: float
    worst_silo: str
    p10: float
    """Of silos, a tenth is worse (linear between ranks)."""
    jain: float | None
    """Jain's index ``(sum a)^2 / (N sum a^2)``; None where figures are not all from 0 up, or all 0."""


class RunAssessed(_Event):
    """The silos' assessments together, in the metric by which the job judges versions."""

    type: Literal["run_assessed"] = "run_assessed"
    version: int
    metric: str
    spreads: dict[str, Spread] = {}
    """By model, over the silos that trained."""
    held_out: dict[str, Spread] = {}
    """By model, over those held out; ``after N steps`` is the curve."""
    benefit: dict[str, float] = {}
    """By silo: the global model's figure minus that of the model trained alone, positive where it is better."""
    worse: list[str] = []
    """Silos whose benefit is negative."""
    harmed: list[str] = []
    """Those of them where that is more than the test rows' noise."""
    unknown: list[str] = []
    """Silos of which it is not known."""
    do_no_harm: bool | None = None
    """No silo harmed, and none unknown; None where nothing was compared."""
    blocked: bool = False
    """The registry's alias stays where it is."""


class Worth(BaseModel, frozen=True):
    """What a silo's updates are worth."""

    silo: str
    value: float
    error: float = 0.0
    """Standard error, where the value is an estimate."""


class ContributionsFound(_Event):
    """The silos' shares of what the run achieved in the job's metric, pooled over the silos' test rows."""

    type: Literal["contributions_found"] = "contributions_found"
    lineage: str = ""
    """Of the version that the run came to."""
    method: Literal["leave_one_out", "shapley", "sampled_shapley"]
    metric: str
    worths: list[Worth] = []
    initial: float | None = None
    """The metric of version 0."""
    final: float | None = None
    """That of all silos' sums together."""
    unexplained: float = 0.0
    """Share of the way from version 0 that the sums of the silos' updates do not explain."""
    num_evaluations: int = 0
    why_not: Reason = ""
    """Why there are no values."""


class DriftAlarm(_Event):
    """A silo's updates are not what they were: two of three signals, in three of its updates in a row. Nothing is
    done about it."""

    type: Literal["drift_alarm"] = "drift_alarm"
    silo: str
    version: int
    signals: list[Literal["norm", "direction", "loss"]]
    """Of the last of the three."""
    norm: float | None
    cosine: float | None
    loss: float | None


class RunClosed(_Event):
    type: Literal["run_closed"] = "run_closed"
    status: Literal["done", "stopped", "failed"]
    reason: str
    version: int
    parameters_digest: str
    """SHA-256 of the final shared parameters (little-endian float32, in layout order)."""
    best_version: int | None = None
    best_metric: str | None = None
    best_value: float | None = None
    never_contributed: list[str] = []


Event = Annotated[
    RunOpened
    | Simulated
    | Rewound
    | SiloJoined
    | ModelReady
    | SiloDown
    | UpdateRefused
    | SiloDeclined
    | SiloBusy
    | CallRefused
    | Waiting
    | ModeChosen
    | RoundOpened
    | SiloLaunched
    | SiloProgress
    | UpdateArrived
    | RoundClosed
    | VersionEvaluated
    | SiloAssessed
    | ContributionsFound
    | RunAssessed
    | SiloAttacked
    | ReleaseVoted
    | DriftAlarm
    | RunClosed,
    Field(discriminator="type"),
]

EVENT: TypeAdapter[Event] = TypeAdapter(Event)
"""Reads a journal line: ``EVENT.validate_python(line)``."""

_TYPES = {kind.model_fields["type"].default for kind in get_args(get_args(Event)[0])}


def parse(lines: Iterable[Mapping[str, Any]]) -> list[Event]:
    """The events among journal lines, without those that another Siloray knows and this one does not."""
    return [EVENT.validate_python(line) for line in lines if line.get("type") in _TYPES]

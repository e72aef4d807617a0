"""``silo.yaml``: what an organisation says about its data, rules and machine. It never leaves the silo."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from orchestrator.contract import Contract
from orchestrator.core import document
from orchestrator.core.endpoint import endpoint
from orchestrator.core.errors import BadInput
from orchestrator.local import Local, Optimizer
from orchestrator.task import OwnTask, Task
from silos import hours
from silos.key_source import Encryption
from silos.mid_round import Rhythm


class _Spec(BaseModel, frozen=True, extra="forbid"):
    pass


class ColumnSplit(_Spec, frozen=True):
    """A column says which rows train and which test; rows with any other value are left out."""

    column: str
    train: str | int = "train"
    test: str | int = "test"


class ShareSplit(_Spec, frozen=True):
    """Rows are drawn for the test by a hash of their number: the same rows every time, on every machine, also
    after rows were appended."""

    test_share: float = Field(default=0.2, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)


class SplitPaths(_Spec, frozen=True):
    """Files of their own for training and for testing."""

    train: str | tuple[str, ...]
    test: str | tuple[str, ...]


def _split_kind(value: Any) -> str:
    column = value.get("column") if isinstance(value, dict) else getattr(value, "column", None)
    return "column" if column is not None else "share"


def _path_kind(value: Any) -> str:
    if isinstance(value, dict | SplitPaths):
        return "split"
    return "one" if isinstance(value, str) else "several"


Splits = Annotated[
    Annotated[ColumnSplit, Tag("column")] | Annotated[ShareSplit, Tag("share")], Discriminator(_split_kind)
]
Paths = Annotated[
    Annotated[str, Tag("one")]
    | Annotated[tuple[str, ...], Tag("several")]
    | Annotated[SplitPaths, Tag("split")],
    Discriminator(_path_kind),
]
Missing = str | int | float


class Budget(_Spec, frozen=True):
    """How much privacy a data set may lose, over all jobs: (epsilon, delta)-differential privacy of each ``unit``. With
    a budget, a job must protect that unit, and what it asks is refused where the sum would be more."""

    epsilon: float = Field(gt=0, allow_inf_nan=False)
    delta: float = Field(gt=0, lt=1)
    unit: Literal["record", "patient", "silo"] = "record"
    column: str | None = None
    """Where the files name their patient, with ``unit: patient``: a job that goes by another column protects whom that
    names, and is refused."""
    new_rows: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{12,64}$")], ...] = ()
    """Fingerprints, or their first 12 digits or more, of files of which no row was in the data set before (``siloray
    ledger show`` says what the fingerprint is now). For these the budget begins anew; for files that have merely
    changed it goes on."""

    @model_validator(mode="after")
    def _of_whom(self) -> Self:
        if (self.unit == "patient") != (self.column is not None):
            raise ValueError(
                "give 'column', where the files name their patient, with 'unit: patient', and only then"
            )
        return self


class DatasetConfig(_Spec, frozen=True):
    """Where a data set lies at this silo, and how to read it."""

    path: Paths
    """A file, a folder or a glob, or several; relative ones start at the folder of ``silo.yaml``. As
    ``{train: ..., test: ...}`` it replaces ``splits``."""
    format: Literal["auto", "table", "folder"] = "auto"
    """``table``: Parquet, Arrow or CSV files (images are a column of encoded bytes). ``folder``: image files
    in one folder per class. ``auto`` looks."""
    splits: Splits = ShareSplit()
    missing: tuple[Missing, ...] | dict[str, tuple[Missing, ...]] = ()
    """Values that mean "not known" (``['?', -9]``), in all columns or by column."""
    missing_rows: Literal["drop", "mean"] = "drop"
    """Rows with a missing feature: dropped, or filled with the mean of the silo's training rows."""
    columns: dict[str, str] = {}
    """The job's name of a column, and its name in this silo's files, where they differ."""
    classes: tuple[str | int, ...] = ()
    """Names of the classes in the order of their numbers, where the job does not give them. Folders without
    it: their names in alphabetical order."""
    encryption: Encryption | None = None
    """Of Parquet files with modular encryption (``siloray silo encrypt`` makes them): where the key is."""
    contract: Contract | None = None
    """What this silo expects of the rows, besides what the job's ``contract`` says; the stricter holds."""
    budget: Budget | None = None
    """Without one, losses are entered in the silo's ledger, and nothing is refused."""

    @model_validator(mode="after")
    def _counted(self) -> Self:
        if self.budget is not None and self.budget.unit != "silo" and self.missing_rows == "mean":
            raise ValueError("missing_rows: means of all rows are in no budget; with one, use 'drop'")
        return self

    def codes(self, column: str) -> tuple[Missing, ...]:
        """Values of this column (the job's name) that mean "not known"."""
        return self.missing.get(column, ()) if isinstance(self.missing, dict) else self.missing

    def in_file(self, column: str) -> str:
        """The name in the files of a column of the job."""
        return self.columns.get(column, column)


class RequiredStep(_Spec, frozen=True):
    """A privacy step that a job must have."""

    name: str
    max_norm: float | None = Field(default=None, gt=0)
    """Largest bound that it may have."""


def _step(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _checked_window(text: str) -> str:
    hours.parse(text)
    return text


def _checked_zone(name: str) -> str:
    hours.zone(name)
    return name


def _checked_key(text: str) -> str:
    from orchestrator.roster import decoded, encoded  # cryptography, of which few documents have need

    return encoded(decoded(text))


def _checked_endpoint(text: str) -> str:
    endpoint(text)
    return text


class Policy(_Spec, frozen=True):
    """What a driver may ask of this silo. The silo applies it; a driver can only ask."""

    allow_jobs: tuple[str, ...] = ("*",)
    """Globs over names of jobs."""
    allow_tasks: tuple[str, ...] = ("tabular", "image_classification")
    """Built-in tasks; a task of the user's own is a matter of ``allow_code``."""
    allow_strategies: tuple[str, ...] | Literal["all"] = "all"
    allow_code: tuple[str, ...] = ()
    """Modules (with their submodules) of which code may run here."""
    approval: Literal["required", "none"] = "none"
    """``required``: a job runs once somebody at the silo has approved it (``siloray approve``)."""
    freeze: Literal["required", "none"] = "none"
    """``required``: jobs use the data as it was when somebody at the silo froze it (``siloray silo freeze``). Where
    jobs need an approval, each uses the data that was there when it was approved."""
    min_cohort: int = Field(default=1, ge=1)
    """Fewest silos in an average. It counts silos, not their weights: a job that weights by rows, or gives
    numbers (``combine.weights``), may still let one silo make up most of an average."""
    require_combiner: tuple[str, ...] = ()
    """Combiners of which the job must use one; empty: any."""
    allow_second: tuple[str, ...] | Literal["all"] = "all"
    """Silos that may be the second aggregator of a sum with two (``combine: {name: two_aggregator_sum}``): one that
    the organisation trusts not to work together with the driver."""
    require_privacy: tuple[Annotated[RequiredStep, BeforeValidator(_step)], ...] = ()
    """Privacy steps that the job must have (``[clip]``, or ``[{name: clip, max_norm: 1.0}]``)."""
    max_update_norm: float | None = Field(default=None, gt=0)
    """Largest Euclidean norm of an update that may leave."""
    max_rounds: int | None = Field(default=None, ge=1)
    """Rounds that a job may have, and so many different trainings of it here over all its runs. The same one again,
    which a driver that goes on asks for, is free."""
    max_evaluations: int | None = Field(default=None, ge=1)
    """Different evaluations and assessments of models that a job may have here over all its runs, besides those that
    come with a training. Default: no bound, or one more than ``max_rounds``. A job that measures contributions
    (``report.contribution``) has many."""
    max_hours: float | None = Field(default=None, gt=0)
    """Hours that a job may last here over all its runs, from its first join on, closed hours included."""
    opening_hours: tuple[Annotated[str, AfterValidator(_checked_window)], ...] = ()
    """``Mon-Fri 20:00-06:00``, ``Sat,Sun 00:00-24:00``: when the silo trains; empty: always."""
    timezone: Annotated[str, AfterValidator(_checked_zone)] | None = None
    """IANA name (``Europe/Zurich``) of the time zone of ``opening_hours``."""
    metrics_out: tuple[str, ...] | Literal["all"] = "all"
    """Metrics that the driver may learn, as sums over this silo's rows."""
    metrics: Literal["open", "summed", "noised", "none"] = "open"
    """How they leave. ``open``: as they are; what they tell of single rows is outside any guarantee on the model.
    ``summed``: only within a sealed sum over silos, which nobody sees a term of. ``noised``: counts (accuracy, the
    histogram behind auc), each time with fresh noise that is charged to the test rows; no loss leaves. ``none``."""
    metrics_noise_multiplier: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Of ``noised``: standard deviation of the noise over how far one row can move all counts together. T releases
    cost as one with this divided by sqrt(T) would: at delta 1e-5 an epsilon of 0.73 where that is 5, and 4.4 where it
    is 1."""
    attacks: Literal["scores", "vote", "none"] = "scores"
    """What becomes of a job's ``release`` section here. ``scores``: the silo attacks the model with its own rows and
    tells its vote and how far the attacks got, rounded. ``vote``: the vote only. ``none``: it makes no attack, plants
    no canaries and does not vote. Where fewer than 50 rows stand behind the scores, or figures on these are
    kept in (``share_counts``, ``metrics``) or budgeted, only the vote leaves: one yes or no, which no budget counts."""
    share_counts: bool = True
    """Whether the number of rows may leave. Without it a job must not weight by examples or use a strategy whose
    reports tell the number of steps, and the silo's metrics are sent as if they came from one row. With ``dp_sgd`` a
    job must say noise and steps, and no epsilon of the rows leaves. What cannot be kept in: how long the work takes,
    how many rows stand behind an exact figure (3 of 4 right is 0.75) or a ranking's histogram (``metrics_out`` says
    which figures leave at all), and whether a budget or a data contract allows a job: many jobs find the number by that
    (``approval: required``)."""
    share_labels: bool = False
    """Whether the number of training rows of each class may leave, where the data contract counts them and
    ``share_counts`` lets numbers out."""

    @property
    def evaluations(self) -> tuple[int | None, str]:
        """How many, and the rule in words."""
        if self.max_evaluations is not None or self.max_rounds is None:
            return self.max_evaluations, "evaluations of a job (policy.max_evaluations)"
        return self.max_rounds + 1, "evaluations of a job (policy.max_rounds + 1)"

    @model_validator(mode="after")
    def _where(self) -> Self:
        if (self.metrics == "noised") != (self.metrics_noise_multiplier is not None):
            raise ValueError("metrics: noised goes with metrics_noise_multiplier, and with nothing else")
        if self.opening_hours and self.timezone is None:
            raise ValueError("opening_hours: say where they hold with 'timezone' (as in Europe/Zurich)")
        return self


class Overrides(_Spec, frozen=True):
    """This silo's own settings of local training."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    batch_size: int | None = Field(default=None, ge=1)
    """In place of the job's, as the three that follow. Silos that differ in them pull the model in unequal directions,
    unless the strategy evens it out (FedNova, SCAFFOLD, FedDyn)."""
    epochs: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    optimizer: Optimizer | None = None
    model: dict[str, Any] | None = None
    """A network of this silo's own, in place of ``task.model``, in jobs whose silos may have that (FedMD); others go by
    the job's."""
    workers: int = Field(default=0, ge=0)
    """Processes that decode images which do not fit in memory."""
    checkpoint_s: float | None = Field(default=60.0, gt=0)
    """A training that lasts longer is put on this silo's disk so often: a silo that dies in it goes on from there."""
    checkpoint_steps: int | None = Field(default=None, ge=1)
    """As well, every so many steps."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give 'epochs' or 'steps', not both")
        return self

    def with_model(self, task: Task) -> Task:
        """The task with this silo's own network, if it has one; raises `BadInput`."""
        if self.model is None:
            return task
        if isinstance(task, OwnTask):
            raise BadInput(f"local.model: the task '{task.name}' makes its own network")
        own = {**task.model_dump(mode="json"), "model": self.model}
        return document.validate(own, type(task), "silo.yaml, local.model of the job's task")

    @property
    def rhythm(self) -> Rhythm:
        """Of the checkpoints of a training."""
        return Rhythm(self.checkpoint_s, self.checkpoint_steps)

    def applied(self, local: Local) -> Local:
        """The job's settings of local training, with this silo's own in their place."""
        own: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("batch_size", "optimizer")
            if getattr(self, name) is not None
        }
        if self.epochs is not None or self.steps is not None:
            own |= {"epochs": self.epochs, "steps": self.steps}
        return local.model_copy(update=own)


class Connection(_Spec, frozen=True):
    """Whom the silo's agent dials (``siloray agent``)."""

    driver: Annotated[str, AfterValidator(_checked_endpoint)]
    """``HOST:PORT``."""
    credentials: str
    """Folder of this silo's certificate, keys and roster; a relative one lies in the folder of ``silo.yaml``."""


class SiloConfig(_Spec, frozen=True):
    """The whole document."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,100}$")
    datasets: dict[str, DatasetConfig] = Field(min_length=1)
    policy: Policy = Policy()
    local: Overrides = Overrides()
    num_gpus: float = Field(default=0.0, ge=0)
    """GPUs that Ray sets aside for this silo's process: with ``--silos-dir``, and for ``siloray agent --address``. On a
    cluster's node of its own it has one if the node has any."""
    connection: Connection | None = None
    """Where no Ray cluster holds driver and silos together."""
    peers: dict[str, Annotated[str, AfterValidator(_checked_key)]] = {}
    """Public signing keys of other silos, as `siloray certs show` prints them; they count before the roster. With
    neither, the first key that a silo shows is the one that counts from then on."""
    at_rest: Encryption | None = None
    """Encrypts what the silo keeps of its runs: private state, trainings in progress, models of its own."""

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        for name, dataset in self.datasets.items():
            unit = "record" if dataset.budget is None else dataset.budget.unit
            if self.policy.metrics == "noised" and unit != "record":
                raise ValueError(
                    f"datasets.{name}.budget: is for a {unit}, and noised metrics protect single records: give "
                    "policy.metrics: summed, or none"
                )
        return self

    @field_validator("name")
    @classmethod
    def _free(cls, name: str) -> str:
        if name in {"global", "overall"}:
            raise ValueError(f"'{name}' is no silo name: the report uses it")
        return name


def load_silo(path: Path) -> SiloConfig:
    """Read ``silo.yaml``; `BadInput` in one line when it is wrong."""
    return document.load(path, SiloConfig)

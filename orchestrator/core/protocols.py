"""The vocabulary page: what can be plugged into a job, and the words they share.

Strategies, transforms, codecs and combiners are frozen pydantic models with pure methods: the section of the
job document that names one *is* the object whose methods run. State goes in and comes out.
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from orchestrator.core.events import Event
from orchestrator.core.messages import CohortInfo, Reply, Request, SiloId
from orchestrator.core.symmetry import Symmetry
from orchestrator.core.vector import Packet, Parts, Vector

Array = Any
"""A flat NumPy array in a test, a flat torch tensor on its device in a silo: the same arithmetic runs on both."""

State = Mapping[str, Vector]
"""A strategy's memory on the driver. Always has ``params``; ``buffers`` where the model shares float buffers."""

Part = Literal["all", "support", "query"]
"""Which rows of the batch: all, or its first or second half (meta-learning adapts on one and learns on the other)."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """A term of the loss that pulls what the network sees in an input towards what another network sees in it, and
    away from what a third one does (MOON, Li et al. 2021, eq. 3, arXiv 2103.16257)."""

    mu: float
    """Factor of the term."""
    temperature: float
    near: Array
    """Shared parameters of the network to be like."""
    far: Array
    """Shared parameters of the network to be unlike."""


class GradAt(Protocol):
    """Gradient of the loss on the batch in hand, at any point of the shared parameters. It lies in the model's
    gradient vector until the next call."""

    def __call__(self, point: Array, part: Part = "all", contrast: Contrast | None = None) -> Array: ...


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of a local training: what is trained in it, and how long. Another phase begins with a new
    optimizer."""

    trains: Literal["all", "shared", "own"] = "all"
    epochs: int | None = None
    steps: int | None = None
    """Neither: as long as the job, or the driver, says."""


Observer = Callable[[Event], None]

PrivateLayers = Literal["none", "norm", "head"]
"""``norm``: layers of normalisation, with their statistics. ``head``: the last layer that has parameters."""


class Kept(Protocol):
    """A strategy's private memory at one silo; a vector reads as zeros until it is written."""

    def __getitem__(self, name: str) -> Array: ...
    def __setitem__(self, name: str, value: Array) -> None: ...
    def __contains__(self, name: object) -> bool: ...


@dataclass(slots=True)
class LocalRun:
    """One local training in progress, as a strategy sees it. Vectors cover the shared parameters."""

    params: Array
    anchor: Array
    """The parameters that training started from. Read-only."""
    received: Mapping[str, Array]
    """The other broadcast parts (``control``)."""
    kept: Kept
    lr: float = 0.0
    """Learning rate of the coming step."""
    num_steps: int = 0
    path: float = 0.0
    """Sum of the factors with which the gradients were applied: lr x number of steps for plain SGD, more
    with momentum (FedNova's ``eta * ||a||_1``, Wang et al. 2020, section 4.1)."""
    exact_path: bool = True
    """False where the optimizer is no SGD: ``path`` is lr x number of steps then, and says little."""
    version: int = 0
    """Model version that is trained from."""
    memo: dict[str, Array] = field(default_factory=dict)
    """The strategy's scratch, of this training alone."""
    buffers: Array | None = None
    """Shared float buffers, a view; None where the model shares none."""
    own: Array | None = None
    """The silo's private parameters, a view; None where there are none."""
    own_gradient: Array | None = None
    """Their gradient on the batch in hand."""
    silo: SiloId = ""
    symmetries: tuple[Symmetry, ...] = ()
    """Units of the model that may change places, for a strategy that permutes them."""

    def take_delta(self) -> Array:
        """Local minus global parameters, computed in the parameters' own memory: call once, at the end."""
        self.params -= self.anchor
        return self.params


@dataclass(frozen=True, slots=True)
class Report:
    """What a strategy sends: vectors (private: clipped, noised, sealed) and numbers (public)."""

    parts: Mapping[str, Array]
    scalars: Mapping[str, float]


class Strategy(Protocol):
    """One federated algorithm, both halves. Stateless: state is passed in and returned."""

    scalars: ClassVar[frozenset[str]]
    """Names of the public numbers of a report; none is negative."""
    private_layers: ClassVar[PrivateLayers]
    """Which layers stay at the silo, besides those that the job names."""

    @property
    def private_globs(self) -> tuple[str, ...]:
        """Names of those layers, where the job gives them; none: the model is asked."""
        ...

    keeps_optimizer: ClassVar[bool]
    """The local optimizer's state goes on from one training to the next."""
    contrasts: ClassVar[bool]
    """Its directions compare what networks see (`Contrast`)."""
    shares_logits: ClassVar[bool]
    """``params`` are no parameters but logits of public rows, and every silo has a network of its own."""
    step_invariant: ClassVar[bool]
    """Where it converges to does not depend on how many local steps the silos make."""
    reweighs: ClassVar[bool]
    """Its updates may be weighted by how rarely their silos deliver. Not where each is a difference to what the silo
    remembers, nor where the strategy has weights of its own."""
    sends_model: ClassVar[bool]
    """Silos report parameters, not differences to those received: far longer vectors."""
    permutes: ClassVar[bool]
    """It permutes units of the model (`LocalRun.symmetries`)."""
    own_weights: ClassVar[bool]
    """`weigh` needs to know each update's weight, and not only how late it is."""
    halves: ClassVar[bool]
    """Batches are split in support and query, so a batch has at least two rows."""
    one_gradient: ClassVar[bool]
    """A step asks for one gradient of the whole batch's plain loss, where the model stands, and sees the rows in no
    other way."""

    @property
    def whole(self) -> bool:
        """The driver needs whole updates side by side; no sum will do."""
        ...

    @property
    def alone(self) -> int | None:
        """Epochs that a silo trains in version 0 from a model that it makes itself, from a seed of its own; None: from
        the received one, as in all versions."""
        ...

    def init(self, model: Parts) -> State:
        """Driver state from the initial model (``params`` and perhaps ``buffers``)."""
        ...

    def broadcast(self, state: State) -> Parts:
        """What every silo receives."""
        ...

    def step(self, state: State, mean: Parts, cohort: CohortInfo) -> State:
        """The next state. ``mean`` may be overwritten and returned; ``state`` must stay as it is."""
        ...

    def weigh(self, cohort: CohortInfo) -> Sequence[float]:
        """What each update is multiplied by in the sum that `step` gets."""
        ...

    def fold(
        self,
        state: State,
        updates: Sequence[Parts],
        shares: Sequence[float],
        version: int,
        symmetries: Sequence[Symmetry],
    ) -> Parts:
        """Whole updates, in silo order, become the one that `step` gets; they may be overwritten."""
        ...

    def layout(self, state: State) -> dict[str, int]:
        """Names and sizes of the parts that a silo reports, in the order of the packed vector."""
        ...

    def begin(self, run: LocalRun) -> None:
        """Before the first local step, which need not start from the anchor."""
        ...

    def direction(self, run: LocalRun, grad_at: GradAt) -> Array:
        """What the local optimizer takes for the gradient: the only hook into training."""
        ...

    def report(self, run: LocalRun) -> Report:
        """The update, after the last local step."""
        ...

    def phases(self, length: Phase) -> tuple[Phase, ...]:
        """How a local training goes; ``length`` is what the job, or the driver, asks for."""
        ...

    def adaptation(self, received: Mapping[str, Array]) -> Array | float | None:
        """Rate of the plain gradient steps that adapt the model to a silo, perhaps one for each parameter; None: a
        silo adapts it with its local optimizer."""
        ...

    def personal(self, kept: Kept, params: Array) -> Array | None:
        """The silo's own shared parameters, given the received ones; None where those are all it has."""
        ...


@dataclass(frozen=True, slots=True)
class Facts:
    """What a privacy step may know of the job, and of the steps before it."""

    min_silos: int
    """Fewest silos of an average."""
    noise_multiplier: float | None = None
    """Of the job's noise, calibrated where it states a target; None: there is none."""
    bound: float | None = None
    """Euclidean norm that no vector which comes to the step exceeds; None: there is none."""
    least_bound: float = 0.0
    """Smallest bound under which the silos' noise is not lost in the rounding of a sum."""


class Transform(Protocol):
    """A privacy step, as a section of the job."""

    extra: ClassVar[Mapping[str, int]]
    """Parts, with their sizes, that it adds to an update behind the strategy's, and takes from the sum again."""

    def adapted(self, settings: Mapping[str, float], facts: Facts) -> "Step":
        """As it is for a version with these settings (`Train.settings`)."""
        ...


class Step(Protocol):
    """A privacy step of one version, with two faces around the sum."""

    @property
    def bound(self) -> float | None:
        """Euclidean norm that nothing which leaves the step exceeds, but for noise."""
        ...

    def encode(self, x: Vector, rng: np.random.Generator) -> Vector:
        """At the silo, in the job's order; may work in place."""
        ...

    def finish(self, x: Vector, sensitivity: Callable[[float], float], rng: np.random.Generator) -> Vector:
        """On the driver, in reverse order, on the combined vector. ``sensitivity``: how far one silo moves it whose
        vectors are of at most that norm."""
        ...

    def next_settings(self, parts: Parts, total: float) -> Mapping[str, float]:
        """What the sum says of the settings of the next version; ``parts`` hold those of ``extra``. ``total``: of the
        silos' shares in it."""
        ...


class Codec(Protocol):
    """One wire representation of a vector."""

    linear: ClassVar[bool]
    """Packets may be summed before decoding."""
    contractive: ClassVar[bool]
    """Decoding never lengthens the vector."""
    bytes_per_element: ClassVar[float]
    arrays: ClassVar[Mapping[str, type[np.generic]]]
    """Names and types of a packet's arrays."""

    def encode(self, x: Vector, kept: MutableMapping[str, Vector], seed: int) -> Packet: ...

    def decode(self, packet: Packet, size: int, seed: int) -> Vector:
        """``size`` elements; a slice of every array of the packet decodes to that slice of the vector."""
        ...


class Combiner(Protocol):
    """Many updates become one vector."""

    sealed: ClassVar[bool]
    """The driver never sees a single update."""

    def weight(self, silo: SiloId, num_examples: int) -> float:
        """A silo's share before normalising."""
        ...

    def sensitivity(self, clip: float, shares: Sequence[float]) -> float | None:
        """How far zeros in place of what one silo sent, each update of norm at most ``clip``, move the result in which
        the silos have these shares; another update in its place moves it twice as far. None: no bound known."""
        ...

    def merge(self, rows: Sequence[Vector], shares: Sequence[float], out: Vector) -> None:
        """Combine one block: the same elements of every update, in silo order, into ``out``."""
        ...


class Channel(Protocol):
    """How the driver reaches silos."""

    def online(self) -> Set[SiloId]:
        """Silos that can be asked now."""
        ...

    async def publish(self, parts: Parts) -> Any:
        """Make a model version available to silos; the handle goes into `Train` and `Evaluate`.

        The parts may change after this returns.
        """
        ...

    async def call(self, silo: SiloId, request: Request) -> Reply:
        """Ask and wait. Raises `SiloLost`."""
        ...

    def moved(self, silo: SiloId) -> int:
        """Bytes that went to and fro so far, where they travel slowly enough to be a sign of life."""
        ...

    async def restart(self, silo: SiloId) -> None:
        """End a silo's process that no longer answers, and start it anew."""
        ...


def in_order(updates: Sequence[Any]) -> Iterator[Any]:
    """The one order in which updates are summed: by silo, then by version."""
    return iter(sorted(updates, key=lambda update: (update.silo, update.version)))

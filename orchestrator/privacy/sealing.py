"""What all sums have in common that nobody can look into: who is in one, the questions that it takes, and what a silo
must not do twice.

A sum begins when its round closes. Silos have said by then that an update is ready, and no number of it has left them.
The driver fixes who is in (`SumHeader`), asks these silos to seal their updates, adds up what they sealed, and asks for
whatever opens the sum. A silo that is lost on the way is left out where the protocol allows that, or the sum begins
anew with another attempt.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from orchestrator.core.messages import SiloId
from orchestrator.privacy.fixed_point import RingVector, extra

Fields = dict[str, Any]
"""Plain JSON."""

SealedPacket = NDArray[np.unsignedinteger[Any]]
"""What a silo sealed: one array, in a form that the combiner knows how to add."""

FEWEST = 3
"""Silos in a sum: of two, each knows what the other one gave."""


class SumRefused(Exception):
    """A silo will not take this step of a sum. The reason is for the driver, and for the silo's own record."""

    code: Literal["policy", "bound"] = "policy"

    def __init__(self, reason: str, of: SiloId = "") -> None:
        """``of``: the silo because of whose part."""
        super().__init__(reason)
        self.of = of


class SumBound(SumRefused):
    """One of the updates was opened in another sum."""

    code = "bound"


class SumFailed(Exception):
    """The sum cannot be opened; those that are named did not do their part."""

    def __init__(self, why: Mapping[SiloId, str], bound: Collection[SiloId] = ()) -> None:
        """``bound``: members of the sum, where others of them have told what opens it. For all that they know it was
        opened, and they will not sum the same updates again without these."""
        super().__init__("; ".join(f"{silo}: {reason}" for silo, reason in sorted(why.items())))
        self.why, self.bound = dict(why), frozenset(bound)


@dataclass(frozen=True, slots=True)
class Member:
    """A silo in a sum, and what it brings: one update, or several of different versions."""

    silo: SiloId
    versions: tuple[int, ...]
    received: tuple[str, ...]
    """SHA-256 of the model that each was trained from, as the silo had it."""
    factors: tuple[float, ...]
    """What each is multiplied by: the discount of a stale one."""
    settings: tuple[str, ...] = ()
    """Digests of the numbers that evolve (`Train.settings`) with which each was made; empty for none."""
    hidden: tuple[str, ...] = ()
    """Metrics in the sum that the silo tells in no other way."""
    draws: tuple[int, ...] = ()
    """Which training from its version each update is of (`Train.draw`); empty: the first."""

    @property
    def updates(self) -> list[str]:
        """Version and draw of each."""
        draws = self.draws or (0,) * len(self.versions)
        return [f"{version}.{draw}" for version, draw in zip(self.versions, draws, strict=True)]


@dataclass(frozen=True, slots=True)
class SumHeader:
    """All that the silos of a sum must agree on. Every key of the sum derives from its digest."""

    run_id: str
    job_digest: str
    epoch: int
    version: int
    """That the sum makes."""
    attempt: int
    """Another one for every sum that this driver begins."""
    setup: int
    """Which exchange of keys it uses; 0 where it needs none."""
    members: tuple[Member, ...]
    """In the order of their names."""
    size: int
    """Elements of the vector."""
    shapes: tuple[tuple[str, str, int], ...]
    """Of the metrics in the sum."""
    ring: str
    value_bits: int
    range: float

    @property
    def tag(self) -> bytes:
        """32 bytes."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(b"siloray sum\0" + text.encode()).digest()

    @property
    def silos(self) -> tuple[SiloId, ...]:
        return tuple(member.silo for member in self.members)

    def member(self, silo: SiloId) -> Member | None:
        return next((member for member in self.members if member.silo == silo), None)

    @property
    def length(self) -> int:
        """Coordinates of a member's ring vector."""
        return self.size + extra(self.shapes)

    @property
    def num_updates(self) -> int:
        return sum(len(member.versions) for member in self.members)

    def brought(self, silos: Collection[SiloId]) -> list[str]:
        """These members with the versions of their updates: another update of the same silo is another term."""
        return [" ".join((each.silo, *each.updates)) for each in self._among(silos)]

    def scale(self, silos: Collection[SiloId], weighing: str) -> str:
        """Digest of what these members' updates are multiplied with and cut to: with other weights or factors, or in
        another range, the same updates give another equation for them. ``weighing``: the job's terms of weights."""
        factors = [each.factors for each in self._among(silos)]
        return _digest([self.range, factors, weighing])

    def form(self, silos: Collection[SiloId], weighing: str) -> str:
        """Digest of all of how these members' updates are added up."""
        brought = [[each.received, each.settings] for each in self._among(silos)]
        return _digest([self.size, self.ring, self.value_bits, brought, self.scale(silos, weighing)])

    def updates(self, silos: Collection[SiloId]) -> list[str]:
        """Names of these members' updates, or of what they found in an evaluation, for `Memory`."""
        kind = "trained" if self.size else "evaluated"
        return [
            f"{self.run_id} {member.silo} {kind} {update} {received}"
            for member in self._among(silos)
            for update, received in zip(member.updates, member.received, strict=True)
        ]

    def figures(self, silos: Collection[SiloId]) -> list[str]:
        """Names of these members' metrics, as far as nobody is told them otherwise: those of one model are the same in
        every run."""
        return [f"{each.silo} figures {each.received[-1]}" for each in self._among(silos) if each.hidden]

    def _among(self, silos: Collection[SiloId]) -> list[Member]:
        return [member for member in self.members if member.silo in silos]

    def fields(self) -> Fields:
        """For a message."""
        return asdict(self)

    @classmethod
    def of(cls, fields: Any) -> "SumHeader":
        """Raises `SumRefused`."""
        try:
            return _HEADER.validate_python(fields)
        except ValidationError as error:
            raise SumRefused(f"no header of a sum: {error.errors()[0]['msg']}") from None


_HEADER = TypeAdapter(SumHeader)


def _digest(said: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Questions:
    """Asked at once. The answers are those of the silos that gave one."""

    step: str
    fields: Mapping[SiloId, Fields]


@dataclass(frozen=True, slots=True)
class Gather:
    """The driver adds up what these silos sealed. One that is lost meanwhile is left out of the sum."""

    silos: Collection[SiloId]
    step: str = "seal"
    """In answer to which they sealed it."""


@dataclass(slots=True)
class Answers:
    """To `Questions` or `Gather`."""

    fields: dict[SiloId, Fields] = field(default_factory=dict)
    lost: dict[SiloId, str] = field(default_factory=dict)
    """Who gave none, and why."""
    total: Any = None
    """Of `Gather`: the sum of the sealed packets of all silos that are not lost."""


Flow = Generator[Questions | Gather, Answers, Any]
"""A protocol as the driver follows it: written once, carried by any channel."""


@dataclass(slots=True)
class Opened:
    """A sum, and who is in it."""

    total: RingVector
    silos: Collection[SiloId]
    lost: dict[SiloId, str] = field(default_factory=dict)
    """Members that are not, and why."""


class Identity(Protocol):
    """A silo's signing key, and what it knows of its peers' ones."""

    name: SiloId

    @property
    def public(self) -> bytes:
        """Ed25519, raw."""
        ...

    def sign(self, data: bytes) -> bytes: ...

    def meet(self, silo: SiloId, public: bytes) -> None:
        """A peer shows its key. Raises `BadInput` where another one counts, or none."""
        ...

    def verify(self, silo: SiloId, data: bytes, signature: bytes) -> bool:
        """Whether the silo signed exactly this, with the key that counts here."""
        ...


class Memory(Protocol):
    """What a silo must not forget of the sums that it helped to open, in any run."""

    def marks(self, tag: bytes) -> Sequence[str]:
        """Of this silo's updates in the sum with this tag: the same for the same numbers, whatever run, version or job
        they are said to belong to; for anybody else they say nothing."""
        ...

    def permit(
        self,
        tag: bytes,
        updates: Sequence[str],
        members: Collection[str],
        form: str = "",
        marks: Sequence[str] = (),
        scale: str = "",
        figures: Sequence[str] = (),
    ) -> None:
        """Record, durably, that the sum of these members (`SumHeader.brought`) is opened in this form, before anything
        leaves that opens it. Raises `SumRefused` for a tag that was opened before; for one of these updates, marks or
        figures, of which the latter two are the same whatever the run, in a sum of other members than it was opened
        with; for one of the updates in another form, for one of the marks in another scale.

        Sums of the same updates that differ, by however many silos, may together show single ones: 13 sums of 4 of 13
        silos, any two with one silo in common, determine all of them."""
        ...


@dataclass(frozen=True, slots=True)
class Rules:
    """The organisation's, on sums."""

    least: int = FEWEST
    """Fewest silos in a sum that is opened."""
    seconds: tuple[SiloId, ...] | None = None
    """Who may be the second of two aggregators; None: anybody but the driver."""


class SiloHalf(Protocol):
    """A silo's side of one kind of sum, over a run."""

    rules: Rules
    """As they are now."""

    def answer(
        self, step: str, fields: Fields, header: SumHeader | None, vector: Callable[[], RingVector]
    ) -> tuple[Fields, SealedPacket | None]:
        """The answer to a step, and what is to be kept for the driver to fetch: the sealed packet. ``header`` has been
        checked against the silo's own work; steps of a set-up have none. ``vector`` makes the silo's coordinates, in
        memory of their own. Raises `SumRefused`."""
        ...


def packet_tag(tag: bytes, step: str) -> str:
    """Under which a silo keeps what it sealed in answer to a step of the sum with this tag."""
    return tag.hex() if step == "seal" else f"{tag.hex()} {step}"


def settings_digest(settings: Mapping[str, float]) -> str:
    """Of the numbers that an update was made with, besides the model; empty for none."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest() if settings else ""


def names_in(given: Any) -> list[SiloId]:
    """A list of silos in a message, each once; raises `SumRefused`."""
    if not isinstance(given, list) or not all(isinstance(silo, str) for silo in given):
        raise SumRefused("a list of silos belongs here")
    return sorted(set(given))


def as_text(data: bytes) -> str:
    """Bytes for a message."""
    return base64.b64encode(data).decode()


def as_bytes(text: Any, size: int | None = None) -> bytes:
    """Of a message; raises `SumRefused` where they are none, or not so many."""
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, TypeError):
        raise SumRefused("a field of the message is no base64 text") from None
    if size is not None and len(data) != size:
        raise SumRefused(f"a field of the message has {len(data)} bytes, not {size}")
    return data

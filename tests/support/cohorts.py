"""A cohort of real silo halves of a sum, and a driver that follows a flow among them and can lose silos at a step."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator.privacy.fixed_point import FIXED
from orchestrator.privacy.ring_sum import RingSum
from orchestrator.privacy.sealing import (
    Answers,
    Fields,
    Flow,
    Gather,
    Member,
    Questions,
    Rules,
    SumHeader,
    SumRefused,
)
from silos.identity import GivenPeers, Identity


class Remembered:
    """A silo's memory of opened sums, without a disk."""

    def __init__(self) -> None:
        self.opened: list[tuple[bytes, frozenset[str], frozenset[str]]] = []

    def marks(self, tag: bytes) -> tuple[str, ...]:
        return ()

    def permit(self, tag: bytes, updates: Collection[str], members: Collection[str], *rest: Any) -> None:
        for earlier, its_updates, its_members in self.opened:
            if earlier == tag:
                raise SumRefused("this sum was opened before")
            apart = len(its_members ^ set(members))
            if its_updates & set(updates) and apart:
                raise SumRefused(f"another sum of the same update was opened: they differ by {apart} silos")
        self.opened.append((tag, frozenset(updates), frozenset(members)))


@dataclass
class Cohort:
    """Silos s00, s01, ... and what each has to add."""

    combine: RingSum
    vectors: Mapping[str, Any]
    least: int = 3
    lost: dict[str, Collection[str]] = field(default_factory=dict)
    """Silos that are lost when this step is asked, or at ``gather``."""
    spoilt: Callable[[str, str, Fields], Fields] = lambda step, silo, fields: fields
    """What becomes of an answer on its way."""

    def __post_init__(self) -> None:
        self.silos = sorted(self.vectors)
        self.keys = {silo: Ed25519PrivateKey.generate() for silo in self.silos}
        known = {silo: key.public_key().public_bytes_raw() for silo, key in self.keys.items()}
        peers = GivenPeers(known, "the consortium's list")
        self.identities = {silo: Identity(silo, key, peers) for silo, key in self.keys.items()}
        self.memories = {silo: Remembered() for silo in self.silos}
        self.halves: dict[str, Any] = {}
        for silo in self.silos:
            self.restart(silo)
        self.packets: dict[tuple[bytes, str, str], Any] = {}
        self.steps: list[str] = []

    def plain(self, silos: Collection[str]) -> Any:
        """What the sum of these must be."""
        return np.sum([self.vectors[silo] for silo in silos], axis=0, dtype=self.combine.ring)

    def restart(self, silo: str) -> None:
        """The silo's process starts anew."""
        rules = Rules(least=self.least)
        self.halves[silo] = self.combine.half(self.identities[silo], self.memories[silo], rules, "run-1")

    def header(self, attempt: int = 1, silos: Collection[str] = (), **changes: Any) -> SumHeader:
        members = tuple(Member(silo, (4,), ("model",), (1.0,)) for silo in sorted(silos or self.silos))
        size = len(next(iter(self.vectors.values())))
        values: dict[str, Any] = dict(
            run_id="run-1", job_digest="job", epoch=1, version=5, attempt=attempt, setup=1, members=members,
            size=size - FIXED, shapes=(), ring=self.combine.ring, value_bits=16, range=1.0,
        )  # fmt: skip
        return SumHeader(**(values | changes))

    def ask(self, silo: str, step: str, header: SumHeader | None = None, **fields: Any) -> Fields:
        """One question, in the form that a message has; the sealed packet is kept here."""
        asked = json.loads(json.dumps(fields))
        vector = self.vectors[silo].copy
        answer, packet = self.halves[silo].answer(step, asked, header, vector)
        if packet is not None:
            assert header is not None
            self.packets[header.tag, silo, step] = packet
        return dict(json.loads(json.dumps(answer)))

    def follow(self, flow: Flow, tag: bytes = b"") -> Any:
        """What the flow returns."""
        answers: Answers | None = None
        while True:
            try:
                wanted = flow.send(answers) if answers is not None else next(flow)
            except StopIteration as ended:
                return ended.value
            answers = self._asked(wanted) if isinstance(wanted, Questions) else self._gathered(wanted, tag)

    def set_up(self, number: int = 1) -> None:
        self.follow(self.combine.set_up(self.silos, number))

    def open(self, header: SumHeader) -> Any:
        return self.follow(self.combine.open(header), header.tag)

    def _asked(self, questions: Questions) -> Answers:
        self.steps.append(questions.step)
        answers = Answers()
        for silo, fields in questions.fields.items():
            if silo in self.lost.get(questions.step, ()):
                answers.lost[silo] = "gone"
                continue
            rest = dict(fields)
            header = SumHeader.of(json.loads(json.dumps(rest.pop("header")))) if "header" in rest else None
            try:
                answer = self.ask(silo, questions.step, header, **rest)
            except SumRefused as refused:
                answers.lost[silo] = str(refused)
            else:
                answers.fields[silo] = self.spoilt(questions.step, silo, answer)
        return answers

    def _gathered(self, gather: Gather, tag: bytes) -> Answers:
        gone = [silo for silo in gather.silos if silo in self.lost.get("gather", ())]
        rows = [self.packets[tag, silo, gather.step] for silo in gather.silos if silo not in gone]
        return Answers(lost=dict.fromkeys(gone, "gone"), total=self.combine.add(rows))


def ring_vectors(num: int, size: int, ring: str, seed: int, most: int = 1 << 10) -> dict[str, Any]:
    """Whole numbers around zero as elements of the ring, for silos s00, s01, ..."""
    rng = np.random.default_rng(seed)
    return {f"s{i:02}": rng.integers(-most, most, size).astype(ring) for i in range(num)}

"""The round machine among simulated silos, on a heap with a fake clock: milliseconds for hundreds of rounds.

Silos are slow, get lost, come back, decline, leave for good, send what the gate refuses, answer twice, answer work
that was cancelled, and lose an update before it is folded. Each step checks what must always hold (`Broken`).
"""

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from orchestrator.core.messages import Update
from orchestrator.core.random import rng_of
from orchestrator.core.rounds import RoundPolicy, Rounds
from tests.support.updates import update


class Broken(AssertionError):
    """Something that must always hold did not."""


@dataclass(frozen=True)
class World:
    """How silos behave: shares of their answers."""

    num_silos: int
    lost: float = 0.0
    refused: float = 0.0
    declined: float = 0.0
    twice: float = 0.0
    perished: float = 0.0
    left: float = 0.0
    """Of the idle silos when a round opens: they take no part from then on."""
    gone: frozenset[str] = frozenset()
    """Silos that never come back once lost."""
    slowest: float = 10.0


class Simulation:
    """One run of ``rounds`` rounds, or as far as it gets."""

    def __init__(self, policy: RoundPolicy, world: World, seed: int, rounds: int = 10) -> None:
        self.policy, self.world, self.seed, self.num_rounds = policy, world, seed, rounds
        self.trace: list[list[tuple[str, int]]] = []
        """What each round took: silo, version trained from."""
        self.now = 0.0
        self.chance = random.Random(seed)
        self.silos = [f"s{i:02d}" for i in range(world.num_silos)]
        self.pace = {silo: self.chance.uniform(1, world.slowest) for silo in self.silos}
        self.online = set(self.silos)
        self.left: set[str] = set()
        self.machine = Rounds(policy, self._sample)
        self.heap: list[tuple[float, int, Callable[[], None]]] = []
        self.order = count()
        self.launches: Counter[tuple[str, int]] = Counter()
        self.busy: dict[str, tuple[int, int]] = {}
        """Silo -> version and number of the launch, by the test's own books."""
        self.settled: set[tuple[str, int]] = set()
        """Silo and version whose update was accepted, or refused by the gate."""
        self.counted: set[tuple[str, int]] = set()
        self.refused_now: set[str] = set()
        self.full_at: float | None = None
        """When an arrival first filled the buffer of this round, by the test's own books."""
        self.handed_in: set[tuple[str, int]] = set()
        """Silos and versions that were asked, at a deadline, for what they have done."""

    def run(self) -> str:
        """``done`` or ``hopeless``; raises `Broken`."""
        self._open()
        for _ in range(500 * self.num_rounds * self.world.num_silos):
            self._launch()
            self._call_in()
            if self.machine.due(self.online, self.now):
                if not self._close():
                    continue
                if len(self.trace) == self.num_rounds:
                    return "done"
                self._open()
            elif self.machine.hopeless(self.online) and not self.heap:
                self._check_hopeless()
                return "hopeless"
            else:
                self._advance()
        raise Broken("the machine does not progress")

    # what the driver does

    def _open(self) -> None:
        for silo in self.silos:
            if self.world.left and silo not in self.busy and self.chance.random() < self.world.left:
                self.left.add(silo)
        self.online -= self.left
        candidates = [silo for silo in self.silos if silo not in self.left]
        late = set(self.machine.open(candidates, self.now))
        version = self.machine.version
        _require(
            late == {s for s, (v, _) in self.busy.items() if version - v > self.policy.max_staleness}, "late"
        )
        _require(self.policy.required <= self.machine.cohort, "a required silo was not drawn")
        able = len(self.policy.required.union(candidates))
        _require(len(self.machine.cohort) == min(self.policy.cohort_size, able), "cohort size")
        self.refused_now.clear()
        self.full_at = None
        for silo in sorted(late):
            self._at(self.now + self.chance.uniform(0, 5), lambda s=silo, b=self.busy[silo]: self._lose(s, b))
        if self.policy.deadline_s is not None:
            self._at(self.machine.closing, lambda: None)

    def _launch(self) -> None:
        version = self.machine.version
        for silo in self.machine.vacancies(self.online):
            _require(silo in self.machine.cohort and silo in self.online, "launched a stranger")
            _require(silo not in self.busy, "launched a silo that is at work")
            _require((silo, version) not in self.settled, "trained again after it had delivered")
            self.machine.launched(silo)
            self.launches[silo, version] += 1
            _require(self.launches[silo, version] <= self.policy.max_attempts, "more than max_attempts")
            self.busy[silo] = work = version, next(self.order)
            _require(len(self.busy) <= self.policy.cohort_size, "more in flight than the cohort")
            takes = self.pace[silo] * self.chance.uniform(0.5, 1.5)
            self._at(self.now + takes, lambda s=silo, w=work: self._answer(s, w))

    def _call_in(self) -> None:
        """What is in flight at the deadline is answered soon, if the policy asks for it and the silo hears it."""
        if self.policy.hand_in_s is None or self.now < self.machine.deadline:
            return
        for silo, work in self.busy.items():
            if (silo, work[0]) not in self.handed_in:
                self.handed_in.add((silo, work[0]))
                soon = self.now + self.chance.choice([0.0, 0.1, 1.0, 50.0])
                self._at(soon, lambda s=silo, w=work: self._answer(s, w))

    def _close(self) -> bool:
        machine, policy, version = self.machine, self.policy, self.machine.version
        exhausted = not self.busy and not machine.vacancies(self.online)
        lasts = (policy.deadline_s or math.inf) + (policy.hand_in_s or 0)
        may_close_early = exhausted or self.now >= machine.opened_at + lasts - 1e-9
        self._check_grace(len(machine.buffer), may_close_early)
        updates = machine.close()
        if self.chance.random() < self.world.perished:
            self._perish(self.chance.choice(updates), updates)
            return False
        taken = [(each.silo, each.version) for each in updates]
        _require(taken == sorted(taken), "not in silo order")
        _require(len(set(taken)) == len(taken) and not self.counted & set(taken), "counted an update twice")
        _require(all(version - v <= policy.max_staleness for _, v in taken), "staler than allowed")
        _require(policy.required <= {silo for silo, _ in taken}, "closed without a required silo")
        silos = {silo for silo, _ in taken}
        _require(len(silos) >= policy.min_silos, "an average of too few silos")
        if len(taken) < self._full():
            _require(may_close_early, "closed early")
            _require(len(silos) >= policy.min_updates, "closed with too few")
        self.counted |= set(taken)
        self.trace.append(taken)
        return True

    def _check_grace(self, held: int, may_close_early: bool) -> None:
        """A round that its buffer closes has waited for the rest as long as it said, and no longer than it must."""
        if self.full_at is None or may_close_early or held < self._full():
            return
        took = self.full_at - self.machine.opened_at
        _require(
            self.now >= self.full_at + self.policy.grace * took - 1e-9, "closed before its grace was over"
        )

    def _full(self) -> int:
        """Updates that fill the buffer: no more than the cohort can give without the refused silos."""
        return min(self.policy.buffer_size, len(self.machine.cohort) - len(self.refused_now))

    def _perish(self, lost: Update, updates: list[Update]) -> None:
        """A silo died between its answer and the fold; what it trained since is lost with it."""
        self.machine.give_back([each for each in updates if each is not lost])
        self.machine.perished(lost)
        self.settled.discard((lost.silo, lost.version))
        self.machine.lost(lost.silo)
        self.busy.pop(lost.silo, None)

    # what silos do

    def _answer(self, silo: str, work: tuple[int, int]) -> None:
        if self.busy.get(silo) != work:
            return
        draw, world, version = self.chance.random(), self.world, work[0]
        if draw < world.lost:
            self._lose(silo, work)
            self.online.discard(silo)
            if silo not in world.gone:
                self._at(self.now + self.chance.uniform(0, 3), lambda: self._come_back(silo))
            return
        del self.busy[silo]
        if draw < world.lost + world.refused:
            self.machine.refuse(silo, version)
            self.settled.add((silo, version))
            if version == self.machine.version:
                self.refused_now.add(silo)
        elif draw < world.lost + world.refused + world.declined:
            self.machine.declined(silo)
        else:
            self._deliver(update(silo, version), first=True)
            if self.chance.random() < world.twice:
                self._at(self.now + self.chance.uniform(0, 20), lambda: self._deliver(update(silo, version)))

    def _come_back(self, silo: str) -> None:
        if silo not in self.left:
            self.online.add(silo)

    def _lose(self, silo: str, work: tuple[int, int]) -> None:
        if self.busy.get(silo) == work:
            del self.busy[silo]
            self.machine.lost(silo)

    def _deliver(self, made: Update, first: bool = False) -> None:
        if self.busy.get(made.silo, (-1, 0))[0] == made.version:
            return  # the driver takes an answer from the call in hand only (orchestrator/calls.py)
        key, age = (made.silo, made.version), self.machine.version - made.version
        if self.machine.arrived(made, self.now):
            _require(key not in self.settled, "accepted an update twice")
            _require(age <= self.policy.max_staleness, "accepted a stale update")
            self.settled.add(key)
            if self.full_at is None and len(self.machine.buffer) >= self._full():
                self.full_at = self.now
        elif first and age <= self.policy.max_staleness:
            since = any(silo == made.silo and version >= made.version for silo, version in self.settled)
            _require(since, "dropped a good update")

    # the clock

    def _at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.heap, (when, next(self.order), what))

    def _advance(self) -> None:
        moment = self.machine.next_moment(self.now)
        if moment < float("inf") and (not self.heap or moment < self.heap[0][0]):
            self.now = moment
            return
        _require(bool(self.heap), "nothing will ever happen, and the machine is neither due nor hopeless")
        self.now, _, what = heapq.heappop(self.heap)
        what()

    def _check_hopeless(self) -> None:
        held = {each.silo for each in self.machine.buffer}
        many = len(self.machine.buffer) >= self._full() or len(held) >= self.policy.min_updates
        enough = many and len(held) >= self.policy.min_silos and self.policy.required <= held
        _require(not self.busy and not enough, "hopeless with enough in hand")

    def _sample(self, version: int, candidates: list[str], size: int) -> set[str]:
        drawn = rng_of(self.seed, "cohort", version).choice(len(candidates), size=size, replace=False)
        return {candidates[i] for i in drawn}


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise Broken(what)

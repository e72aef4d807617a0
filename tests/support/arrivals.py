"""Federations of silos of stated speeds on a heap: the real round machine, weights and strategies in float64.

No transport and no rounding: what algorithms converge to can be compared with mathematics to many digits.
"""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from orchestrator.core.events import Contributor, Figures, RoundClosed
from orchestrator.core.messages import Update
from orchestrator.core.protocols import LocalRun, Report
from orchestrator.core.rounds import Rounds
from orchestrator.job import Job
from orchestrator.pacing import Paces
from orchestrator.weighing import Balance, cohort_of
from tests.support.quadratic import Quadratic, Zeros, descend
from tests.support.updates import update


def closed(version: int, *contributors: Contributor, **given: Any) -> RoundClosed:
    """The record of a round, as far as weights and paces depend on it."""
    known = {
        "evaluated": Figures(version=version - 1),
        "seconds": {},
        "bytes_up": 0,
        "bytes_down": 0,
        "update_norm": 0.0,
        "checkpoint": "",
        "lineage": "",
    }
    return RoundClosed(version=version, contributors=list(contributors), **known | given)


def contributor(silo: str, **given: Any) -> Contributor:
    known = {
        "base_version": 0,
        "staleness": 0,
        "weight": 0.0,
        "num_examples": 10,
        "num_steps": 10,
        "norm": 1.0,
    }
    return Contributor(silo=silo, **{**known, **given})


@dataclass
class Arrivals:
    """One run. ``step_s``: seconds per local step by silo; nothing else takes time."""

    job: Job
    problem_of: Mapping[str, Quadratic]
    step_s: Mapping[str, float]
    now: float = 0.0
    path: list[np.ndarray] = field(default_factory=list)
    """Parameters of version 0, 1, ..."""
    rounds: list[RoundClosed] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    """When each round closed."""

    def __post_init__(self) -> None:
        size = next(iter(self.problem_of.values())).b.size
        self.strategy, self.size = self.job.strategy, size
        self.state = self.strategy.init({"params": np.zeros(size)})
        self.machine = Rounds(self.job.policy, self.job.sample)
        self.balance, self.paces = Balance(self.job), Paces(self.job)
        self.memory = {silo: Zeros(size) for silo in self.problem_of}
        self.reports: dict[tuple[str, int], Report] = {}
        self.heap: list[tuple[float, str, int, Update | None]] = []
        self.path.append(self.state["params"])

    def run(self, rounds: int) -> "Arrivals":
        online = list(self.problem_of)
        self.machine.open(online, self.now)
        while len(self.rounds) < rounds:
            self._launch()
            if self.machine.due(online, self.now):
                self._close()
                relaxed = self.paces.choice is not None and self.paces.choice.mode == "semi_sync"
                self.machine.policy = self.job.loosest_policy if relaxed else self.job.policy
                self.machine.open(online, self.now)
                continue
            moment = self.machine.next_moment(self.now)
            if moment < self.heap[0][0]:
                self.now = moment
                continue
            self.now, _, _, arrived = heapq.heappop(self.heap)
            self.machine.arrived(arrived, self.now)
        return self

    def counts(self) -> dict[str, int]:
        """Updates of each silo in all rounds."""
        given = [each.silo for one in self.rounds for each in one.contributors]
        return {silo: given.count(silo) for silo in self.problem_of}

    def _launch(self) -> None:
        received = self.strategy.broadcast(self.state)
        extra = {name: part for name, part in received.items() if name != "params"}
        for silo in self.machine.vacancies(self.problem_of):
            self.machine.launched(silo)
            problem, version = self.problem_of[silo], self.machine.version
            run = LocalRun(received["params"].copy(), received["params"], extra, self.memory[silo])
            report = descend(self.strategy, problem, run, steps=self.paces.steps(silo))
            takes = run.num_steps * self.step_s[silo]
            self.reports[silo, version] = report
            made = update(
                silo,
                version,
                weight=self.job.combine.weight(silo, problem.num_rows),
                num_examples=problem.num_rows,
                num_steps=run.num_steps,
                scalars=dict(report.scalars),
                seconds={"train": takes},
            )
            heapq.heappush(self.heap, (self.now + takes, silo, version, made))

    def _close(self) -> None:
        version, updates = self.machine.version + 1, self.machine.close()
        cohort = cohort_of(self.balance, updates, version, self.machine.policy)
        weights = self.strategy.weigh(cohort)
        reports = [self.reports.pop((each.silo, each.version)) for each in updates]
        mean = {
            part: sum(w * r.parts[part] for w, r in zip(weights, reports, strict=True))
            for part in reports[0].parts
        }
        self.state = self.strategy.step(self.state, mean, cohort)
        record = closed(
            version,
            *(
                contributor(
                    each.silo,
                    base_version=each.version,
                    weight=weight,
                    num_examples=each.num_examples,
                    num_steps=each.num_steps,
                    seconds=each.seconds,
                )
                for each, weight in zip(updates, weights, strict=True)
            ),
        )
        self.balance.take(record)
        self.paces.take(record)
        self.rounds.append(record)
        self.times.append(self.now)
        self.path.append(self.state["params"])

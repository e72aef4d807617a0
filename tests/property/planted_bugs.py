"""Mistakes that are easy to make, each with the property that must find it: a test of the tests.

A check is one of those that the other test files use; without the bug it passes.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import orchestrator.transport.local as local_module
from orchestrator import pipeline, receiving, weighing
from orchestrator.core.messages import CohortInfo
from orchestrator.core.rounds import RoundPolicy, Rounds
from orchestrator.disk import OsFileSystem
from orchestrator.global_model import GlobalModel
from orchestrator.job import Job
from orchestrator.scoreboard import Scoreboard
from orchestrator.strategies.base import Averaging
from orchestrator.strategies.fedavg import FedAvg
from silos.state import SiloState
from silos.training import Training
from tests.contract import test_contract
from tests.contract.conftest import local, write_documents
from tests.property import test_driver
from tests.property.simulation import Simulation, World
from tests.support.federation import LossyChannel, federate, run_quadratic
from tests.support.quadratic import STEPS, desk, job_of, optimum, problems, silo_makers, sites
from tests.support.scratch import scratch

Check = Callable[[Path], Any]
Timing = Callable[[random.Random], dict[str, Any]]
BUGS: list[tuple[str, Check, list[tuple[Any, str, Any]]]] = []
"""What is wrong, who finds it, and what it replaces: (owner, name, the bug)."""


def bug(what: str, check: Check, *replaced: tuple[Any, str, Any]) -> None:
    BUGS.append((what, check, list(replaced)))


# The checks


def simulated(seeds: int = 40, timing: Timing | None = None, **world: Any) -> Check:
    def check(_: Path) -> None:
        chance = random.Random(1)
        for seed in range(seeds):
            cohort = chance.randint(2, 6)
            buffer = chance.randint(1, cohort)
            fewest = chance.randint(1, buffer)
            numbers: dict[str, Any] = {
                "min_silos": chance.randint(1, fewest),
                "max_staleness": chance.choice([0, 1, 5]),
                "deadline_s": chance.choice([None, 5.0]),
                "required": frozenset(chance.sample(["s00", "s01"], chance.randint(0, 1))),
                **(timing(chance) if timing else {}),
            }
            policy = RoundPolicy(
                cohort_size=cohort, buffer_size=buffer, min_updates=fewest, max_attempts=2, **numbers
            )
            Simulation(policy, World(6, **world), seed).run()

    return check


def is_gradient_descent(folder: Path) -> None:
    made = problems(steps=1)
    ended = run_quadratic(job_of(made, total=6), made, folder)
    assert test_driver.distance(ended, desk(FedAvg(), made, 6)[-1]) < 5e-6


def scaffold_has_no_bias(folder: Path) -> None:
    made = problems(steps=STEPS)
    ended = run_quadratic(job_of(made, total=60, strategy={"name": "scaffold"}), made, folder)
    assert test_driver.distance(ended, optimum(made)) < 0.01


def refused_is_absent(strategy: str, what: str) -> Check:
    return lambda _: test_driver.check_refusal(strategy, "s2", {1: what})


def resumes(point: str, nth: int, **sections: Any) -> Check:
    return lambda _: test_driver.check_resumption(point, nth, **sections)


def an_update_stays_as_it_was_sent(folder: Path) -> None:
    documents = write_documents(folder / "silos")
    test_contract.test_an_update_does_not_change_when_the_silo_trains_on(local, documents)


def trains_once(folder: Path) -> None:
    site_of = sites(problems(), folder / "silos")
    lose = {("s1", "Train", 2): "reply"}
    federate(test_driver.loss_job(), silo_makers(site_of), folder, channel=lambda s: LossyChannel(s, lose))
    assert site_of["s1"].trained == [0, 1, 2]


def alone_and_stale_counts_less(folder: Path) -> None:
    from tests.unit import test_pipeline

    test_pipeline.test_the_discount_scales_the_vector_and_not_its_weight()


# The bugs


def unseeded(self: Job, version: int, candidates: Any, size: int) -> set[str]:
    return {candidates[i] for i in np.random.default_rng().choice(len(candidates), size, replace=False)}


def arrived_without_books(self: Rounds, update: Any, now: float) -> bool:
    self.in_flight.pop(update.silo, None)
    usable = self._usable(update.version)
    if usable:
        self.buffer.append(update)
    return usable


def unsorted(self: Rounds) -> list[Any]:
    updates, self.buffer = self.buffer, []
    return updates


def forgets_delivery(self: Rounds, update: Any) -> None:
    self.buffer = [each for each in self.buffer if each is not update]
    self.delivered.pop(update.silo, None)


def shrinking_floor(self: Rounds) -> int:
    floor = min(self.policy.min_silos, max(1, len(self.cohort - self.refused)))
    return max(0, floor - len({update.silo for update in self.buffer}))


def counts_updates(self: Rounds) -> int:
    return max(0, self.policy.min_silos - len(self.buffer))


def discounts_weights(self: Averaging, cohort: CohortInfo) -> list[float]:
    weights = [weight * factor for weight, factor in zip(cohort.weights, cohort.factors, strict=True)]
    return [weight / sum(weights) for weight in weights]


def one_version_on(self: GlobalModel, version: int, state: Any, lineage: str) -> None:
    self.version, self.state, self.lineage = version + 1, state, lineage


def only_params(self: GlobalModel, version: int, state: Any, lineage: str) -> None:
    fresh = self.job.strategy.init({"params": state["params"]})
    self.version, self.state, self.lineage = version, fresh, lineage


def one_buffer(self: GlobalModel, size: int) -> Any:
    self._buffers = self._buffers or [np.empty(size, np.float32)]
    return self._buffers[0]


def newest_state(self: SiloState, version: int) -> Any:
    import safetensors.numpy

    versions = self._versions()
    return dict(safetensors.numpy.load_file(self._path(versions[-1]))) if versions else {}


honest_train = Training.train


def trains_again(self: Training, request: Any, run: Any) -> Any:
    self.outbox.make_room()
    return honest_train(self, request, run)


honest_flaw = receiving.flaw


def header_unread(job: Job, update: Any, expected: Any) -> Any:
    """Looks at the weight only."""
    known = replace(
        update,
        silo=expected.silo,
        run_id=expected.run_id,
        epoch=expected.epoch,
        version=expected.version,
        model_digest=expected.model_digest,
        job_digest=job.digest,
    )
    return honest_flaw(job, known, expected)


bug("an update counts twice", simulated(twice=0.4), (Rounds, "arrived", arrived_without_books))
bug("a stale update counts", simulated(), (Rounds, "_usable", lambda self, version: True))
bug("a floor that shrinks with the refused", simulated(refused=0.4), (Rounds, "num_lacking", shrinking_floor))
bug(
    "a floor that shrinks with those who take no part",
    simulated(left=0.3),
    (Rounds, "num_lacking", shrinking_floor),
)
bug("two updates of one silo are two silos", simulated(seeds=400), (Rounds, "num_lacking", counts_updates))
bug(
    "a quorum closes without its grace",
    simulated(timing=lambda chance: {"grace": chance.uniform(0.1, 1)}),
    (Rounds, "grace_over", property(lambda self: self.opened_at)),
)
bug(
    "what is handed in at the deadline is not waited for",
    simulated(timing=lambda _: {"deadline_s": 5.0, "hand_in_s": 5.0}),
    (Rounds, "closing", property(lambda self: self.deadline)),
)
bug("updates are summed as they come", simulated(), (Rounds, "close", unsorted))
bug("a round closes without a required silo", simulated(lost=0.1), (Rounds, "missing", lambda self: []))
bug(
    "a silo may try for ever",
    simulated(lost=0.3),
    (Rounds, "_may_train", lambda self, silo: self.delivered.get(silo, -1) < self.version),
)
bug(
    "a silo trains a version that it has delivered on",
    simulated(),
    (Rounds, "_may_train", lambda self, silo: self.attempts[silo] < self.policy.max_attempts),
)
bug(
    "a lost update is forgotten with all before it",
    simulated(twice=0.4, perished=0.3),
    (Rounds, "perished", forgets_delivery),
)
bug(
    "more silos at work than the cohort",
    simulated(),
    (
        Rounds,
        "vacancies",
        lambda self, online: [s for s in sorted(self.cohort & set(online)) if self._may_train(s)],
    ),
)
bug(
    "weights are not normalised",
    is_gradient_descent,
    (weighing, "shares_of", lambda updates: [update.weight for update in updates]),
)
bug(
    "all weights are equal",
    is_gradient_descent,
    (weighing, "shares_of", lambda updates: [1 / len(updates)] * len(updates)),
)
bug("the fold writes over the model", is_gradient_descent, (GlobalModel, "room", one_buffer))
bug(
    "the discount is in the weight, where it cancels",
    alone_and_stale_counts_less,
    (Averaging, "weigh", discounts_weights),
)
bug(
    "no gate for the header",
    refused_is_absent("fedavg", "other model"),
    (receiving, "flaw", header_unread),
)
bug("no gate at all", refused_is_absent("fedavg", "weight -1"), (receiving, "flaw", lambda *_: None))
bug(
    "no gate for the numbers", refused_is_absent("fedavg", "nan"), (pipeline, "squared_norm", lambda row: 0.0)
)
bug(
    "no bound for the norm",
    refused_is_absent("fedavg", "too long"),
    (pipeline._Folded, "check", lambda self: None),
)
bug(
    "an odd metric breaks the figures",
    refused_is_absent("fedavg", "odd metrics"),
    (Scoreboard, "odd", lambda self, reports: None),
)
bug(
    "work that never counted leaves its state",
    refused_is_absent("scaffold", "nan"),
    (SiloState, "after", newest_state),
)
bug("a silo's state is lost", scaffold_has_no_bias, (SiloState, "after", lambda self, version: {}))
bug("a silo trains again instead of sending what it has", trains_once, (Training, "train", trains_again))
bug("a resumed run skips a version", resumes("round.closed", 2), (GlobalModel, "restore", one_version_on))
bug(
    "a resumed run forgets the server's momentum",
    resumes("round.closed", 2),
    (GlobalModel, "restore", only_params),
)
bug(
    "a resumed run forgets that it had learnt enough",
    resumes("round.closed", 2, stop={"target": 1e9, "metric": "loss"}),
    (Scoreboard, "replay", lambda self, events: None),
)
bug(
    "cohorts are drawn anew",
    test_driver.test_random_cohorts_are_drawn_again_after_a_resumption,
    (Job, "sample", unseeded),
)
bug(
    "two drivers write one run",
    test_driver.test_two_drivers_at_once,
    (OsFileSystem, "lock", lambda self, path: lambda: None),
)
bug(
    "an update lies in memory that is trained on",
    an_update_stays_as_it_was_sent,
    (local_module, "_own", lambda reply: reply),
)


def caught(check: Check, replaced: list[tuple[Any, str, Any]], patch: Any) -> str | None:
    """How the check failed under the bug; None if it passed."""
    for owner, name, wrong in replaced:
        patch.setattr(owner, name, wrong)
    with scratch() as folder:
        try:
            check(folder)
        except Exception as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None

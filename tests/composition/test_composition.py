"""Every composition of the slots trains, or is refused with a sentence before anything starts.

The silos agree on one optimum, so that every legal job, synchronous or not, must come nearer to it. The quick
suite runs a set in which every pair of choices occurs, the slow one a part of the product, and the long one all of it.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from orchestrator.job import Job
from orchestrator.legality import warnings
from tests.support.federation import double_counts, journal, run_quadratic
from tests.support.quadratic import Quadratic, job_of, problems
from tests.support.scratch import scratch

SILOS = ("s0", "s1", "s2", "s3")
GIVEN = {"s0": 1, "s1": 5, "s2": 2.5, "s3": 1}
SLOTS: dict[str, dict[str, Any]] = {
    "strategy": {
        "fedavg": {"name": "fedavg"},
        "fedprox": {"name": "fedprox", "mu": 0.1},
        "scaffold": {"name": "scaffold"},
        "fednova": {"name": "fednova"},
        "feddyn": {"name": "feddyn"},
        "fedma": {"name": "fedma"},
        "fomaml": {"name": "fomaml"},
        "meta_sgd": {"name": "meta_sgd"},
        "ditto": {"name": "ditto"},
        "moon": {"name": "moon"},
        "diloco": {"name": "diloco"},
        "fedasync": {"name": "fedasync", "alpha": 0.9},
        "area": {"name": "area"},
    },
    "server": {
        "sgd": {"name": "sgd"},
        "momentum": {"name": "sgd", "lr": 0.5, "momentum": 0.5},
        "nesterov": {"name": "sgd", "lr": 0.5, "momentum": 0.5, "nesterov": True},
        "adagrad": {"name": "adagrad", "lr": 0.2},
        "adam": {"name": "adam", "lr": 0.2, "beta2": 0.9},
        "yogi": {"name": "yogi", "lr": 0.2, "beta2": 0.9},
    },
    "codec": {"raw": {"name": "raw"}, "bf16": {"name": "bf16"}},
    "privacy": {"open": [], "clipped": [{"name": "clip", "max_norm": 1.0}]},
    "combine": {
        "examples": {},
        "uniform": {"weights": "uniform"},
        "given": {"weights": GIVEN},
        "whole": {"name": "fixed_point_sum"},
        "secure": {"name": "secure_sum", "weights": "examples", "max_examples": 600},
        "halves": {"name": "secure_sum", "ring": "uint16", "weights": GIVEN, "weight_levels": 10},
    },
    "mode": {
        "sync": {},
        "over_selected": {},
        "quorum": {"deadline_s": 5.0},
        "semi_sync": {},
        "async": {},
        "three": {"mode": "async", "buffer": 3, "min_updates": 3},
        "corrected": {"mode": "async", "rate_correction": True},
        "fedasync": {},
        "auto": {},
    },
    "required": {"none": [], "one": ["s1"], "two": ["s0", "s1"]},
}
NEVER = {
    *(
        (strategy, "auto")
        for strategy in SLOTS["strategy"]
        if strategy not in {"fednova", "scaffold", "feddyn"}
    ),
    *product(("scaffold",), ("async", "three", "corrected", "fedasync")),
    *product(("feddyn", "area", "fedasync"), ("corrected",)),
    *product(("fedasync",), ("sync", "over_selected", "quorum", "semi_sync", "async", "three")),
}
"""Strategies that refuse these modes, whatever else the job says."""
PART = 23
"""The slow suite takes one in so many of the product."""
REASONS = (
    "required silos",
    "takes no server optimizer",
    "sends parameters",
    "one local model at a time",
    "give combine.weights",
    "versions late here",
    "weighs updates in its own way",
    "use fednova, scaffold or feddyn",
    "do not add up",
    "hides nothing",
    "would not protect",
    "shows the driver none",
)
"""Of refusals, in part."""
Choice = tuple[str, ...]
"""One name for each slot."""


def problem() -> dict[str, Quadratic]:
    one = problems()["s0"].b
    return {silo: replace(problems()[silo], b=one, steps=i + 2) for i, silo in enumerate(SILOS)}


def composed(choice: Choice) -> Job:
    """Raises ValidationError where the job is not legal."""
    chosen = {slot: SLOTS[slot][name] for slot, name in zip(SLOTS, choice, strict=True)}
    return job_of(
        SILOS,
        total=6,
        strategy={**chosen["strategy"], "server": chosen["server"]},
        codec=chosen["codec"],
        privacy=chosen["privacy"],
        combine=chosen["combine"],
        rounds={"mode": choice[list(SLOTS).index("mode")], **chosen["mode"]},
        required_silos=chosen["required"],
    )


def trained_or_refused(choice: Choice) -> str:
    try:
        job = composed(choice)
    except ValidationError as error:
        sentence = error.errors()[0]["msg"].removeprefix("Value error, ")
        assert any(reason in sentence for reason in REASONS), (choice, sentence)
        assert "required silos" not in sentence or choice[-1] != "none", (choice, sentence)
        return "refused"
    made = problem()
    with scratch() as folder:
        ended = run_quadratic(job, made, folder)
        assert not double_counts(journal(folder)), choice
    assert ended.outcome.status == "done", (choice, ended.outcome.reason)
    assert not {code for _, _, code in ended.refusals} - {"stale", "late"}, (choice, ended.refusals)
    optimum = made["s0"].b
    unsettled = any("FedDyn" in warning for warning in warnings(job))
    assert unsettled or np.linalg.norm(ended.params - optimum) < 0.98 * np.linalg.norm(optimum), choice
    required = set(job.required_silos)
    assert all(required <= set(names) for names in ended.contributors), choice
    norms = [each.norm for closed in ended.rounds for each in closed.contributors if each.norm is not None]
    bound = 1.0 + (2.0**-8 if job.codec.name == "bf16" else 0.0)
    assert not job.privacy or max(norms, default=0.0) <= bound, choice
    assert (job.sums is None) == bool(norms), choice
    return "trained"


def pairwise() -> Iterator[Choice]:
    """A few dozen choices in which every pair of names of different slots occurs (greedy, always the same)."""
    everything = {choice: pairs(choice) for choice in product(*SLOTS.values())}
    missing = set().union(*everything.values())
    while missing:
        best = max(everything, key=lambda choice: len(missing & everything[choice]))
        missing -= everything[best]
        yield best


def pairs(choice: Choice) -> set[tuple[Any, ...]]:
    return set(combinations(enumerate(choice), 2))


def test_every_pair_of_choices() -> None:
    outcomes = [trained_or_refused(choice) for choice in pairwise()]
    print(f"{outcomes.count('trained')} compositions trained, {outcomes.count('refused')} refused")
    assert outcomes.count("trained") > 25


def product_of(strategy: str, mode: str) -> list[Choice]:
    return [each for each in product(*SLOTS.values()) if each[0] == strategy and each[5] == mode]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", SLOTS["strategy"])
@pytest.mark.parametrize("mode", SLOTS["mode"])
def test_a_part_of_the_product(strategy: str, mode: str) -> None:
    """Another one in ``PART`` for each pair, so that other combinations of the rest meet in each."""
    first = (list(SLOTS["strategy"]).index(strategy) + 3 * list(SLOTS["mode"]).index(mode)) % PART
    outcomes = [trained_or_refused(choice) for choice in product_of(strategy, mode)[first::PART]]
    assert "trained" not in outcomes or (strategy, mode) not in NEVER


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("strategy", SLOTS["strategy"])
@pytest.mark.parametrize("mode", SLOTS["mode"])
def test_the_whole_product(strategy: str, mode: str) -> None:
    choices = product_of(strategy, mode)
    outcomes = [trained_or_refused(choice) for choice in choices]
    print(f"{strategy}, {mode}: {outcomes.count('trained')} trained, {outcomes.count('refused')} refused")
    assert ("trained" in outcomes) == ((strategy, mode) not in NEVER)
    choosy = strategy in {"feddyn", "fedasync", "area"} or (strategy, mode) in NEVER
    assert choosy or outcomes.count("trained") >= len(choices) // 3

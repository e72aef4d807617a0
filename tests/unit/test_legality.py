"""Which jobs are refused, each with a sentence, and which are only warned of."""

from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.aggregation.mean import Mean
from orchestrator.compression.plain import Raw
from orchestrator.legality import refusals, warnings
from tests.support.quadratic import job_of

ABC = ("a", "b", "c")
ADAPTERS = {"name": "ffa_lora", "targets": ["*"]}
UNIFORM = {"weights": "uniform"}
MATCHED = {"name": "fedma", "at": "driver"}
WHOLE: list[tuple[dict[str, Any], str]] = [
    ({"privacy": [{"name": "clip", "max_norm": 1.0}]}, "what a privacy step does to them is not matched"),
    ({"private": ["x*"]}, "needs the whole model"),
    ({"shared": ["x*"]}, "needs the whole model"),
    ({"frozen": ["x*"]}, "needs the whole model"),
    ({"rounds": {"mode": "semi_sync"}}, "matches one layer per version"),
    (
        {"strategy": {**MATCHED, "server": {"name": "sgd", "momentum": 0.9}}},
        "puts the matched layers in place",
    ),
]
"""Where the driver compares whole updates."""


@pytest.mark.parametrize(
    "sections, sentence",
    [
        ({"required_silos": ["d"]}, "required_silos: d not among the job's silos"),
        ({"combine": {"weights": {"a": 1, "b": 1}}}, "one number for each silo"),
        ({"combine": {"weights": {"a": 1, "b": 1, "c": 1, "d": 1}}}, "one number for each silo"),
        ({"combine": {"weights": {"a": 1, "b": 0, "c": 1}}}, "a weight must be positive"),
        (
            {"required_silos": ["a", "b"], "rounds": {"mode": "async", "buffer": 1}},
            "cannot hold the 2 required",
        ),
        ({"shared": ["x*", "y"], "private": ["y"]}, "stands in 'private' as well"),
        ({"frozen": ["x*"], "shared": ["x*"]}, "frozen: 'x*' stands in 'shared' as well"),
        ({"frozen": ["y"], "private": ["y"]}, "frozen: 'y' stands in 'private' as well"),
        ({"unfreeze": {2: ["x*"]}}, "nothing is 'frozen'"),
        ({"frozen": ["x"], "adapters": ADAPTERS}, "they freeze everything else by themselves"),
        ({"frozen": ["x*"], "unfreeze": {0: ["x*"]}}, "the first version is 0"),
        ({"strategy": {"name": "fedmd", "public": "p"}, "private": ["head.*"]}, "no parameter leaves a silo"),
        ({"strategy": {"name": "fedmd", "public": "none"}}, "'none' is the silos' own data"),
        ({"held_out": ["d"]}, "held_out: d not among the job's silos"),
        ({"held_out": ["a", "b", "c"]}, "no silo is left to train"),
        (
            {"held_out": ["a"], "required_silos": ["a"]},
            "required in every round (required_silos), but held out",
        ),
        (
            {"held_out": ["a"], "combine": {"weights": {"a": 1, "b": 1, "c": 1}}},
            "silo of the job that trains",
        ),
        ({"held_out": ["a"], "rounds": {"buffer": 3}}, "min_updates <= buffer_size <= cohort_size"),
        (
            {"report": {"contribution": "shapley"}, "privacy": [{"name": "clip", "max_norm": 1}]},
            "makes and measures models of single silos' updates",
        ),
        ({"report": {"contribution": "shapley"}, "held_out": ["a", "b"]}, "needs two silos that train"),
        ({"report": {"adapt": [5, 5]}}, "give rising numbers of steps"),
        ({"report": {"resamples": 100}}, "greater than or equal to 200"),
        ({"strategy": {"name": "feddyn", "server": {"name": "adam"}}}, "takes no server optimizer"),
        (
            {"report": {"contribution": "shapley"}, "strategy": {"name": "fedma", "at": "driver"}},
            "does not add them up",
        ),
        ({"rounds": {"mode": "quorum"}}, "needs 'deadline_s'"),
        ({"strategy": {"name": "fednova"}, "rounds": {"partial": True}}, "'partial' needs 'deadline_s'"),
        ({"rounds": {"partial": True, "deadline_s": 9}}, "optimum of the fast ones: use fednova"),
        ({"rounds": {"equal_time": True}}, "fedavg would go to the optimum of those: use fednova"),
        ({"rounds": {"mode": "auto"}}, "use fednova, scaffold or feddyn, or choose a mode"),
        (
            {
                "rounds": {"mode": "auto", "buffer": 2},
                "strategy": {"name": "fednova"},
                "required_silos": ["a", "b", "c"],
            },
            "give a larger rounds.buffer",
        ),
        ({"strategy": {"name": "scaffold"}, "rounds": {"mode": "async"}}, "10 versions late"),
        (
            {
                "strategy": {"name": "scaffold"},
                "rounds": {"mode": "semi_sync", "rate_correction": True},
            },
            "leave it out",
        ),
        (
            {"strategy": {"name": "fedasync"}, "rounds": {"mode": "async", "buffer": 2}},
            "one local model at a time",
        ),
        (
            {"strategy": {"name": "fedasync"}, "rounds": {"mode": "fedasync", "grace": 1}},
            "one local model at a time",
        ),
        ({"strategy": {"name": "area"}}, "give combine.weights: uniform"),
        ({"strategy": {"name": "area"}, "combine": UNIFORM, "codec": {"name": "bf16"}}, "use raw"),
        (
            {"strategy": {"name": "area"}, "combine": UNIFORM, "gate": {"max_norm": 9}},
            "whose norm says nothing",
        ),
        (
            {"strategy": {"name": "area"}, "combine": UNIFORM, "privacy": [{"name": "clip", "max_norm": 1}]},
            "bounds nothing",
        ),
        ({"rounds": {"cohort": 2, "buffer": 3}}, "min_updates <= buffer_size <= cohort_size"),
        ({"rounds": {"cohort": 1}, "required_silos": ["a", "b"]}, "do not fit a cohort of 1"),
        ({"silos": ["a", "a"]}, "stands twice"),
        ({"silos": ["global"]}, "is no silo name"),
        ({"local": {"epochs": 1, "steps": 1}}, "not both"),
        ({"strategy": {"name": "fomaml"}, "local": {"batch_size": 1}}, "adapts to one half of a batch"),
        ({"strategy": {"name": "ditto"}, "local": {"precision": "fp16"}}, "moves more than the model"),
        *[({"strategy": MATCHED, **sections}, sentence) for sections, sentence in WHOLE],
        ({"strategy": {"name": "fedma", "alone_epochs": 2}}, "name the silo with whose network"),
        (
            {"strategy": {"name": "fedma", "alone_epochs": 2, "reference": "z"}},
            "name the silo with whose network",
        ),
        ({"strategy": {"name": "fedma", "alone_epochs": 2, "reference": "a"}}, "required_silos: give 'a'"),
        ({"strategy": {"name": "fedma", "reference": "a"}}, "which is the reference"),
        (
            {"strategy": {"name": "fedma", "alone_epochs": 2}, "frozen": ["x*"]},
            "begins with a network of its own",
        ),
        (
            {
                "strategy": {"name": "fedma", "alone_epochs": 2, "reference": "a"},
                "required_silos": ["a"],
                "rounds": {"mode": "async"},
            },
            "aligned in versions 0 and 1",
        ),
    ],
)
def test_refusals(sections: dict[str, Any], sentence: str) -> None:
    silos = sections.pop("silos", ABC)
    with pytest.raises(ValidationError) as caught:
        job_of(silos, **sections)
    assert sentence in str(caught.value)


def test_legal_jobs_have_no_refusal() -> None:
    for sections in (
        {},
        {"required_silos": ["b"]},
        {"held_out": ["a"], "combine": {"weights": {"b": 1, "c": 2}}, "report": {"contribution": "shapley"}},
        {"combine": {"weights": {"a": 1, "b": 2, "c": 3}}},
        {"rounds": {"mode": "async"}, "required_silos": ["a"]},
        {"rounds": {"mode": "async", "buffer": 3, "min_updates": 3}, "strategy": {"name": "scaffold"}},
        {"rounds": {"mode": "auto"}, "strategy": {"name": "fednova"}, "required_silos": ["a", "b"]},
        {"rounds": {"mode": "auto"}, "strategy": {"name": "scaffold"}},
        {"rounds": {"mode": "fedasync"}, "strategy": {"name": "fedasync"}},
        {"rounds": {"mode": "async"}, "strategy": {"name": "area"}, "combine": UNIFORM},
        {"strategy": {"name": "fedma"}, "private": ["x*"], "privacy": [{"name": "clip", "max_norm": 1.0}]},
        {"strategy": MATCHED, "codec": {"name": "bf16"}},
    ):
        assert list(refusals(job_of(ABC, **sections))) == []


@pytest.mark.parametrize(
    "sections, word",
    [
        ({"adapters": {**ADAPTERS, "name": "lora"}}, "'ffa_lora' averages exactly"),
        ({"strategy": {"name": "scaffold"}, "rounds": {"mode": "semi_sync"}}, "older model"),
        ({"strategy": {"name": "scaffold"}, "rounds": {"mode": "auto", "buffer": 2}}, "older model"),
        ({"rounds": {"rate_correction": True}}, "changes nothing"),
        (
            {
                "strategy": {"name": "fednova"},
                "rounds": {"mode": "auto"},
                "local": {"optimizer": {"name": "sgd", "momentum": 0.9}},
            },
            "many times over",
        ),
        ({"rounds": {"mode": "async", "rate_correction": True, "staleness_exponent": 0.5}}, "0 is right"),
        ({"rounds": {"mode": "async"}}, "rounds.rate_correction: true"),
        ({"rounds": {"mode": "async"}, "combine": {"name": "fixed_point_sum"}}, "a larger rounds.buffer"),
        (
            {"strategy": {"name": "fedasync"}, "rounds": {"mode": "fedasync", "staleness_exponent": 1}},
            "nothing to",
        ),
        (
            {"strategy": {"name": "fedma"}, "privacy": [{"name": "clip", "max_norm": 1.0}]},
            "share of units that stayed",
        ),
        ({"frozen": ["x*"], "unfreeze": {5: ["x*"]}}, "the last training is that of version 4"),
        ({"strategy": {"name": "fednova"}, "local": {"optimizer": {"name": "AdamW"}}}, "that AdamW met"),
        ({"strategy": {"name": "feddyn"}, "rounds": {"mode": "async"}}, "not known to converge"),
        ({"strategy": {"name": "feddyn"}, "rounds": {"cohort": 2}}, "every round"),
        ({"strategy": {"name": "fedmd", "public": "p"}, "rounds": {"mode": "async"}}, "not the mean"),
        ({"strategy": {"name": "diloco"}, "rounds": {"mode": "fedasync"}}, "server.delay, 3 or so"),
        ({"strategy": {"name": "feddyn"}, "privacy": [{"name": "clip", "max_norm": 1}]}, "memory keeps"),
        ({"strategy": {"name": "fednova"}, "privacy": [{"name": "clip", "max_norm": 1}]}, "public number"),
        ({"strategy": {"name": "ditto", "lambda": 200}}, "beyond the common one"),
        ({"strategy": {"name": "ditto"}, "local": {"optimizer": {"name": "adam"}}}, "give strategy.lr"),
        ({"strategy": {"name": "apfl"}, "local": {"optimizer": {"name": "adam"}}}, "may be far too small"),
        ({"strategy": {"name": "apfl"}, "private": ["x"]}, "as they are"),
        ({"strategy": {"name": "reptile", "server": {"name": "adam"}}}, "give one of the two"),
    ],
)
def test_warnings(sections: dict[str, Any], word: str) -> None:
    assert any(word in each for each in warnings(job_of(ABC, **sections)))


def test_nothing_to_warn_of() -> None:
    averaged = ("fedavg", "fedprox", "scaffold", "fednova", "feddyn", "moon", "diloco")
    adapted = ("fomaml", "per_fedavg", "meta_sgd", "reptile")
    personal = ("ditto", "apfl", "fedper", "fedrep", "fedbn")
    for strategy in averaged + adapted + personal:
        assert list(warnings(job_of(ABC, strategy={"name": strategy}))) == []
    uniform = {"rounds": {"cohort": 2}, "combine": {"weights": "uniform"}}
    assert list(warnings(job_of(ABC, strategy={"name": "feddyn"}, **uniform))) == []
    delayed = {"name": "sgd", "momentum": 0.9, "nesterov": True, "delay": 3}
    strategy = {"name": "diloco", "server": delayed}
    corrected = {"mode": "fedasync", "rate_correction": True}
    assert list(warnings(job_of(ABC, strategy=strategy, rounds=corrected))) == []


def test_a_sealed_sum_and_packets_with_gaps_show_the_driver_no_whole_update() -> None:
    job = job_of(ABC, strategy=MATCHED)

    class Sealed(Mean, frozen=True):
        sealed = True

    class Gaps(Raw, frozen=True):
        bytes_per_element = 0.1

    sealed = job.model_copy(update={"combine": Sealed()})
    assert any("a sealed sum does not show" in reason for reason in refusals(sealed))
    gaps = job.model_copy(update={"codec": Gaps()})
    assert any("leaves numbers out" in reason for reason in refusals(gaps))

"""Jobs whose noise would not hide what it says, each refused with a sentence."""

import math
import re
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from orchestrator.legality import warnings
from orchestrator.privacy.mechanisms import BOUND, Noise
from tests.support.quadratic import job_of

SILOS = tuple(f"s{i}" for i in range(8))
CLIP = {"name": "clip", "max_norm": 2.0}
NOISE = {"name": "gaussian", "noise_multiplier": 1.0}
BY_SILOS = {**NOISE, "where": "silos"}
ADAPTIVE = {"name": "adaptive_clip", "initial_norm": 1.0, "max_norm": 4.0}
UNIFORM = {"name": "mean", "weights": "uniform"}
RING = {"name": "fixed_point_sum", "range": 8.0}
PRIVATE: dict[str, Any] = {"privacy": [CLIP, NOISE], "combine": UNIFORM}


def refusal(**sections: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        job_of(SILOS, **{**PRIVATE, **sections})
    return str(caught.value.errors()[0]["msg"])


@pytest.mark.parametrize(
    "sections, sentence",
    [
        ({"privacy": [NOISE]}, "noise without a clip before it is no privacy"),
        ({"privacy": [NOISE, CLIP]}, "put clip or adaptive_clip before gaussian"),
        ({"privacy": [CLIP, NOISE, NOISE]}, "'gaussian' stands twice"),
        ({"privacy": [CLIP, CLIP, NOISE]}, "'clip' stands twice"),
        ({"privacy": [CLIP, ADAPTIVE]}, "bound the same vector"),
        ({"combine": {"weights": "examples"}}, "with gaussian noise the numbers of rows would say how far"),
        ({"codec": {"name": "bf16"}}, "may lengthen an update after its clip"),
        (
            {"strategy": {"name": "fednova"}},
            "sends capped, exact, path, slope of each silo beside the vector",
        ),
        (
            {"strategy": {"name": "area"}, "rounds": {"mode": "async"}},
            "sends first of each silo beside the vector",
        ),
        (
            {"combine": {"name": "mean", "weights": dict.fromkeys(SILOS, 2)}, "privacy": [CLIP, BY_SILOS]},
            "each silo's part of the noise is for uniform weights",
        ),
        (
            {"privacy": [CLIP, BY_SILOS], "rounds": {"mode": "semi_sync"}},
            "two updates in an average would have too",
        ),
        (
            {"privacy": [CLIP, BY_SILOS], "rounds": {"mode": "auto"}, "strategy": {"name": "scaffold"}},
            "two updates in an average would have too",
        ),
        (
            {"privacy": [ADAPTIVE, NOISE]},
            "say how much of it the number of clipped updates takes; above half of",
        ),
        ({"privacy": [{**ADAPTIVE, "sigma_b": 0.4}, NOISE]}, "0.4 takes up all of noise_multiplier 1"),
        (
            {"combine": {"name": "fixed_point_sum"}},
            "'auto' follows the updates, and tells of them .* give 2 or more",
        ),
        (
            {"combine": {**RING, "range": 1.5}},
            "1.5 would cut off what the clip and the noise let through; give 2 or",
        ),
        ({"combine": RING, "privacy": [CLIP, BY_SILOS]}, r"give 8\.5.* or more"),
        (
            {"combine": {**RING, "range": 9.0, "value_bits": 4}, "privacy": [CLIP, BY_SILOS]},
            "step 1.29 is too coarse for noise of 0.8",
        ),
        (
            {"privacy": [{**ADAPTIVE, "sigma_b": 2.0}, NOISE], "combine": {**RING, "range": 2.0}},
            r"give 4\.1.* or more",
        ),
        (
            {"gate": {"max_norm": 1.9}},
            "1.9 is below the clip's bound 2: which silos the gate keeps out would tell",
        ),
        (
            {"gate": {"max_norm": 4.0}, "privacy": [{**ADAPTIVE, "sigma_b": 2.0}, NOISE]},
            r"4 is below the clip's bound 4\.1",
        ),
        (
            {"privacy": [CLIP, {"name": "gaussian", "target_epsilon": 1e-9, "delta": 1e-12}]},
            "keeps epsilon within 1e-09",
        ),
    ],
)
def test_it_is_refused(sections: dict[str, Any], sentence: str) -> None:
    assert re.search(sentence, refusal(**sections))


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"rounds": {"mode": "async"}},
        {"gate": {"max_norm": 2.0}},
        {"gate": {"max_norm": 1.0}, "privacy": [CLIP, BY_SILOS]},
        {"strategy": {"name": "scaffold", "server": {"name": "adam"}}},
        {"combine": {"name": "mean", "weights": {silo: i + 1 for i, silo in enumerate(SILOS)}}},
        {"combine": {**RING, "range": 2.0}},
        {"combine": {**RING, "range": 8.6}, "privacy": [CLIP, BY_SILOS]},
        {"privacy": [{**ADAPTIVE, "sigma_b": 0.6}, NOISE]},
        {"privacy": [ADAPTIVE], "combine": {"weights": "examples"}},
        {"privacy": [CLIP, {"name": "gaussian", "target_epsilon": 0.5, "delta": 1e-8}]},
    ],
)
def test_it_is_legal(sections: dict[str, Any]) -> None:
    assert job_of(SILOS, **{**PRIVATE, **sections}).facts.min_silos >= 1


@pytest.mark.parametrize("ring", ["uint16", "uint32"])
def test_no_bound_is_so_small_that_rounding_takes_the_silos_noise(ring: str) -> None:
    """Neither the one that a driver names, nor the first."""
    adaptive = {**ADAPTIVE, "initial_norm": 1e-9, "sigma_b": 2.0}
    job = job_of(SILOS, combine={**RING, "range": 20.0, "ring": ring}, privacy=[adaptive, BY_SILOS])
    assert job.sums is not None
    quantum = job.sums.fixed_point(job.max_in_sum).quantum
    for said in ({}, *({BOUND: bound} for bound in (0.0, 1e-12, -5.0, math.nan, math.inf))):
        clip, noise = job.steps(said)
        assert isinstance(noise, Noise) and noise.own_std >= 8 * quantum and clip.bound <= 4.2, said


def test_what_is_warned_of() -> None:
    said = " ".join(warnings(job_of(SILOS, **PRIVATE)))
    assert "hides a whole silo among 8: every number of the average gets noise of 1 / 8" in said
    assert "metrics and numbers of rows leave beside the noise" in said
    many = tuple(f"s{i}" for i in range(50))
    assert "hides a whole silo" not in " ".join(warnings(job_of(many, **PRIVATE)))
    own = " ".join(warnings(job_of(SILOS, **{**PRIVATE, "privacy": [CLIP, BY_SILOS]})))
    assert "only in a sum that hides its terms" in own
    both = [CLIP, {"name": "dp_sgd", "max_grad_norm": 1, "noise_multiplier": 1}, NOISE]
    assert "both are accounted for" in " ".join(warnings(job_of(SILOS, **{**PRIVATE, "privacy": both})))
    seeded = [CLIP, {**NOISE, "insecure_test_noise_seed": 1}]
    assert "for tests only" in " ".join(warnings(job_of(SILOS, **{**PRIVATE, "privacy": seeded})))
    assert not any("gaussian" in each for each in warnings(job_of(SILOS, privacy=[CLIP])))


def test_of_a_fixed_range_an_update_tells_nothing_about_its_size() -> None:
    for range_, told in ((8.0, [0, 0]), ("auto", [1, 1])):
        point = job_of(SILOS, combine={"name": "fixed_point_sum", "range": range_}).sums.fixed_point(8)
        encoded = point.encode(np.full(3, 0.9 * point.range, np.float32), 1, {}, ())
        assert encoded[5:7].tolist() == told

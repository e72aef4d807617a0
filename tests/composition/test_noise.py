"""Jobs with noise on the sum train in every mode and with every combiner that goes with it, and say what it costs."""

from typing import Any

import numpy as np
import pytest

from orchestrator.job import Job
from tests.composition.test_composition import SLOTS
from tests.support.federation import double_counts, journal, run_quadratic
from tests.support.quadratic import job_of, problems
from tests.support.scratch import scratch

MADE = problems(5)
CLIP = {"name": "clip", "max_norm": 1.0}
ADAPTIVE = {"name": "adaptive_clip", "initial_norm": 0.1, "max_norm": 2.0, "sigma_b": 0.4}
NOISE = {"name": "gaussian", "noise_multiplier": 0.5}
AT_THE_DRIVER = [CLIP, NOISE], [ADAPTIVE, NOISE]
BY_SILOS = [CLIP, {**NOISE, "where": "silos"}], [ADAPTIVE, {**NOISE, "where": "silos"}]
OPEN = {"name": "mean", "weights": "uniform"}
SUMS = {"name": "fixed_point_sum", "range": 20}, {"name": "secure_sum", "range": 20, "ring": "uint16"}

CASES: list[dict[str, Any]] = [
    *({"privacy": steps, "combine": combine} for steps in (*AT_THE_DRIVER, *BY_SILOS) for combine in (OPEN, *SUMS)),
    *({"privacy": AT_THE_DRIVER[i % 2], "rounds": {"mode": mode, **SLOTS["mode"][mode]}}
      for i, mode in enumerate(("over_selected", "quorum", "semi_sync", "async", "corrected"))),
    *({"privacy": AT_THE_DRIVER[i % 2], "strategy": {"name": name}}
      for i, name in enumerate(("fedprox", "scaffold", "feddyn", "fomaml", "meta_sgd", "ditto", "diloco"))),
    {"privacy": AT_THE_DRIVER[0], "rounds": {"mode": "fedasync"}},
    {"privacy": AT_THE_DRIVER[0], "combine": {"name": "mean", "weights": {silo: i + 1 for i, silo in enumerate(MADE)}}},
    {"privacy": AT_THE_DRIVER[1], "combine": {**SUMS[1], "weights": {silo: i + 1 for i, silo in enumerate(MADE)}}},
]  # fmt: skip


def job(sections: dict[str, Any]) -> Job:
    return job_of(MADE, **{"total": 4, "combine": OPEN, **sections})


@pytest.mark.parametrize("sections", CASES, ids=range(len(CASES)))
def test_it_trains_and_says_what_it_costs(sections: dict[str, Any]) -> None:
    made = job(sections)
    with scratch() as folder:
        ended = run_quadratic(made, MADE, folder)
        assert not double_counts(journal(folder))
    assert ended.outcome.status == "done" and len(ended.rounds) == 4
    assert np.isfinite(ended.params).all() and ended.params.any()
    spent: dict[str, float] = {}
    for closed in ended.rounds:
        for each in closed.contributors:
            cost = each.privacy
            assert (
                cost["silo_epsilon_rdp"] >= cost["silo_epsilon"] > 0
                and cost["silo_noise_multiplier"] >= 0.499
            )
        own = {each.silo: each.privacy["silo_epsilon"] for each in closed.contributors}
        assert all(cost > spent.get(silo, 0.0) for silo, cost in own.items())
        spent |= own
        assert ("clip_norm" in closed.settings) == (made.privacy[0].name == "adaptive_clip")
        assert made.noise.where == "silos" or all(each.norm is None for each in closed.contributors)

"""The same updates of the same silos in two sums that are two equations for them: real silos refuse the second, in any
run and job."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.privacy.sealing import SumFailed
from tests.integration.test_sum_attacks import KINDS, NAMES, SECURE, anew, as_another_run
from tests.support.asked_sums import AskedSums
from tests.support.quadratic import job_of


def test_the_same_silos_with_other_factors(tmp_path: Path) -> None:
    """As sums for version 2 and for version 3 the same updates have other discounts: two equations, of which one update
    is the solution."""
    rounds = {"mode": "async", "buffer": 4, "max_staleness": 3, "min_updates": 4}
    asked = AskedSums(tmp_path, {**SECURE, "range": 4.0}, rounds=rounds)
    anew(asked)
    asked.train(version=1, model=0.1, silos=NAMES[1:])
    discount = asked.job.policy.discount

    def header(version: int) -> Any:
        trained = {silo: 0 if silo == "s0" else 1 for silo in NAMES}
        factors = {silo: discount(version - 1 - trained[silo]) for silo in NAMES}
        members = [asked.member(silo, trained[silo], factors[silo]) for silo in NAMES]
        return asked.header(members, version=version)

    asked.opened(header(2))
    with pytest.raises(SumFailed, match="other factors or another range"):
        asked.opened(header(3))
    as_another_run(asked)
    asked.train(version=1, model=0.1, silos=NAMES[1:])
    with pytest.raises(SumFailed, match="other factors or another range"):
        asked.opened(header(3))


@pytest.mark.parametrize("combine", KINDS, ids=lambda combine: combine["name"])
@pytest.mark.parametrize(
    "other",
    [{"weights": dict.fromkeys(NAMES, 1.0) | {"s5": 2.0}}, {"weights": "examples", "max_examples": 300}],
    ids=["numbers", "examples"],
)
@pytest.mark.parametrize("run_id", ["run", "another"])
def test_the_same_silos_with_other_weights(
    tmp_path: Path, combine: dict[str, Any], other: dict[str, Any], run_id: str
) -> None:
    """In another job, where one silo counts twice: what its sum has more is that silo's update."""
    terms = {**combine, "range": 4.0, "weight_levels": 2}
    asked = AskedSums(tmp_path, {**terms, "weights": dict.fromkeys(NAMES, 1.0)})
    anew(asked)
    asked.opened(asked.header())
    asked.leave(finished=True)
    asked.job = job_of(NAMES, combine={**terms, **other}, rounds={"min_updates": 3})
    asked.run_id = run_id
    for silo in NAMES:
        asked.join(silo)
    anew(asked)
    with pytest.raises(SumFailed, match="with other weights, other factors or another range"):
        asked.opened(asked.header())


def test_the_same_silos_cut_to_another_range(tmp_path: Path) -> None:
    """Sums of what is cut to r, for many r, show every value in them."""
    asked = AskedSums(tmp_path, SECURE)
    anew(asked)
    for none in (0.0, -4.0, float("inf"), float("nan")):
        with pytest.raises(SumFailed, match="of the ring"):
            asked.opened(asked.header(range=none))
    asked.opened(asked.header(range=4.0))
    with pytest.raises(SumFailed, match="other factors or another range"):
        asked.opened(asked.header(range=0.5))
    asked.opened(asked.header(range=4.0))
    as_another_run(asked)
    with pytest.raises(SumFailed, match="other factors or another range"):
        asked.opened(asked.header(range=0.5))
    asked.opened(asked.header(range=4.0))

"""Whole runs whose updates leave in sums only: whichever kind of sum it is, the model is the same to the bit."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from orchestrator.core.events import SiloDown
from orchestrator.core.messages import Fetch, Reply, Request
from orchestrator.transport.local import LocalChannel
from tests.support.federation import Ended, LossyChannel, federate
from tests.support.quadratic import job_of, problems, silo_makers, sites

SUM: dict[str, Any] = {"value_bits": 14, "first_range": 8.0}
KINDS: dict[str, dict[str, Any]] = {
    "fixed_point_sum": {},
    "secure_sum": {"mode": "active"},
    "two_aggregator_sum": {"second": "s1"},
    "encrypted_sum": {},
}
SEALED = [kind for kind in KINDS if kind != "fixed_point_sum"]


def run(
    folder: Path,
    kind: str,
    num: int = 4,
    total: int = 4,
    losses: Any = None,
    rounds: Any = None,
    **combine: Any,
) -> Ended:
    names = [f"s{i}" for i in range(num)]
    job = job_of(
        names,
        total,
        report={"silos": False},
        rounds={"min_updates": 3, "patience_s": 60.0, **(rounds or {})},
        combine={"name": kind, **SUM, **KINDS[kind], **combine},
    )
    makers = silo_makers(sites(problems(num), folder / "silos"))
    channel = {} if losses is None else {"channel": lambda makers: LossyChannel(makers, losses)}
    return federate(job, makers, folder, limit_s=120.0, **channel)


def same_bits(ended: dict[str, Ended]) -> bool:
    """Model and record: the digest of every sum, and the range that followed from it."""
    first = ended["fixed_point_sum"]
    for each in ended.values():
        assert each.outcome.exit_code == 0, each.outcome.reason
        digests = [(closed.sealed.digest, closed.settings) for closed in each.rounds]
        if digests != [(closed.sealed.digest, closed.settings) for closed in first.rounds]:
            return False
    return len({each.digest for each in ended.values()}) == 1


@pytest.mark.parametrize(
    "combine",
    [
        {},
        {"ring": "uint16", "value_bits": 10},
        {"weights": "examples", "max_examples": 550, "weight_levels": 11},
        {"weights": {"s0": 1.0, "s1": 2.0, "s2": 3.0, "s3": 4.0}, "weight_levels": 4},
    ],
)
def test_all_kinds_of_sums_give_the_same_bits(tmp_path: Path, combine: dict[str, Any]) -> None:
    assert same_bits({kind: run(tmp_path / kind, kind, **combine) for kind in KINDS})


@pytest.mark.parametrize(
    "num",
    [
        3,
        pytest.param(7, marks=pytest.mark.slow),
        pytest.param(20, marks=pytest.mark.slow),
        pytest.param(50, marks=pytest.mark.slow),
    ],
)
def test_for_any_number_of_silos(tmp_path: Path, num: int) -> None:
    assert same_bits({kind: run(tmp_path / kind, kind, num, 2) for kind in KINDS})


@pytest.mark.parametrize("kind", SEALED)
@pytest.mark.parametrize("request_", ["seal", "Fetch"])
def test_who_is_lost_on_the_way_is_left_out(tmp_path: Path, kind: str, request_: str) -> None:
    """Before the packet is fetched, or while it is: the sum of the others is that of a plain sum without the silo."""
    ended = run(tmp_path / kind, kind, 5, 1, {("s3", request_, 1): "before"}, {"min_updates": 4})
    plain = run(
        tmp_path / "plain", "fixed_point_sum", 5, 1, {("s3", request_, 1): "before"}, {"min_updates": 4}
    )
    assert ended.outcome.exit_code == 0
    assert [list(each.sealed.left_out) for each in ended.rounds] == [["s3"]]
    assert same_bits({"fixed_point_sum": plain, kind: ended})


@pytest.mark.parametrize(("silo", "step"), [("s3", "agree"), ("s0", "decrypt")])
def test_a_silo_lost_after_its_upload_is_still_in_the_sum(tmp_path: Path, silo: str, step: str) -> None:
    """Encrypted: whoever is left agrees and decrypts. A short sum is one stretch, which the first silo is given."""
    whole = run(tmp_path / "whole", "encrypted_sum", 5, 1)
    ended = run(tmp_path / "lost", "encrypted_sum", 5, 1, {(silo, step, 1): "before"})
    assert [down.silo for down in ended.of(SiloDown)] == [silo]
    assert ended.digest == whole.digest and not ended.rounds[0].sealed.left_out


@pytest.mark.parametrize("kind", SEALED)
def test_a_silo_that_starts_anew_gets_new_keys(tmp_path: Path, kind: str) -> None:
    ended = run(tmp_path, kind, 5, 4, {("s0", "Train", 2): "before"}, {"min_updates": 3})
    assert ended.outcome.exit_code == 0
    assert "s0" in ended.contributors[-1]


def test_buffered_rounds(tmp_path: Path) -> None:
    """Late binding: only when enough are ready are their sums begun; late updates count for less, and a silo may bring
    two."""
    for kind in SEALED:
        ended = run(
            tmp_path / kind,
            kind,
            6,
            8,
            rounds={"mode": "async", "buffer": 4, "max_staleness": 3, "min_updates": 3},
        )
        assert ended.outcome.exit_code == 0 and len(ended.rounds) == 8
        assert all(len(names) >= 3 for names in ended.contributors)


def test_the_second_aggregator_is_in_every_round(tmp_path: Path) -> None:
    """It cannot be left out: where it is lost the sum fails, and begins anew with its next process."""
    ended = run(tmp_path, "two_aggregator_sum", 5, 2, {("s1", "reveal", 1): "before"}, {"min_updates": 3})
    assert ended.outcome.exit_code == 0
    assert all("s1" in names for names in ended.contributors)
    names, rounds = ["s0", "s1", "s2", "s3"], {"min_updates": 3}
    combine = {"name": "two_aggregator_sum", "second": "s1"}
    assert job_of(names, rounds=rounds, combine=combine).policy.required == {"s1"}
    for second, held_out in (("s9", []), ("s3", ["s3"])):
        with pytest.raises(ValidationError, match=f"'{second}' is no silo of the job that trains"):
            job_of(names, rounds=rounds, held_out=held_out, combine={**combine, "second": second})


# robust rules on groups


@pytest.mark.parametrize("kind", SEALED)
def test_groups_give_the_same_bits_too(tmp_path: Path, kind: str) -> None:
    groups = {"groups": {"size": 3, "rule": "median"}}
    rounds = {"min_updates": 9}
    plain = run(tmp_path / "plain", "fixed_point_sum", 9, 3, rounds=rounds, **groups)
    ended = run(tmp_path / kind, kind, 9, 3, rounds=rounds, **groups)
    assert same_bits({"fixed_point_sum": plain, kind: ended})
    drawn = [closed.sealed.groups for closed in ended.rounds]
    assert all(sorted(map(len, each)) == [3, 3, 3] for each in drawn)
    assert len({str(each) for each in drawn}) == 3


@pytest.mark.parametrize(
    "rule", ["median", "trimmed_mean", "krum", pytest.param("multi_krum", marks=pytest.mark.slow)]
)
def test_one_silo_that_sends_anything_does_not_move_the_rule(tmp_path: Path, rule: str) -> None:
    num = 15 if "krum" in rule else 9
    groups = {"groups": {"size": 3, "rule": rule}, "value_bits": 12, "range": 64.0}
    names = [f"s{i}" for i in range(num)]
    b = np.full(5, 3.0)
    found = {}
    for label, sums in (("mean", {"value_bits": 12, "range": 64.0}), (rule, groups)):
        honest = {name: each for name, each in problems(num, steps=20).items()}
        for each in honest.values():
            each.b[:] = b
        honest["s4"].b[:] = -1e4
        job = job_of(
            names,
            6,
            report={"silos": False},
            rounds={"min_updates": num},
            combine={"name": "secure_sum", **sums},
        )
        found[label] = federate(job, silo_makers(sites(honest, tmp_path / label)), tmp_path / label).params
    assert abs(found[rule] - b).max() < 0.2 < 1 < abs(found["mean"] - b).max()


class SlowFetches(LocalChannel):
    """Packets take longer to come than sums to be sealed."""

    async def call(self, silo: str, request: Request) -> Reply:
        if isinstance(request, Fetch):
            await asyncio.sleep(0.2)
        return await super().call(silo, request)


def test_the_second_aggregator_keeps_what_it_reveals_of_every_group(tmp_path: Path) -> None:
    names, groups = [f"s{i}" for i in range(15)], {"size": 3, "rule": "median"}
    combine = {"name": "two_aggregator_sum", "second": "s1", "groups": groups, **SUM}
    job = job_of(names, 1, report={"silos": False}, rounds={"min_updates": 15}, combine=combine)
    makers = silo_makers(sites(problems(15), tmp_path / "silos"))
    ended = federate(job, makers, tmp_path, channel=SlowFetches)
    assert ended.outcome.exit_code == 0 and not ended.refusals, ended.outcome
    assert len(ended.rounds[0].sealed.groups) == 5


def test_a_group_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    rounds = {"min_updates": 9}
    losses = {("s3", "seal", 1): "before"}
    groups = {"groups": {"size": 3, "rule": "median"}}
    ended = run(tmp_path, "secure_sum", 12, 2, losses, rounds, mode="passive", **groups)
    assert ended.outcome.exit_code == 0
    first, second = (closed.sealed.groups for closed in ended.rounds)
    assert len(first) == 3 and ended.rounds[0].sealed.left_out.keys() >= {"s3"}
    assert all("s3" not in group for group in first) and len(second) >= 3


def test_too_few_silos_for_a_rule_are_refused() -> None:
    names = [f"s{i}" for i in range(9)]
    for rule, trim, fits in (
        ("median", 1, True),
        ("trimmed_mean", 1, True),
        ("trimmed_mean", 2, False),
        ("krum", 1, False),
    ):
        groups = {"size": 3, "rule": rule, "trim": trim}
        if fits:
            job_of(names, rounds={"min_updates": 9}, combine={"name": "secure_sum", "groups": groups})
        else:
            with pytest.raises(ValidationError, match="needs 5 groups, and a round of this job may have 3"):
                job_of(names, rounds={"min_updates": 9}, combine={"name": "secure_sum", "groups": groups})
    with pytest.raises(ValidationError, match="greater than or equal to 3"):
        job_of(names, combine={"name": "secure_sum", "groups": {"size": 2}})

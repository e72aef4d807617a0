"""What a released model costs a silo: every release counts, and only what is durable is released."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.core import events
from orchestrator.core.faults import FaultInjected, arm
from orchestrator.core.spent import spent, spent_by
from orchestrator.job import Job
from orchestrator.privacy.accountant import Query, epsilon, epsilon_rdp
from orchestrator.summary import summarise
from tests.support.federation import Ended, journal, run_quadratic
from tests.support.quadratic import job_of, problems
from tracking.mapping import Mapper

MADE = problems()
CLIP = {"name": "clip", "max_norm": 1.0}
UNIFORM = {"name": "mean", "weights": "uniform"}


def job(noise: dict[str, Any], **sections: Any) -> Job:
    privacy = sections.pop("privacy", [CLIP, {"name": "gaussian", **noise}])
    return job_of(MADE, **{"total": 3, "combine": UNIFORM, "privacy": privacy, **sections})


def epsilons(ended: Ended | list[Any], silo: str = "s0") -> list[float]:
    rounds = ended.rounds if isinstance(ended, Ended) else ended
    return [
        each.privacy["silo_epsilon"] for closed in rounds for each in closed.contributors if each.silo == silo
    ]


def test_every_version_is_told_of_with_both_accountants(tmp_path: Path) -> None:
    ended = run_quadratic(job({"noise_multiplier": 2.0}), MADE, tmp_path)
    assert epsilons(ended) == pytest.approx([epsilon([Query(1, 2.0, k)], 1e-5) for k in (1, 2, 3)])
    last = ended.rounds[-1].contributors[0]
    assert last.privacy["silo_epsilon_rdp"] == pytest.approx(epsilon_rdp([Query(1, 2.0, 3)], 1e-5))
    assert last.norm is None and last.cosine is None, "of single updates the driver tells nothing"
    planned = [event.planned for event in ended.of(events.SiloJoined)]
    assert all(each == {**last.privacy} for each in planned)


def test_a_target_is_met_and_used_up(tmp_path: Path) -> None:
    ended = run_quadratic(job({"target_epsilon": 2.0, "delta": 1e-6}), MADE, tmp_path)
    assert ended.outcome.status == "done" and len(ended.rounds) == 3
    assert 1.99 < epsilons(ended)[-1] <= 2.0
    assert all(each.privacy["silo_delta"] == 1e-6 for each in ended.rounds[-1].contributors)


def test_silos_with_a_smaller_share_lose_less(tmp_path: Path) -> None:
    shares = {"s0": 4, "s1": 2, "s2": 1, "s3": 1}
    ended = run_quadratic(
        job({"noise_multiplier": 1.0}, combine={"name": "mean", "weights": shares}), MADE, tmp_path
    )
    found = {each.silo: each.privacy["silo_noise_multiplier"] for each in ended.rounds[0].contributors}
    assert found == pytest.approx({"s0": 1.0, "s1": 2.0, "s2": 4.0, "s3": 4.0})


def test_the_silos_own_noise_counts_for_those_that_really_answered(tmp_path: Path) -> None:
    made = job({"noise_multiplier": 1.0, "where": "silos"}, rounds={"min_updates": 3})
    ended = run_quadratic(made, MADE, tmp_path)
    assert epsilons(ended)[0] == pytest.approx(epsilon([Query(1, math.sqrt(4 / 3), 1)], 1e-5))


@pytest.mark.parametrize("where", ["driver", "silos"])
@pytest.mark.parametrize(
    "point", ["round.folded", "state.stepped", "checkpoint.manifest", "checkpoint.renamed"]
)
def test_noise_that_was_not_recorded_has_left_nowhere(tmp_path: Path, point: str, where: str) -> None:
    """Whoever goes on draws anew; nobody has seen the first draw, and it is not counted. Recovery takes a version whose
    checkpoint is whole."""
    made, launched = job({"noise_multiplier": 1.0, "where": where}), list[tuple[int, int]]()

    def during(driver: Any, silos: Any, event: Any) -> None:
        if isinstance(event, events.SiloLaunched):
            launched.append((event.version, driver.attempt.store.epoch))

    arm(f"{point}:2:raise")
    try:
        with pytest.raises(FaultInjected):
            run_quadratic(made, MADE, tmp_path, during=during)
    finally:
        arm(None)
    known = max(
        (event.version for event in journal(tmp_path) if isinstance(event, events.RoundClosed)), default=0
    )
    assert max(version for version, _ in launched) <= known, (
        "nobody trains from a version that is not durable"
    )
    ended = run_quadratic(made, MADE, tmp_path, during=during)
    closed = [event for event in journal(tmp_path) if isinstance(event, events.RoundClosed)]
    assert [each.version for each in closed] == [1, 2, 3] and ended.outcome.status == "done"
    z = closed[0].contributors[0].privacy["silo_noise_multiplier"]
    assert epsilons(closed) == pytest.approx([epsilon([Query(1, z, k)], 1e-5) for k in (1, 2, 3)])


def test_two_attempts_draw_differently(tmp_path: Path) -> None:
    made = job({"noise_multiplier": 1.0})
    first, second = (run_quadratic(made, MADE, tmp_path / name) for name in "ab")
    assert not np.array_equal(first.params, second.params)
    assert first.rounds[0].lineage != second.rounds[0].lineage, "another draw is another model"
    seeded = job({"noise_multiplier": 1.0, "insecure_test_noise_seed": 7})
    third, fourth = (run_quadratic(seeded, MADE, tmp_path / name) for name in "cd")
    assert third.digest == fourth.digest and third.rounds[-1].lineage == fourth.rounds[-1].lineage


def test_a_version_that_is_made_again_is_paid_for_again(tmp_path: Path) -> None:
    """The newest checkpoint is damaged: the silos have had its model, and get another one in its place."""
    made = job({"noise_multiplier": 2.0}, total=2)
    run_quadratic(made, MADE, tmp_path)
    for file in (tmp_path / "runs/run/checkpoints").glob("*2/*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    run_quadratic(made, MADE, tmp_path)
    history = journal(tmp_path)
    assert any(isinstance(event, events.Rewound) for event in history)
    closed = [event for event in history if isinstance(event, events.RoundClosed)]
    assert [each.version for each in closed] == [1, 2, 2]
    assert closed[1].lineage != closed[2].lineage
    assert epsilons(closed) == pytest.approx([epsilon([Query(1, 2.0, k)], 1e-5) for k in (1, 2, 3)])


def test_a_target_holds_over_versions_made_again(tmp_path: Path) -> None:
    made = job({"target_epsilon": 2.0}, total=2)
    run_quadratic(made, MADE, tmp_path)
    for file in (tmp_path / "runs/run/checkpoints").glob("*2/*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    ended = run_quadratic(made, MADE, tmp_path)
    assert ended.outcome.status == "done" and not ended.rounds
    assert ended.outcome.reason == "privacy: one more version would take s0 beyond target_epsilon 2"


def test_where_it_is_shown(tmp_path: Path) -> None:
    ended = run_quadratic(job({"noise_multiplier": 2.0}), MADE, tmp_path)
    history = journal(tmp_path)
    summary = summarise(history)
    last = ended.rounds[-1].contributors[0].privacy
    assert summary["silos"]["s0"]["privacy"] == summary["silos"]["s0"]["planned"] == last
    assert summary["versions"][0]["contributors"][0]["privacy"] == ended.rounds[0].contributors[0].privacy
    mapper, points = Mapper(), {}
    for event in history:
        for run, rows in mapper.posts(event).items():
            points |= {(run, point.key, point.step): point.value for point in rows.points}
    assert (
        points["s1", "privacy/silo_epsilon", 3]
        == points["", "privacy/silo_epsilon_most", 3]
        == last["silo_epsilon"]
    )


def test_in_words() -> None:
    silo = {
        "silo_epsilon": 1.2218,
        "silo_epsilon_rdp": 1.3325,
        "silo_delta": 1e-5,
        "silo_noise_multiplier": 3.1,
    }
    record = {"epsilon": 0.5, "epsilon_rdp": 0.6, "delta": 1e-5}
    assert spent(record) == "epsilon 0.5 (RDP 0.6) at delta 1e-05"
    assert spent({**record, **silo}).endswith(", as a silo epsilon 1.222 (RDP 1.333) at delta 1e-05")
    ledger = {name.removeprefix("silo_"): value for name, value in silo.items()}
    assert spent({**ledger, **silo}) == spent(silo) == "as a silo epsilon 1.222 (RDP 1.333) at delta 1e-05"
    earlier = {**ledger, "epsilon": 2.5, "epsilon_rdp": 2.6, "epsilon_job": 1.22179}
    assert spent({**earlier, **silo}) == f"{spent(silo)}, over all jobs 2.5"
    assert spent({**record, "epsilon_job": 0.5, **silo}) == spent({**record, **silo})
    assert spent(record, delta=False) == "epsilon 0.5 (RDP 0.6)"
    assert spent({}) == spent_by([("a", {})]) == "" and spent({"epsilon": 1.0}) == "epsilon 1"
    told = spent_by([("a", record), ("b", {**record, "epsilon": 2.0}), ("c", record), ("c", record)])
    assert told == f"a, c: {spent(record)}; b: epsilon 2 (RDP 0.6) at delta 1e-05"

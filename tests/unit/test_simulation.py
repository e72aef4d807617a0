"""Runs on the virtual clock, against closed forms and against the same run on a real one."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.core import events
from orchestrator.core.errors import BadInput
from orchestrator.core.messages import Join, Stop, Train
from orchestrator.job import Job
from orchestrator.simulation import loop
from orchestrator.simulation.channel import SimulatedChannel
from orchestrator.simulation.figures import idle_share, reached, row_of, target_of
from orchestrator.simulation.recorded import recorded, rounds_of
from orchestrator.simulation.run import Simulated, first_difference, follow, simulate
from orchestrator.simulation.speeds import speeds_of
from orchestrator.simulation.timings import Task
from orchestrator.simulation.what_if import changed, lasting
from silos.silo import Silo
from tests.support.federation import run_quadratic
from tests.support.quadratic import Quadratic, job_of, problems, sites

PROBLEMS = problems(4)


def makers(folder: Path, problem_of: dict[str, Quadratic] = PROBLEMS) -> dict[str, Callable[[], Silo]]:
    return {name: lambda site=site: Silo(site, loop.now) for name, site in sites(problem_of, folder).items()}


def run(
    folder: Path, job: Job, speeds: Any, problem_of: dict[str, Quadratic] = PROBLEMS, **how: Any
) -> Simulated:
    timings = speeds_of(speeds, job.silos) if isinstance(speeds, str) else speeds
    ended = simulate(job, makers(folder / "silos", problem_of), timings, folder / "run", **how)
    assert ended.outcome.status == "done", ended.outcome
    return ended


# the loop


def test_time_jumps_from_timer_to_timer_and_work_for_threads_is_done_at_once() -> None:
    seen: list[tuple[float, str]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        seen.append((loop.now(), name))

    async def main() -> int:
        tasks = [asyncio.create_task(sleeper(*each)) for each in (("late", 86_400.0), ("a", 2.0), ("b", 2.0))]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.get_running_loop().create_future(), 1.5)
        assert loop.now() == 1.5
        assert await asyncio.to_thread(lambda: len(seen)) == 0
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)
        await asyncio.gather(*tasks)
        return len(seen)

    assert loop.run(main()) == 3
    assert seen == [(2.0, "a"), (2.0, "b"), (86_400.0, "late")]


def test_a_wait_for_what_never_comes_is_an_error_and_not_a_hang() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="nothing will ever happen"):
        loop.run(main())


# the run


def test_a_synchronous_run_is_the_run_on_a_real_clock_bit_for_bit(tmp_path: Path) -> None:
    job = job_of(PROBLEMS, strategy={"name": "scaffold", "server": {"name": "adam", "lr": 0.5}})
    real = run_quadratic(job, PROBLEMS, tmp_path / "real")
    ended = run(tmp_path / "virtual", job, "8,1,4,2")
    assert ended.digest == real.digest
    assert [each.evaluated for each in ended.rounds] == [each.evaluated for each in real.rounds]
    assert [point.time for point in ended.points] == [0, 40, 80, 120, 160, 200]


ASYNC = {"mode": "async", "buffer": 2}


def test_the_same_command_gives_the_same_bits_and_another_seed_other_times(tmp_path: Path) -> None:
    job = job_of(PROBLEMS, total=12, rounds=ASYNC)
    ended = [
        run(tmp_path / str(i), job, speeds_of("dm", job.silos, seed).of(jitter=1.0))
        for i, seed in enumerate((7, 7, 8))
    ]
    assert ended[0].points == ended[1].points and ended[0].digest == ended[1].digest
    assert [each.due for each in ended[0].works] == [each.due for each in ended[1].works]
    assert ended[0].digest != ended[2].digest
    assert all(a.due != b.due for a, b in zip(ended[0].works[:4], ended[2].works[:4], strict=True))


def test_what_is_due_at_the_same_time_arrives_by_the_names_of_the_silos(tmp_path: Path) -> None:
    """Whatever the order in which the silos were made, or named in the job."""
    job = job_of(PROBLEMS, rounds=ASYNC)
    backwards = job_of(list(PROBLEMS)[::-1], rounds=ASYNC)
    one = run(tmp_path / "a", job, "1x4")
    other = simulate(
        backwards,
        dict(reversed(makers(tmp_path / "b").items())),
        speeds_of("1x4", backwards.silos),
        tmp_path / "b" / "run",
    )
    assert one.digest == other.digest
    given = [[each.silo for each in closed.contributors] for closed in one.rounds]
    assert given[:3] == [["s0", "s1"], ["s2", "s3"], ["s0", "s1"]]


def test_length_of_a_round_and_idle_shares_have_their_closed_forms(tmp_path: Path) -> None:
    """Oracle 26: speeds 1:2:4:8, five steps. Idle: 1 - s/8; steps done in all: half of what they could."""
    job = job_of(PROBLEMS, total=3)
    ended = run(tmp_path, job, "1,2,4,8")
    assert [closed.seconds["round"] for closed in ended.rounds] == [40.0] * 3
    shares = [idle_share(ended.works, silo, ended.ended) for silo in job.silos]
    assert shares == pytest.approx([7 / 8, 3 / 4, 1 / 2, 0])
    could = sum(1 / seconds for seconds in (1, 2, 4, 8))
    did = sum(work.num_steps for work in ended.works) / ended.ended
    assert could / did == pytest.approx(3.75)


def test_a_buffer_of_all_is_federated_averaging_bit_for_bit(tmp_path: Path) -> None:
    """Oracle 21, for any speeds."""
    sync = run(tmp_path / "sync", job_of(PROBLEMS), "1,2,4,8")
    full = run(tmp_path / "full", job_of(PROBLEMS, rounds={"mode": "async", "buffer": 4}), "5,1,1,0.3")
    assert sync.digest == full.digest


def test_updates_of_the_straggler_setting(tmp_path: Path) -> None:
    """learning_targets.md section 3.3: seven parties of one unit per epoch, and 2, 4 and 8: 126 updates by t = 16."""
    ten = problems(10, num_rows=160)
    job = job_of(ten, total=1_000, rounds={"mode": "async", "buffer": 5}, stop={"wall_time_s": 16})
    ended = run(tmp_path, job, speeds_of("1x7,2,4,8", job.silos, per="epoch"), ten)
    arrived = [work for work in ended.works if work.due <= 16]
    assert len(arrived) == 126
    assert {closed.seconds["round"] for closed in ended.rounds} <= {0.0, 1.0, 2.0}
    assert all(len(closed.contributors) == 5 for closed in ended.rounds), (
        "one by one, though many are due at once"
    )


def test_a_silo_that_never_answers_stops_no_quorum_and_each_deadline_fires_once(tmp_path: Path) -> None:
    """Oracle 28."""
    job = job_of(PROBLEMS, total=4, rounds={"mode": "quorum", "deadline_s": 20})
    ended = run(tmp_path, job, "1,1,1,1e6")
    assert [closed.seconds["round"] for closed in ended.rounds] == [20.0] * 4
    assert {each.silo for closed in ended.rounds for each in closed.contributors} == {"s0", "s1", "s2"}
    late = [work for work in ended.works if work.silo == "s3"]
    assert [(work.end, work.ended - work.began) for work in late[:4]] == [("stopped", 20.0)] * 4


def test_an_outage_loses_the_work_in_hand_and_the_silo_comes_back(tmp_path: Path) -> None:
    speeds = tmp_path / "speeds.yaml"
    silo = "{seconds: 2, outages: [[5, 50]]}"
    speeds.write_text(f"latency_s: 1\nsilos: {{s0: 1, s1: 1, s2: 1, s3: {silo}}}\n")
    job = job_of(PROBLEMS, total=2)
    seen: list[Any] = []
    ended = run(tmp_path, job, str(speeds), observe=seen.append)
    assert [event.why for event in seen if isinstance(event, events.SiloDown)] == ["cannot be reached"]
    works = [work for work in ended.works if work.silo == "s3"]
    assert [work.end for work in works] == ["lost", "arrived", "arrived"]
    assert works[0].ended == 5.0 and 50 <= works[1].began <= 55
    assert works[1].ended - works[1].began == 5 * 2 + 2


def test_a_journal_of_a_simulated_run_says_so_and_has_virtual_times(tmp_path: Path) -> None:
    from orchestrator.summary import read_summary

    ended = run(tmp_path, job_of(PROBLEMS), "1,2,4,8")
    summary = read_summary(tmp_path / "run")
    assert summary["simulated"] and summary["ended"] == 200.0 and summary["started"] == 0.0
    assert summary["versions"][0]["seconds"]["wait"] == 40.0
    assert [each.seconds["train"] for each in ended.rounds[0].contributors] == [5.0, 10.0, 20.0, 40.0]


# durations


def task(**what: Any) -> Task:
    return Task(
        **{
            "silo": "a",
            "number": 0,
            "num_steps": 10,
            "num_epochs": 2.0,
            "bytes_down": 0,
            "bytes_up": 0,
            **what,
        }
    )


def test_a_task_takes_its_steps_its_bytes_and_its_latency(tmp_path: Path) -> None:
    path = tmp_path / "speeds.yaml"
    path.write_text(
        "{latency_s: 1, bytes_per_s: 100, silos: {a: {seconds: 2, bytes_per_s: 50, overhead_s: 3}}}"
    )
    spent = speeds_of(str(path), ["a"]).spent(task(bytes_down=100, bytes_up=500))
    assert (spent.down, spent.other, spent.train, spent.up) == (3.0, 3.0, 20.0, 11.0)
    path.write_text("{per: epoch, silos: {a: 7}}")
    assert speeds_of(str(path), ["a"]).spent(task()).total == 14.0


def test_jitter_and_stalls_are_drawn_by_task_and_not_by_the_order_of_asking() -> None:
    speeds = speeds_of("geo8", ["a", "b"], seed=3)
    asked = [speeds.spent(task(number=n)).train for n in range(2_000)]
    assert asked[5] == speeds.spent(task(number=5)).train
    factors = np.array(asked) / (10 * 0.5)
    assert np.mean(factors > 2.5) == pytest.approx(0.05, abs=0.015)
    assert np.log(factors[factors < 2]).std() == pytest.approx(0.1, abs=0.01)


def test_recorded_timings_give_the_same_times_again_and_tell_what_another_policy_does(tmp_path: Path) -> None:
    job = job_of(PROBLEMS, total=6)
    first = run(tmp_path / "first", job, speeds_of("dm", job.silos).of(latency_s=0.0))
    timings = recorded(rounds_of(tmp_path / "first" / "run"), job.silos, "first")
    again = run(tmp_path / "again", job, timings)
    assert [point.time for point in again.points] == pytest.approx([point.time for point in first.points])
    assert again.digest == first.digest
    other = lasting(changed(job, "rounds.mode=async,rounds.buffer=2"), first.ended, names_total=False)
    ended = run(tmp_path / "other", other, timings)
    assert len(ended.rounds) > 12 and ended.ended == pytest.approx(first.ended, rel=0.1)


def test_timings_of_a_run_on_a_real_clock(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--timings old: no update of the job's silo s9 is on record"):
        run_quadratic(job_of(PROBLEMS, total=1), PROBLEMS, tmp_path)
        recorded(rounds_of(tmp_path / "runs" / "run"), ["s0", "s9"], "old")


# figures


def test_figures_side_by_side(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        job_of(PROBLEMS, total=8, rounds=ASYNC),
        "1,2,4,8",
        judge=lambda v, model: {"loss": 10.0 - v},
    )
    row = row_of("p", ended, "loss", 7.0)
    assert row.time_to_target == ended.points[3].time and row.best == 3.0
    assert row.last == pytest.approx(ended.points[-1].metrics["loss"]), (
        "the last version is judged by all silos anyway"
    )
    assert row.updates == 16 == sum(row.staleness.values())
    assert reached(ended.points, "loss", 1.0) is None
    assert target_of("50%", None, ended, "loss") == 6.0
    assert target_of(None, 3.0, ended, "loss") == 3.0
    assert target_of(None, None, ended, "loss") == row.last


# bad input


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("s0=1,s9=2", "s9 is not a silo of the job; there are: s0, s1"),
        ("s0=1", "says nothing of the job's silo s1"),
        ("s0=1,s0=2", "s0 stands twice"),
        ("1,2,3", "3 speeds for the 2 silos of the job"),
        ("fast", "'fast' is no number of seconds"),
        ("1,x2", "'' is no number of seconds"),
        ("s0=0,s1=1", "s0: seconds: Input should be greater than 0"),
        ("nowhere.yaml", "nowhere.yaml: no such file"),
    ],
)
def test_speeds_that_do_not_fit_the_job(text: str, says: str) -> None:
    with pytest.raises(BadInput) as error:
        speeds_of(text, ["s0", "s1"])
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rounds.mod=async", "rounds.mod: unknown key; did you mean 'mode'?"),
        ("rounds.mode=quorum", "needs 'deadline_s'"),
        ("rounds.mode", "expected KEY=VALUE"),
        ("codec.name=zip", "codec.name: 'zip' is not known; there are: raw, bf16"),
        ("seed.x=1", "seed is no section of the job"),
        ("strategy=[", "is no value"),
    ],
)
def test_what_if_is_checked_as_the_job_is(text: str, says: str) -> None:
    job = job_of(PROBLEMS, seed=1)
    with pytest.raises(BadInput) as error:
        changed(job, text)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_what_if_sets_values_and_whole_sections() -> None:
    job = changed(
        job_of(PROBLEMS), "strategy={name: fedprox, mu: 1e-2},rounds.deadline_s=2e3,codec.name=bf16"
    )
    assert (job.strategy.name, job.strategy.mu, job.rounds.deadline_s, job.codec.name) == (  # type: ignore[union-attr]
        "fedprox",
        0.01,
        2000.0,
        "bf16",
    )
    assert job.digest != job_of(PROBLEMS).digest


# a run on a real clock, made again


def test_a_run_on_a_real_clock_is_made_again_bit_for_bit_from_its_journal(tmp_path: Path) -> None:
    """Oracle 27. Threads decided the order of arrivals then; the record decides it now."""
    slow = problems(4, sleep_s=(0.001, 0.003, 0.006, 0.012))
    job = job_of(slow, total=12, rounds=ASYNC)
    real = run_quadratic(job, slow, tmp_path)
    rounds = rounds_of(tmp_path / "runs" / "run")
    assert {each.staleness for closed in rounds for each in closed.contributors} > {0}
    again = follow(job, makers(tmp_path / "again"), "run", rounds, tmp_path / "again" / "run")
    assert again.digest == real.digest and first_difference(rounds, again.rounds) is None
    assert first_difference(rounds, [*again.rounds[:3], rounds[0]]) == 4


def test_the_record_of_a_run_that_was_stopped_is_made_again_to_where_it_goes(tmp_path: Path) -> None:
    job = job_of(PROBLEMS, total=50, rounds=ASYNC)
    run_quadratic(job, PROBLEMS, tmp_path, during=lambda driver, _, event: _stop_at(5, driver, event))
    rounds = rounds_of(tmp_path / "runs" / "run")
    assert 5 <= len(rounds) < 50
    again = follow(job, makers(tmp_path / "again"), "run", rounds, tmp_path / "again" / "run")
    assert first_difference(rounds, again.rounds) is None


def _stop_at(version: int, driver: Any, event: events.Event) -> None:
    if isinstance(event, events.RoundClosed) and event.version == version:
        driver.request_stop()


# what is handed in at a deadline


def test_what_is_handed_in_is_what_was_done_by_then(tmp_path: Path) -> None:
    """The step in hand is the last; the update is that of a training of so many steps, and it comes after its way."""
    header: dict[str, Any] = {"run_id": "run", "epoch": 1}
    job = job_of(["s0"], rounds={"deadline_s": 9, "partial": True}, strategy={"name": "fednova"})
    path = tmp_path / "speeds.yaml"
    path.write_text("{latency_s: 1, silos: {s0: 2}}")

    async def work() -> tuple[Any, Any, float]:
        site = sites(problems(1), tmp_path)["s0"]
        channel = SimulatedChannel({"s0": lambda: Silo(site, loop.now)}, speeds_of(str(path), ["s0"]), 32)
        await channel.call("s0", Join(**header, job=job.model_dump_json(), job_digest=job.digest))
        parts = {"params": np.zeros(5, np.float32), "path": np.zeros(1, np.float32)}
        model = await channel.publish(parts)
        ask = Train(**header, version=0, attempt=1, model=model, model_digest="v0", counted=-1, inline=100)
        short = await channel.call("s0", replace(ask, num_steps=2, model_digest="short"))
        began = loop.now()
        call = asyncio.ensure_future(channel.call("s0", ask))
        await asyncio.sleep(1 + 3)
        await channel.call("s0", Stop(**header, hand_in=7))  # of another version: nothing to this one
        await channel.call("s0", Stop(**header, hand_in=0))
        return short, await call, loop.now() - began

    short, handed_in, took = loop.run(work())
    assert handed_in.num_steps == 2 and handed_in.model_digest == "v0"
    assert took == 1 + 2 * 2 + 1 and handed_in.seconds["train"] == 4
    assert all(np.array_equal(handed_in.packet[name], short.packet[name]) for name in short.packet)


def test_rounds_of_equal_time_do_as_many_steps_as_the_silos_can(tmp_path: Path) -> None:
    """Oracle 26: 1:2:4:8 seconds per step. A synchronous round lasts as long as the slowest silo's; once paces are
    known, rounds last as long for all, and the steps per second are those of all silos at work: 3.75 times as many."""
    equal = problems(4, num_rows=100, steps=80, lr=0.001)
    rounds = {"mode": "sync", "equal_time": True}
    job = job_of(equal, total=4, rounds=rounds, local={"steps": 80}, strategy={"name": "fednova"})
    ended = run(tmp_path, job, "1,2,4,8", equal)
    first, *others = ended.rounds
    assert first.seconds["round"] == 640 and {each.num_steps for each in first.contributors} == {80}
    before = 4 * 80 / 640
    for closed in others:
        steps = {each.silo: each.num_steps for each in closed.contributors}
        assert steps == {"s0": 226, "s1": 113, "s2": 56, "s3": 28}  # of 226.3 s, the geometric mean
        assert closed.seconds["round"] == 226
        assert sum(steps.values()) / closed.seconds["round"] / before == pytest.approx(3.75, rel=0.01)


def test_partial_work_is_handed_in_at_the_deadline_and_counts(tmp_path: Path) -> None:
    rounds = {"mode": "quorum", "deadline_s": 20, "partial": True}
    job = job_of(PROBLEMS, total=3, rounds=rounds, strategy={"name": "fednova"})
    ended = run(tmp_path, job, "1,1,1,8")
    assert [{each.silo: each.num_steps for each in closed.contributors} for closed in ended.rounds] == [
        {"s0": 5, "s1": 5, "s2": 5, "s3": 3}
    ] * 3
    assert [closed.seconds["round"] for closed in ended.rounds] == [24.0] * 3, "the step in hand is the last"


def test_a_full_buffer_waits_for_the_grace(tmp_path: Path) -> None:
    """Three silos have delivered after 10, 10 and 12 s; the fourth needs 14, and a quarter of 12 is 3."""
    rounds = {"mode": "semi_sync", "grace": 0.25}
    grace = run(tmp_path / "a", job_of(PROBLEMS, total=2, rounds=rounds), "2,2,2.4,2.8")
    assert [len(closed.contributors) for closed in grace.rounds] == [4, 4]
    assert grace.rounds[0].seconds["round"] == 14
    late = run(tmp_path / "b", job_of(PROBLEMS, total=1, rounds=rounds), "2,2,2.4,4")
    assert late.rounds[0].seconds["round"] == 15 and len(late.rounds[0].contributors) == 3

"""The driver end to end over `LocalChannel`: what it computes, and what becomes of every fault.

The numbers of the oracles are those of notes/algorithms.md, section 9. What travels is float32: a local step, the
delta, the mean and the sum each round once, so a fixed point is met within about
(steps + 3) * 2^-24 * |x| / (1 - contraction) ~ 13 * 6e-8 * 6 * 6 = 3e-5 here; the biases that must be seen are 0.1
and more. Where a test says "bit", it compares bytes.
"""

import asyncio
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from orchestrator import launching
from orchestrator.core import events
from orchestrator.core.faults import FAULT_POINTS, FaultInjected, arm
from orchestrator.core.messages import Piece, Ping, Refused, Reply, Request, Train, Update
from orchestrator.core.metrics import Sums
from orchestrator.driver import Driver
from orchestrator.job import Job
from orchestrator.store import LeaseHeld, Store
from orchestrator.strategies.fedavg import FedAvg
from orchestrator.transport.local import LocalChannel
from orchestrator.verifying import verify
from tests.support.federation import (
    Ended,
    LossyChannel,
    absent,
    bent,
    double_counts,
    federate,
    journal,
    run_quadratic,
)
from tests.support.quadratic import (
    STEPS,
    Quadratic,
    QuadraticTrainer,
    desk,
    fixed_point,
    job_of,
    optimum,
    problems,
    silo_makers,
    sites,
)
from tests.support.rewritten import DRIVER
from tests.support.scratch import scratch

FLOAT32 = 3e-5
STRATEGIES = ("fedavg", "fedprox", "scaffold", "fednova")


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    arm(None)


def distance(ended: Ended, point: np.ndarray) -> float:
    return float(np.abs(ended.params - point).max())


def named(strategy: str, **sections: Any) -> dict[str, Any]:
    return {"strategy": {"name": strategy}, **sections}


# What it computes


def test_1_one_full_batch_step_is_gradient_descent(tmp_path: Path) -> None:
    made = problems(steps=1)
    ended = run_quadratic(job_of(made, total=20), made, tmp_path)
    assert distance(ended, desk(FedAvg(), made, 20)[-1]) < 5e-6


def test_2_fedavg_ends_at_its_biased_fixed_point(tmp_path: Path) -> None:
    made = problems(steps=STEPS)
    ended = run_quadratic(job_of(made, total=60), made, tmp_path)
    assert distance(ended, fixed_point(made)) < FLOAT32
    assert distance(ended, optimum(made)) > 0.1


@pytest.mark.parametrize(
    "weights", ["uniform", {"s0": 4, "s1": 1, "s2": 1, "s3": 2}], ids=["uniform", "given"]
)
def test_weights_lead_to_their_own_fixed_point(tmp_path: Path, weights: Any) -> None:
    made = problems(steps=STEPS)
    numbers = dict.fromkeys(made, 1.0) if weights == "uniform" else weights
    ended = run_quadratic(job_of(made, total=60, combine={"weights": weights}), made, tmp_path)
    shares = {name: number / sum(numbers.values()) for name, number in numbers.items()}
    assert distance(ended, fixed_point(made, shares)) < FLOAT32
    assert distance(ended, fixed_point(made)) > 0.05


def test_4_fednova_ends_at_its_own(tmp_path: Path) -> None:
    made = problems(steps=STEPS)
    ended = run_quadratic(job_of(made, total=60, **named("fednova")), made, tmp_path)
    total = sum(problem.num_rows for problem in made.values())
    per_step = {name: problem.num_rows / total / problem.steps for name, problem in made.items()}
    assert distance(ended, fixed_point(made, per_step)) < FLOAT32
    assert distance(ended, fixed_point(made)) > 0.1


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_14_16_scaffold_reaches_the_optimum(tmp_path: Path, momentum: float) -> None:
    """Equal weights for model and control, unequal steps, and local momentum (divided by the path)."""
    made = problems(steps=STEPS, momentum=momentum, lr=0.01 if momentum else 0.05)
    ended = run_quadratic(job_of(made, total=150, **named("scaffold")), made, tmp_path)
    assert distance(ended, optimum(made)) < 10 * FLOAT32
    assert distance(ended, fixed_point(made)) > 0.05


def test_17_18_reductions_to_fedavg_are_bit_equal(tmp_path: Path) -> None:
    """FedProx with mu 0 always; SCAFFOLD in the first round; a server SGD with rate 1 and no momentum."""
    made = problems(steps=STEPS)

    def params(total: int, strategy: Mapping[str, Any]) -> bytes:
        folder = tmp_path / f"{total}-{strategy}"
        return run_quadratic(job_of(made, total=total, strategy=strategy), made, folder).params.tobytes()

    fedavg = params(4, {"name": "fedavg"})
    assert params(4, {"name": "fedprox", "mu": 0}) == fedavg
    assert (
        params(4, {"name": "fedavg", "server": {"name": "sgd", "lr": 1, "momentum": 0, "nesterov": True}})
        == fedavg
    )
    assert params(4, {"name": "fedprox", "mu": 0.5}) != fedavg
    assert params(1, {"name": "scaffold"}) == params(1, {"name": "fedavg"})
    assert params(2, {"name": "scaffold"}) != params(2, {"name": "fedavg"})


def test_11_one_silo_is_local_training(tmp_path: Path) -> None:
    """To the bit where ``local - global`` has no rounding error: from zero, or on a grid of short binary numbers.
    Otherwise ``x + (y - x)`` may differ from ``y`` in the last place, once a round."""
    made = problems(1, steps=7)
    alone = np.zeros(5, np.float32)
    for _ in range(7):
        alone -= 0.05 * made["s0"].gradient(alone)
    first = run_quadratic(job_of(made, total=1), made, tmp_path / "first")
    assert first.params.tobytes() == alone.tobytes()
    grid = {"s0": Quadratic(np.diag([1.0, 2.0, 0.5]), np.array([1.0, -3.0, 0.25]), steps=2, lr=0.5)}
    exact = np.zeros(3, np.float32)
    for _ in range(6):
        exact -= 0.5 * grid["s0"].gradient(exact)
    assert run_quadratic(job_of(grid, total=3), grid, tmp_path / "grid").params.tobytes() == exact.tobytes()


def test_the_journal_says_what_was_done(tmp_path: Path) -> None:
    made = problems()
    ended = run_quadratic(job_of(made, total=3), made, tmp_path)
    assert [closed.version for closed in ended.rounds] == [1, 2, 3]
    for closed in ended.rounds:
        assert [each.silo for each in closed.contributors] == list(made)
        assert [each.weight for each in closed.contributors] == pytest.approx([0.1, 0.3, 0.05, 0.55])
        assert {each.staleness for each in closed.contributors} == {0}
        assert closed.evaluated.version == closed.version - 1 and set(closed.evaluated.silos) == set(made)
        assert closed.bytes_up == 4 * 4 * 5
    total = sum(problem.num_rows for problem in made.values())
    for version, closed in enumerate(ended.rounds):
        point = desk(FedAvg(), made, version)[-1]
        pooled = sum(problem.num_rows * problem.loss(point) for problem in made.values()) / total
        assert closed.evaluated.overall["loss"] == pytest.approx(pooled, rel=1e-5)
    (end,) = [event for event in journal(tmp_path) if isinstance(event, events.RunClosed)]
    assert end.parameters_digest == ended.digest


# Order, modes, pieces


def test_12_the_order_of_arrival_changes_no_bit(tmp_path: Path) -> None:
    """Silos answer in three different orders, enforced by what they sleep."""
    made, ends = problems(), []
    for i, sleeps in enumerate([(0.0, 0.01, 0.02, 0.03), (0.03, 0.02, 0.01, 0.0), (0.01, 0.03, 0.0, 0.02)]):
        slow = {
            name: replace(p, steps=2, sleep_s=s) for (name, p), s in zip(made.items(), sleeps, strict=True)
        }
        ended = run_quadratic(job_of(made, total=2, **named("scaffold")), slow, tmp_path / str(i))
        arrivals = [event.silo for event in ended.of(events.UpdateArrived)][:4]
        ends.append((tuple(arrivals), ended.bits))
    assert len({order for order, _ in ends}) == 3, "the orders must really differ"
    assert ends[0][1] == ends[1][1] == ends[2][1]


def test_21_async_with_a_full_buffer_is_sync_to_the_bit(tmp_path: Path) -> None:
    """Full buffer means that nobody may train ahead: a barrier. Staleness 0, so the discount is 1."""
    made = {name: replace(p, sleep_s=0.002 * i) for i, (name, p) in enumerate(problems().items())}
    numbers = {"buffer": 4, "min_updates": 4}
    for strategy in ("fedavg", "scaffold"):
        ends = [
            run_quadratic(
                job_of(made, total=4, rounds={"mode": mode, **numbers}, **named(strategy)),
                made,
                tmp_path / strategy / mode,
            )
            for mode in ("sync", "async", "semi_sync", "fedasync")
        ]
        assert len({ended.digest for ended in ends}) == 1
        assert [ended.bits for ended in ends[1:]] == [ends[0].bits] * 3


@pytest.mark.parametrize("strategy", ["scaffold", "fednova"])
@pytest.mark.parametrize("codec", ["raw", "bf16"])
def test_fetched_in_pieces_or_sent_along_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str, codec: str
) -> None:
    made = problems()
    job = job_of(made, total=3, codec={"name": codec}, **named(strategy))
    inline = run_quadratic(job, made, tmp_path / "inline")
    monkeypatch.setattr(launching, "INLINE", 0)
    assert run_quadratic(job, made, tmp_path / "fetched").bits == inline.bits


def test_a_stale_update_moves_the_model_by_its_discount(tmp_path: Path) -> None:
    """Buffer 1: the slow silo's update of version 0 is used later, scaled, from the point that it trained from."""
    made, opened = problems(2), threading.Event()

    def held(update: Update) -> Reply:
        assert opened.wait(10)
        return update

    def during(driver: Driver, channel: LocalChannel, event: Any) -> None:
        if isinstance(event, events.RoundOpened) and event.version == 4:
            opened.set()

    makers = bent(sites(made, tmp_path / "silos"), "s1", {0: held})
    ended = federate(job_of(made, total=40, rounds={"mode": "fedasync"}), makers, tmp_path, during=during)
    stale = [each for closed in ended.rounds for each in closed.contributors if each.staleness]
    assert stale and stale[0].staleness >= 4, "version 0's update came when version 4 or a later one was open"
    assert {len(closed.contributors) for closed in ended.rounds} <= {1, 2}
    assert not double_counts(journal(tmp_path))
    for closed in ended.rounds:
        if len(closed.contributors) == 1:
            (only,) = closed.contributors
            assert only.weight == pytest.approx((1 + only.staleness) ** -0.5)
            assert closed.update_norm == pytest.approx(only.weight * only.norm, rel=1e-5)


@pytest.mark.parametrize("mode", ["sync", "over_selected", "quorum", "semi_sync", "async", "fedasync"])
def test_every_mode_learns_and_counts_nothing_twice(tmp_path: Path, mode: str) -> None:
    """Silos of one opinion (one optimum), so that every mode must get there."""
    one = problems()["s0"].b
    made = {name: replace(p, b=one, sleep_s=0.001 * i) for i, (name, p) in enumerate(problems().items())}
    deadline = {"deadline_s": 0.5} if mode == "quorum" else {}
    ended = run_quadratic(job_of(made, total=20, rounds={"mode": mode, **deadline}), made, tmp_path)
    assert ended.outcome.status == "done" and np.linalg.norm(ended.params - one) < 0.5 * np.linalg.norm(one)
    assert not double_counts(journal(tmp_path))
    assert {code for _, _, code in ended.refusals} <= {"stale", "late"}


def test_random_cohorts_are_drawn_again_after_a_resumption(tmp_path: Path) -> None:
    made = problems(6)
    job = job_of(made, total=6, rounds={"cohort": 2}, **named("scaffold"))
    undisturbed = run_quadratic(job, made, tmp_path / "a")
    assert len({tuple(names) for names in undisturbed.contributors}) > 2
    with pytest.raises(FaultInjected):
        arm("round.closed:3:raise")
        run_quadratic(job, made, tmp_path / "b")
    resumed = run_quadratic(job, made, tmp_path / "b")
    assert resumed.bits == undisturbed.bits


# Updates that must not count


def packed(change: Callable[[np.ndarray], Any]) -> Callable[[Update], Reply]:
    return lambda made: replace(made, packet={"values": change(made.packet["values"].copy())})


def poisoned(value: float) -> Callable[[Update], Reply]:
    def change(x: np.ndarray) -> np.ndarray:
        x[1] = value
        return x

    return packed(change)


def changed(**given: Any) -> Callable[[Update], Reply]:
    return lambda made: replace(made, **given)


BENDS: dict[str, tuple[str, Callable[[Update], Reply]]] = {
    "nan": ("nonfinite", poisoned(math.nan)),
    "inf": ("nonfinite", poisoned(-math.inf)),
    "1e30": ("nonfinite", poisoned(1e30)),
    "too long": ("norm", packed(lambda x: 1e6 * np.ones_like(x))),
    "shorter": ("schema", packed(lambda x: x[:-1])),
    "longer": ("schema", packed(lambda x: np.append(x, np.float32(0)))),
    "matrix": ("schema", packed(lambda x: x.reshape(1, -1))),
    "float64": ("schema", packed(lambda x: x.astype(np.float64))),
    "integers": ("schema", packed(lambda x: x.astype(np.int32))),
    "empty array": ("schema", packed(lambda x: x[:0])),
    "other keys": ("schema", lambda made: replace(made, packet={"weights": made.packet["values"]})),
    "extra keys": (
        "schema",
        lambda made: replace(made, packet={**made.packet, "more": np.ones(5, np.float32)}),
    ),
    "empty packet": ("schema", changed(packet={})),
    "no parts": ("schema", changed(layout=())),
    "extra parts": ("schema", lambda made: replace(made, layout=(*made.layout, ("extra", 1)))),
    "renamed parts": (
        "schema",
        lambda made: replace(made, layout=tuple((f"x{n}", s) for n, s in made.layout)),
    ),
    "weight 0": ("weight", changed(weight=0.0)),
    "weight -1": ("weight", changed(weight=-1.0)),
    "weight 1e9": ("weight", changed(weight=1e9 + 1.0, num_examples=10**9 + 1)),
    "weight nan": ("weight", changed(weight=math.nan)),
    "other rows": ("weight", changed(weight=7.0, num_examples=7)),
    "old version": ("stale", lambda made: replace(made, version=made.version - 1)),
    "next version": ("stale", lambda made: replace(made, version=made.version + 1)),
    "old epoch": ("epoch", changed(epoch=0)),
    "other model": ("foreign", changed(model_digest="other")),
    "other job": ("foreign", changed(job_digest="other")),
    "other run": ("foreign", changed(run_id="other")),
    "other name": ("foreign", changed(silo="s0")),
    "unknown name": ("foreign", changed(silo="mallory")),
    "odd metrics": ("metrics", changed(metrics={"loss": Sums("auc", (1.0, 2.0, 3.0, 4.0))})),
    "no sums": ("metrics", changed(metrics={"loss": 3.0})),
    "half sums": ("metrics", changed(metrics={"loss": Sums("mean", (3.0,))})),
    "one bit": ("receipt", packed(lambda x: (x.view(np.uint32) ^ np.uint32(1)).view(np.float32))),
    "no receipt": ("receipt", changed(receipt=None)),
    "other receipt": (
        "receipt",
        lambda made: replace(made, receipt=replace(made.receipt, update="0" * 64)),
    ),
    "another model": ("receipt", changed(received="1" * 64)),
    "nan scalars": ("nonfinite", lambda made: replace(made, scalars={**made.scalars, "path": math.nan})),
    "extra scalars": ("schema", lambda made: replace(made, scalars={**made.scalars, "extra": 1.0})),
    "nan seconds": ("schema", changed(seconds={"train": math.nan})),
    "strange counts": ("schema", changed(num_steps=1.5)),
    "another reply": ("unknown", lambda made: Piece(packet={})),
    "refused by policy": (
        "policy",
        lambda made: Refused(silo=made.silo, code="policy", reason="not this one"),
    ),
}


def fault_job(strategy: str) -> Job:
    """``min_updates`` lets a round close without the one that declines."""
    return job_of(
        [f"s{i}" for i in range(4)],
        total=4,
        rounds={"min_updates": 3},
        gate={"max_norm": 1e4},
        strategy={"name": strategy},
    )


class References:
    """Runs in which a silo was absent, made once for each case."""

    def __init__(self) -> None:
        self.known: dict[Any, Ended] = {}

    def __call__(self, strategy: str, silo: str, versions: frozenset[int]) -> Ended:
        key = strategy, silo, versions
        if key not in self.known:
            with scratch() as folder:
                site_of = sites(problems(), folder / "silos")
                self.known[key] = federate(fault_job(strategy), absent(site_of, silo, versions), folder)
        return self.known[key]


without = References()


def check_refusal(strategy: str, silo: str, plan: Mapping[int, str], inline: bool = True) -> Ended:
    """Oracle 13: refused is the same as absent, to the bit, whatever the strategy keeps at the silo."""
    with scratch() as folder, pytest.MonkeyPatch.context() as patch:
        if not inline:
            patch.setattr(launching, "INLINE", 0)
        makers = bent(
            sites(problems(), folder / "silos"), silo, {v: BENDS[what][1] for v, what in plan.items()}
        )
        ended = federate(fault_job(strategy), makers, folder, limit_s=20)
        assert not double_counts(journal(folder))
    assert ended.outcome.status == "done", ended.outcome
    expected = {
        (silo, version, expected_code(strategy, BENDS[what][0], what)) for version, what in plan.items()
    }
    assert ended.refusals == expected
    for version, names in enumerate(ended.contributors):
        assert (silo in names) == (version not in plan) and len(names) == 4 - (version in plan)
    assert ended.bits == without(strategy, silo, frozenset(plan)).bits
    assert ended.seconds < 10
    return ended


def expected_code(strategy: str, code: str, what: str) -> str:
    """A scalar that the strategy does not send at all is no number to examine."""
    return "schema" if what == "nan scalars" and strategy != "fednova" else code


@pytest.mark.parametrize("what", BENDS)
def test_13_a_refused_update_is_an_absent_silo(what: str) -> None:
    if what == "other name":
        check_refusal("fedavg", "s2", {1: what})
    else:
        check_refusal("fednova" if "scalars" in what else "scaffold", "s2", {1: what})


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(STRATEGIES),
    st.sampled_from(["s0", "s1", "s3"]),
    st.dictionaries(
        st.integers(0, 3), st.sampled_from(sorted(set(BENDS) - {"other name"})), min_size=1, max_size=4
    ),
)
def test_whatever_a_silo_sends(strategy: str, silo: str, plan: dict[int, str]) -> None:
    check_refusal(strategy, silo, plan)


@pytest.mark.parametrize("what", ["nan", "1e30", "shorter", "float64", "extra keys", "too long", "one bit"])
def test_what_is_fetched_is_examined_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The packet stays at the silo; what comes in pieces is bent there."""
    monkeypatch.setattr(launching, "INLINE", 0)
    site_of = sites(problems(), tmp_path / "silos")
    makers: dict[str, Any] = dict(silo_makers(site_of))
    honest = makers["s1"]

    class BendsStore:
        def __init__(self) -> None:
            self.silo = honest()

        def handle(self, request: Request) -> Reply:
            reply = self.silo.handle(request)
            if isinstance(request, Train) and request.version == 1 and isinstance(reply, Update):
                made, packet = self.silo._outbox.get(1)
                bad = BENDS[what][1](replace(made, packet=packet))
                assert isinstance(bad, Update)
                self.silo._outbox.put(made, bad.packet)
            return reply

    ended = federate(fault_job("scaffold"), {**makers, "s1": BendsStore}, tmp_path)
    assert ended.refusals == {("s1", 1, BENDS[what][0])}
    assert ended.bits == without("scaffold", "s1", frozenset({1})).bits


def test_in_sync_too_a_refusal_does_not_end_the_run(tmp_path: Path) -> None:
    """Without ``min_updates``: all are waited for, but for those that the gate refused."""
    makers = bent(sites(problems(), tmp_path / "silos"), "s3", {1: BENDS["nan"][1], 2: BENDS["weight 0"][1]})
    ended = federate(job_of(problems(), total=4), makers, tmp_path)
    assert ended.outcome.status == "done"
    assert [len(names) for names in ended.contributors] == [4, 3, 3, 4]
    assert ended.params.tobytes() == without("fedavg", "s3", frozenset({1, 2})).params.tobytes()


def test_a_required_silo_that_is_refused_ends_the_run_with_its_name(tmp_path: Path) -> None:
    makers = bent(sites(problems(), tmp_path / "silos"), "s3", {1: BENDS["nan"][1]})
    ended = federate(job_of(problems(), required_silos=["s3"]), makers, tmp_path)
    assert (ended.outcome.status, ended.outcome.exit_code) == ("failed", 4) and "s3" in ended.outcome.reason
    assert len(ended.rounds) == 1


def test_the_first_to_report_is_not_right_by_being_first(tmp_path: Path) -> None:
    """Odd metrics from the fastest silo must not make the honest ones odd."""
    slow = {name: replace(p, sleep_s=0.0 if name == "s1" else 0.005) for name, p in problems().items()}
    makers = bent(sites(slow, tmp_path / "silos"), "s1", {0: BENDS["odd metrics"][1]})
    ended = federate(fault_job("fedavg"), makers, tmp_path)
    assert ended.refusals == {("s1", 0, "metrics")}


# Silos that are lost


def loss_job(strategy: str = "scaffold") -> Job:
    return job_of(
        problems(), total=3, rounds={"patience_s": 2.0, "max_attempts": 9}, strategy={"name": strategy}
    )


KINDS = {"Join": 1, "Initial": 1, "Train": 3, "Fetch": 3, "Evaluate": 1, "Leave": 1}

losses = st.dictionaries(
    st.sampled_from(sorted(KINDS)).flatmap(
        lambda kind: st.tuples(st.sampled_from(list(problems())), st.just(kind), st.integers(1, KINDS[kind]))
    ),
    st.sampled_from(["before", "after", "reply"]),
    min_size=1,
    max_size=5,
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    return run_quadratic(loss_job(), problems(), tmp_path_factory.mktemp("undisturbed"))


def check_losses(planned: Mapping[tuple[str, str, int], str], undisturbed: Ended) -> Ended:
    with scratch() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching, "INLINE", 0)
        ended = run_quadratic(
            loss_job(), problems(), folder, channel=lambda start: LossyChannel(start, planned), limit_s=25
        )
        assert not double_counts(journal(folder))
    assert ended.outcome.status == "done", ended.outcome
    assert ended.bits == undisturbed.bits and ended.digest == undisturbed.digest
    assert ended.contributors == undisturbed.contributors
    return ended


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(losses)
@example({("s0", "Initial", 1): "before", ("s0", "Initial", 2): "after"})
@example({("s2", "Fetch", 1): "after", ("s2", "Train", 2): "reply"})
def test_silos_lost_at_any_request(undisturbed: Ended, planned: dict[tuple[str, str, int], str]) -> None:
    """Process ended before it worked, after it worked, or only the answer lost: the same bits in the end."""
    check_losses(planned, undisturbed)


@pytest.mark.parametrize("how", ["before", "after", "reply"])
def test_a_silo_lost_in_training_is_asked_again(undisturbed: Ended, how: str) -> None:
    ended = check_losses({("s1", "Train", 2): how}, undisturbed)
    assert [(down.silo, down.version) for down in ended.of(events.SiloDown)] == [("s1", 1)]


def test_a_lost_answer_does_not_cost_a_second_training(tmp_path: Path) -> None:
    site_of = sites(problems(), tmp_path / "silos")
    lose = {("s1", "Train", 2): "reply"}
    federate(loss_job(), silo_makers(site_of), tmp_path, channel=lambda start: LossyChannel(start, lose))
    assert site_of["s1"].trained == [0, 1, 2]


def test_a_silo_that_dies_at_every_attempt_is_named(tmp_path: Path) -> None:
    always = {("s1", "Train", n): "before" for n in range(1, 99)}
    ended = run_quadratic(loss_job(), problems(), tmp_path, channel=lambda start: LossyChannel(start, always))
    assert (ended.outcome.status, ended.outcome.exit_code) == ("failed", 4) and "s1" in ended.outcome.reason
    assert len([e for e in ended.of(events.SiloLaunched) if e.silo == "s1"]) == 9, "max_attempts"


@pytest.mark.parametrize("numbers", [{"min_updates": 3}, {"mode": "async"}], ids=["quorum", "async"])
def test_others_go_on_without_it_where_the_job_allows(tmp_path: Path, numbers: dict[str, Any]) -> None:
    always = {("s1", "Train", n): "before" for n in range(1, 99)}
    job = job_of(problems(), total=4, rounds={"patience_s": 2.0, **numbers})
    ended = run_quadratic(job, problems(), tmp_path, channel=lambda start: LossyChannel(start, always))
    assert ended.outcome.status == "done" and ended.of(events.RunClosed)[0].never_contributed == ["s1"]


def test_a_silo_off_the_network_between_rounds_is_waited_for(tmp_path: Path, undisturbed: Ended) -> None:
    def during(driver: Driver, channel: LocalChannel, event: Any) -> None:
        if isinstance(event, events.UpdateArrived) and (event.silo, event.version) == ("s1", 0):
            channel.offline.add("s1")
            asyncio.get_running_loop().call_later(0.3, channel.offline.discard, "s1")

    ended = run_quadratic(loss_job(), problems(), tmp_path, during=during)
    assert ended.outcome.status == "done" and ended.bits == undisturbed.bits
    assert any("s1" in event.silos for event in ended.of(events.Waiting))


def test_code_of_the_silo_that_fails_is_a_refusal_with_the_reason(tmp_path: Path) -> None:
    site_of = sites(problems(), tmp_path / "silos")

    def breaks(made: Update) -> Reply:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    ended = federate(fault_job("fedavg"), bent(site_of, "s1", {1: breaks}), tmp_path)
    assert ended.outcome.status == "done" and ended.refusals == {("s1", 1, "failed")}
    ended = federate(job_of(problems()), bent(site_of, "s1", {1: breaks}), tmp_path, run_id="sync")
    assert ended.outcome.exit_code == 4 and "shapes cannot be multiplied" in ended.outcome.reason


class Deaf:
    """A silo that stops answering some training requests, until the test ends."""

    release = threading.Event()

    def __init__(self, silo: Any, versions: range, ping: bool) -> None:
        self.silo, self.versions, self.ping = silo, versions, ping
        self.deaf = False

    def handle(self, request: Request) -> Reply:
        if isinstance(request, Train) and request.version in self.versions:
            self.deaf = True
            self.release.wait(20)
        if isinstance(request, Ping) and self.deaf and not self.ping:
            return Refused(silo="s1", code="failed", reason="no sign of life")
        return self.silo.handle(request)


@pytest.fixture
def deaf(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    Deaf.release.clear()
    made: list[Any] = []

    def makers(versions: range, once: bool = False, ping: bool = False) -> Any:
        honest: dict[str, Any] = dict(silo_makers(sites(problems(), tmp_path / "silos")))

        def start() -> Any:
            made.append(1)
            return Deaf(honest["s1"](), range(0) if once and len(made) > 1 else versions, ping)

        return {**honest, "s1": start}

    yield makers
    Deaf.release.set()


@pytest.mark.parametrize("ping", [False, True], ids=["silent", "without progress"])
def test_a_silo_that_hangs_is_found_restarted_and_asked_again(
    tmp_path: Path, deaf: Any, ping: bool, undisturbed: Ended
) -> None:
    job = loss_job().model_copy(update={"rounds": loss_job().rounds.model_copy(update={"patience_s": 0.3})})
    ended = federate(job, deaf(range(1, 2), once=True, ping=ping), tmp_path)
    assert ended.outcome.status == "done" and ended.params.tobytes() == undisturbed.params.tobytes()
    (down,) = ended.of(events.SiloDown)
    assert (down.silo, down.version) == ("s1", 1) and "no progress for 0.3 s" in down.why
    assert ended.seconds < 5


def test_28_with_a_quorum_rounds_go_on_without_a_silo_that_never_answers(tmp_path: Path, deaf: Any) -> None:
    """Each round closes at its deadline, once, with the other three."""
    job = job_of(problems(), total=3, rounds={"mode": "quorum", "deadline_s": 0.3, "patience_s": 2})
    ended = federate(job, deaf(range(99), ping=True), tmp_path)
    assert ended.outcome.status == "done" and ended.contributors == [["s0", "s2", "s3"]] * 3
    assert 0.9 <= ended.seconds < 6, "three deadlines, then the patience with its last evaluation"
    waits = [closed.seconds["round"] for closed in ended.rounds]
    assert all(0.3 <= seconds < 1.5 for seconds in waits), waits


def test_28_in_sync_a_silo_that_never_answers_ends_the_run_with_its_name(tmp_path: Path, deaf: Any) -> None:
    job = job_of(problems(), total=3, rounds={"patience_s": 0.2, "max_attempts": 2})
    ended = federate(job, deaf(range(99)), tmp_path)
    assert (ended.outcome.status, ended.outcome.exit_code) == ("failed", 4)
    assert "s1" in ended.outcome.reason and "no progress" in str(ended.of(events.SiloDown))
    assert ended.seconds < 10


class Broken:
    """Finds a sample that cannot be read when it trains version 2."""

    def __init__(self, silo: Any) -> None:
        self.silo = silo

    def handle(self, request: Request) -> Reply:
        if isinstance(request, Train) and request.version == 2:
            return Refused(silo="s2", code="data", reason="scans.parquet, row 17: no image")
        return self.silo.handle(request)


@pytest.mark.parametrize("quorum", [False, True], ids=["all needed", "quorum"])
def test_bad_data_found_in_training_is_bad_input(tmp_path: Path, quorum: bool) -> None:
    """Exit code 2 with the place, if the round needs that silo; the version before is kept."""
    makers: dict[str, Any] = dict(silo_makers(sites(problems(), tmp_path / "silos")))
    honest = makers["s2"]
    job = fault_job("fedavg") if quorum else job_of(problems())
    ended = federate(job, {**makers, "s2": lambda: Broken(honest())}, tmp_path)
    assert ("s2", 2, "data") in ended.refusals
    if quorum:
        assert ended.outcome.status == "done"
        assert [("s2" in names) for names in ended.contributors] == [True, True, False, True]
    else:
        assert ended.outcome.exit_code == 2 and "s2: data: scans.parquet, row 17" in ended.outcome.reason
        assert [closed.version for closed in ended.rounds] == [1, 2]


# Joining


def test_a_silo_that_declines_fails_a_job_that_needs_all(tmp_path: Path) -> None:
    site_of = sites(problems(), tmp_path / "silos")
    site_of["s2"].refusal = "s2 does not allow the strategy 'fedavg'"
    ended = federate(job_of(problems()), silo_makers(site_of), tmp_path)
    assert ended.outcome.exit_code == 4 and "does not allow the strategy" in ended.outcome.reason
    ended = federate(fault_job("fedavg"), silo_makers(site_of), tmp_path, run_id="quorum")
    assert ended.outcome.status == "done" and ended.contributors == [["s0", "s1", "s3"]] * 4


def test_other_data_under_the_same_name_is_refused(tmp_path: Path) -> None:
    site_of = sites(problems(), tmp_path / "silos")
    job = fault_job("fedavg")
    with pytest.raises(FaultInjected):
        arm("round.closed:2:raise")
        federate(job, silo_makers(site_of), tmp_path)
    site_of["s2"].data = "other data"
    ended = federate(job, silo_makers(site_of), tmp_path)
    assert ended.outcome.status == "done" and "data changed" in ended.driver.enrolment.why_absent["s2"]
    assert all("s2" not in [each.silo for each in closed.contributors] for closed in ended.rounds)


class OtherModel:
    def __init__(self, silo: Any) -> None:
        self.silo = silo

    def handle(self, request: Request) -> Reply:
        reply = self.silo.handle(request)
        return replace(reply, schema_digest="other") if hasattr(reply, "schema_digest") else reply


def test_another_shared_model_is_an_error_at_the_start(tmp_path: Path) -> None:
    makers: dict[str, Any] = dict(silo_makers(sites(problems(), tmp_path / "silos")))
    honest = makers["s2"]
    ended = federate(job_of(problems()), {**makers, "s2": lambda: OtherModel(honest())}, tmp_path)
    assert ended.outcome.exit_code == 2 and "s2: data: builds another shared model" in ended.outcome.reason


def test_another_shared_model_is_refused_later_too(tmp_path: Path) -> None:
    """A silo that comes back with another model of the same size: the sizes would not give it away."""
    makers: dict[str, Any] = dict(silo_makers(sites(problems(), tmp_path / "silos")))
    honest, starts = makers["s2"], []

    def start() -> Any:
        starts.append(1)
        return honest() if len(starts) == 1 else OtherModel(honest())

    lose = {("s2", "Train", 2): "before"}
    ended = federate(
        fault_job("fedavg"), {**makers, "s2": start}, tmp_path, channel=lambda m: LossyChannel(m, lose)
    )
    assert ended.outcome.status == "done"
    assert [("s2" in names) for names in ended.contributors] == [True, False, False, False]
    assert "another shared model" in ended.driver.enrolment.why_absent["s2"]


@pytest.mark.parametrize(
    "bad", [{"params": np.full(5, np.nan, np.float32)}, {"params": np.zeros(4, np.float32)}, {}], ids=str
)
def test_rubbish_as_the_initial_model_is_left_for_the_next_silos(tmp_path: Path, bad: Any) -> None:
    site_of = sites(problems(), tmp_path / "silos")
    honest = site_of["s0"].make

    class Rubbish(honest):  # type: ignore[misc, valid-type]
        def initial(self) -> Any:
            return bad

    site_of["s0"].make = Rubbish
    ended = federate(job_of(problems(), total=2), silo_makers(site_of), tmp_path)
    reference = run_quadratic(job_of(problems(), total=2), problems(), tmp_path / "reference")
    assert ended.outcome.status == "done" and ended.digest == reference.digest


# Metrics


def reporting(sums: Callable[[int], Any]) -> type:
    class Reports(QuadraticTrainer):
        def evaluate(self, order: Any) -> Any:
            return sums(order.version)

    return Reports


@pytest.mark.parametrize(
    "sums",
    [{"loss": Sums("mean", (math.nan, 1.0))}, {}, {"other": Sums("mean", (1.0, 1.0))}],
    ids=["nan", "none", "other"],
)
def test_one_silos_strange_figures_end_no_run(tmp_path: Path, sums: Any) -> None:
    site_of = sites(problems(), tmp_path / "silos")
    site_of["s1"].make = reporting(lambda version: sums)
    ended = federate(job_of(problems(), total=2), silo_makers(site_of), tmp_path)
    assert ended.outcome.status == "done" and not ended.refusals
    assert (
        ended.params.tobytes()
        == run_quadratic(job_of(problems(), total=2), problems(), tmp_path / "r").params.tobytes()
    )


@pytest.mark.parametrize("sums", [{"loss": Sums("auc", (1.0, 2.0))}, {"loss": 1.0}], ids=["odd", "no sums"])
def test_a_last_evaluation_that_does_not_add_up_is_refused(tmp_path: Path, sums: Any) -> None:
    good = {"loss": Sums("mean", (1.0, 1.0))}
    site_of = sites(problems(), tmp_path / "silos")
    site_of["s1"].make = reporting(lambda version: sums if version == 2 else good)
    ended = federate(job_of(problems(), total=2), silo_makers(site_of), tmp_path)
    assert ended.outcome.status == "done" and ended.refusals == {("s1", 2, "metrics")}
    (last,) = ended.of(events.VersionEvaluated)
    assert last.evaluated.missing == ["s1"] and "loss" in last.evaluated.overall


def test_a_metric_that_no_silo_reports_is_an_error_in_the_first_round(tmp_path: Path) -> None:
    ended = run_quadratic(job_of(problems(), stop={"metric": "f1"}), problems(), tmp_path)
    assert ended.outcome.exit_code == 2 and "no silo reports 'f1'; they report: loss" in ended.outcome.reason
    assert not ended.rounds


def test_stopping(tmp_path: Path) -> None:
    whole = run_quadratic(job_of(problems(), total=30), problems(), tmp_path / "whole")
    losses = [closed.evaluated.overall["loss"] for closed in whole.rounds]
    target = (losses[4] + losses[5]) / 2
    early = run_quadratic(
        job_of(problems(), total=30, stop={"target": target}), problems(), tmp_path / "early"
    )
    assert (early.outcome.status, len(early.rounds)) == ("done", 6) and "loss reached" in early.outcome.reason
    patient = run_quadratic(
        job_of(problems(), total=30, stop={"patience": 3, "min_delta": 1e3}), problems(), tmp_path / "p"
    )
    assert len(patient.rounds) == 4 and "did not improve for 3 versions" in patient.outcome.reason
    best = whole.of(events.RunClosed)[0]
    last = whole.of(events.VersionEvaluated)[0].evaluated.overall["loss"]
    assert best.best_value == min([*losses, last])


def test_stopped_on_request_and_taken_up_again(tmp_path: Path) -> None:
    job, made = job_of(problems(), total=5, **named("scaffold")), problems()

    def during(driver: Driver, channel: LocalChannel, event: Any) -> None:
        if isinstance(event, events.RoundOpened) and event.version == 2:
            driver.request_stop()

    stopped = run_quadratic(job, made, tmp_path / "a", during=during)
    assert (stopped.outcome.status, stopped.outcome.exit_code, len(stopped.rounds)) == ("stopped", 3, 3)
    assert run_quadratic(job, made, tmp_path / "a").bits == run_quadratic(job, made, tmp_path / "b").bits


def test_stopped_at_once_while_a_round_is_open(tmp_path: Path, deaf: Any) -> None:
    def during(driver: Driver, channel: LocalChannel, event: Any) -> None:
        if isinstance(event, events.UpdateArrived) and event.version == 1:
            asyncio.get_running_loop().call_later(0.05, driver.request_stop, True)

    job = job_of(problems(), total=5, rounds={"patience_s": 2.0})
    ended = federate(job, deaf(range(1, 2), ping=True), tmp_path, during=during)
    assert (ended.outcome.status, len(ended.rounds)) == ("stopped", 1) and ended.seconds < 6
    assert ended.of(events.RunClosed)[0].version == 1


# Drivers that die


DRIVER_POINTS = [point for point in FAULT_POINTS if not point.startswith("silo.") or point == "silo.launched"]


def check_resumption(point: str, nth: int, strategy: str = "scaffold", **sections: Any) -> None:
    """Oracle 29: the driver dies at a point, another goes on: the same bits, little redone, nothing twice."""
    server = {"name": "sgd", "lr": 0.8, "momentum": 0.5}
    job = job_of(problems(), total=3, strategy={"name": strategy, "server": server}, **sections)
    whole = resumed_reference(job)
    with scratch() as folder:
        site_of = sites(problems(), folder / "silos")
        arm(f"{point}:{nth}:raise")
        try:
            federate(job, silo_makers(site_of), folder, signer=DRIVER)
            died = False
        except FaultInjected:
            died = True
        arm(None)
        resumed = federate(job, silo_makers(site_of), folder, signer=DRIVER)
        history = journal(folder)
        assert not double_counts(history)
        proof = verify(Store(folder / "runs" / "run"))
        assert proof.fine, f"nobody has lied: {proof.verdict}"
    assert resumed.outcome.status == "done" and resumed.bits == whole.bits and resumed.digest == whole.digest
    rounds = [event for event in history if isinstance(event, events.RoundClosed)]
    assert sorted(closed.version for closed in rounds) == list(range(1, len(whole.rounds) + 1)), (
        "each round once"
    )
    lineages = {closed.version: closed.lineage for closed in rounds}
    assert lineages == {closed.version: closed.lineage for closed in whole.rounds}
    for site in site_of.values():
        again = len(site.trained) - len(whole.rounds)
        assert again <= (2 if died else 0), "a round redone, and the one begun ahead of its commit"


_references: dict[str, Ended] = {}


def resumed_reference(job: Job) -> Ended:
    if job.digest not in _references:
        with scratch() as folder:
            _references[job.digest] = run_quadratic(job, problems(), folder)
    return _references[job.digest]


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("point", DRIVER_POINTS)
def test_29_resumed_at_any_point_of_any_round(point: str, nth: int) -> None:
    check_resumption(point, nth)


@pytest.mark.parametrize("strategy", ["fedavg", "fednova"])
@pytest.mark.parametrize("point", ["round.folded", "round.closed", "commit.done"])
def test_29_every_strategys_state_is_restored(point: str, strategy: str) -> None:
    check_resumption(point, 2, strategy)


@pytest.mark.parametrize("point", ["state.stepped", "round.closed", "checkpoint.renamed", "commit.done"])
def test_29_a_run_that_had_learnt_enough_stops_where_it_would_have(point: str) -> None:
    """The stop rule is met by version 1's figures: a driver that resumes after that round trains no further."""
    check_resumption(
        point,
        3 if point in ("checkpoint.renamed", "commit.done") else 2,
        stop={"target": 1e9, "metric": "loss"},
    )


def test_29_one_crash_after_another(tmp_path: Path) -> None:
    job = job_of(problems(), total=3, **named("scaffold"))
    makers = silo_makers(sites(problems(), tmp_path / "silos"))
    for point in DRIVER_POINTS:
        arm(f"{point}:1:raise")
        with pytest.raises(FaultInjected):
            federate(job, makers, tmp_path)
            break
    arm(None)
    assert federate(job, makers, tmp_path).bits == run_quadratic(job, problems(), tmp_path / "whole").bits
    assert not double_counts(journal(tmp_path))


def test_two_drivers_at_once(tmp_path: Path) -> None:
    """The second is refused; the first does not notice."""
    made = {name: replace(p, sleep_s=0.01) for name, p in problems().items()}
    job, caught = job_of(made, total=2), []

    def during(driver: Driver, channel: LocalChannel, event: Any) -> None:
        if isinstance(event, events.RoundOpened) and event.version == 1:
            second = Driver(job, channel, Store(tmp_path / "runs" / "run"), "run")
            task = asyncio.get_running_loop().create_task(second.run())
            task.add_done_callback(lambda done: caught.append(done.exception()))

    ended = run_quadratic(job, made, tmp_path, during=during)
    assert ended.outcome.status == "done" and len(caught) == 1 and isinstance(caught[0], LeaseHeld)
    assert ended.digest == run_quadratic(job, made, tmp_path / "alone").digest


def test_an_older_driver_gets_no_more_work_out_of_silos(tmp_path: Path) -> None:
    """Fencing, where a lock did not help: silos have seen a newer epoch, so the old driver ends."""
    site_of = sites(problems(), tmp_path / "silos")
    silos = {name: make() for name, make in silo_makers(site_of).items()}
    for silo in silos.values():
        silo.handle(Ping(run_id="run", epoch=99))
    ended = federate(job_of(problems()), {name: lambda s=silo: s for name, silo in silos.items()}, tmp_path)
    assert ended.outcome.exit_code == 4 and "newer driver" in ended.outcome.reason

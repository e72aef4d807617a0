"""Events become points: where they stand, what they are called, and each of them once."""

import math
from itertools import count

import pytest

from orchestrator.core.events import (
    Event,
    RunClosed,
    RunOpened,
    Sealed,
    SiloJoined,
    UpdateRefused,
    VersionEvaluated,
    Waiting,
)
from tests.support.tracking_run import SILOS, closed, figures, job
from tracking.mapping import Mapper, Superseded
from tracking.points import MAX_PARAM, RUN, Point, Posts, Rows, params_of, points, spread


def opened(resumed_from: int | None = None) -> RunOpened:
    return RunOpened(
        run_id="r",
        name="heart-disease",
        job=job().model_dump(mode="json"),
        job_digest="d",
        epoch=1,
        versions={"python": "3.11"},
        resumed_from=resumed_from,
    )


def ended(version: int, status: str = "done") -> RunClosed:
    return RunClosed(status=status, reason="", version=version, parameters_digest="p")


def joined(silo: str) -> SiloJoined:
    return SiloJoined(
        silo=silo,
        incarnation="1",
        fingerprint=f"f-{silo}",
        num_examples={"train": 10},
        num_parameters=3,
        num_shared=2,
        device="cpu",
        node="n",
        versions={},
    )


def mapped(*events: Event, mapper: Mapper | None = None) -> tuple[Posts, list[Event]]:
    """All posts of the events, which get numbers and times as the store would give them."""
    mapper, all_posts, seq = mapper or Mapper(), {}, count()
    numbered = [event.model_copy(update={"seq": (n := next(seq)), "time": 1000.0 + n}) for event in events]
    for event in numbered:
        for run, rows in mapper.posts(event).items():
            all_posts.setdefault(run, Rows()).add(rows)
    return all_posts, numbered


def value(posts: Posts, run: str, key: str, step: int) -> float:
    found = [point.value for point in posts[run].points if (point.key, point.step) == (key, step)]
    assert len(found) == 1, f"{key} at step {step} of '{run}': {found}"
    return found[0]


def places(posts: Posts) -> list[tuple[str, str, int]]:
    return [(run, point.key, point.step) for run, rows in posts.items() for point in rows.points]


def test_figures_stand_at_the_version_that_was_evaluated() -> None:
    posts, _ = mapped(opened(), closed(SILOS, 1), closed(SILOS, 2))
    for version in (0, 1):
        known = figures(SILOS, version)
        assert value(posts, RUN, "accuracy", version) == known.overall["accuracy"]
        assert value(posts, "va", "accuracy", version) == known.silos["va"]["accuracy"]
    assert {step for _, key, step in places(posts) if key == "loss"} == {0, 1}


def test_costs_stand_at_the_version_that_was_made() -> None:
    posts, _ = mapped(opened(), closed(SILOS, 1))
    made = closed(SILOS, 1)
    assert value(posts, RUN, "seconds/wait", 1) == made.seconds["wait"]
    assert value(posts, RUN, "seconds/train", 1) == max(each.seconds["train"] for each in made.contributors)
    assert value(posts, RUN, "bytes/up", 1) == 240
    assert value(posts, "cleveland", "bytes/up", 1) == 60
    assert value(posts, RUN, "round/update_norm", 1) == made.update_norm
    assert value(posts, "va", "round/weight", 1) == made.contributors[3].weight
    assert value(posts, RUN, "round/contributors", 1) == 4


def test_a_sealed_sum_shows_what_is_known_of_it_and_what_privacy_cost() -> None:
    event = closed(SILOS[:2], 1)
    made_by = [
        each.model_copy(update={"norm": None, "privacy": {"epsilon": epsilon, "delta": 1e-5}})
        for each, epsilon in zip(event.contributors, (1.5, 0.5), strict=True)
    ]
    known = {"sealed": Sealed(tag="", digest="", left_out={"va": "gone"}, cut=3), "settings": {"range": 4.0}}
    posts, _ = mapped(opened(), event.model_copy(update={**known, "contributors": made_by}))
    assert value(posts, RUN, "sum/left_out", 1) == 1 and value(posts, RUN, "sum/cut", 1) == 3
    assert value(posts, RUN, "settings/range", 1) == 4.0
    assert value(posts, RUN, "privacy/epsilon_most", 1) == value(posts, SILOS[0], "privacy/epsilon", 1) == 1.5
    assert "round/update_norm" not in {point.key for point in posts[SILOS[0]].points}


def test_training_loss_is_pooled_by_examples() -> None:
    event = closed(SILOS[:2], 1)
    losses = [0.1, 0.7]
    made_by = [
        each.model_copy(update={"train": {"loss": loss}, "num_examples": rows})
        for each, loss, rows in zip(event.contributors, losses, (30, 10), strict=True)
    ]
    posts, _ = mapped(opened(), event.model_copy(update={"contributors": made_by}))
    assert value(posts, RUN, "train_loss", 1) == pytest.approx(0.25)
    assert value(posts, SILOS[1], "train_loss", 1) == 0.7


def test_silos_use_the_names_of_the_run() -> None:
    posts, _ = mapped(opened(), *(joined(silo) for silo in SILOS), closed(SILOS, 1), closed(SILOS, 2))
    names = {run: {point.key for point in rows.points} for run, rows in posts.items()}
    for silo in SILOS:
        assert {"accuracy", "loss", "train_loss", "seconds/train", "bytes/up", "round/staleness"} <= names[
            silo
        ]
        assert names[silo] - names[RUN] == {"round/weight", "round/steps"}


def test_worst_depends_on_the_direction_of_the_metric() -> None:
    found = spread(
        {"a": {"accuracy": 0.5, "loss": 1.0}, "b": {"accuracy": 0.9, "loss": 3.0}, "c": {"loss": 2.0}}
    )
    assert (found["accuracy_worst"], found["loss_worst"]) == (0.5, 3.0)
    assert found["accuracy_spread"] == pytest.approx(0.4)
    assert found["loss_std"] == pytest.approx(math.sqrt(2 / 3))
    assert spread({}) == {}


def test_what_is_not_finite_becomes_a_flag() -> None:
    event = closed(SILOS, 1)
    found = points({"loss": math.nan, "norm": math.inf, "accuracy": 0.5}, event, 3)
    assert [(point.key, point.value) for point in found] == [
        ("accuracy", 0.5),
        ("nonfinite/loss", 1.0),
        ("nonfinite/norm", 1.0),
    ]


def test_points_carry_the_time_of_their_event() -> None:
    event = closed(SILOS, 1).model_copy(update={"time": 12.3456})
    assert points({"loss": 1}, event, 2) == [Point("loss", 1.0, 12346, 2)]


@pytest.mark.parametrize("name", ["f1 @ 0.5", "a//b", "/x", "../up", "précision", "x" * 400, "", "a\tb"])
def test_mlflow_takes_every_name(name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    (point,) = points({name: 1.0}, closed(SILOS, 1), 0)
    _validate_metric_name(point.key)
    assert len(point.key) <= 250


def test_the_job_becomes_flat_parameters() -> None:
    params = params_of(job(shared=["head.*"], name="n").model_dump(mode="json"))
    assert params["rounds.total"] == "12"
    assert params["local.optimizer.lr"] == "0.03"
    assert params["strategy.name"] == "fedavg"
    assert params["shared"] == '["head.*"]'
    assert "rounds.cohort" not in params and "private" not in params
    assert all(len(text) <= MAX_PARAM for text in params.values())
    assert len(params_of({"text": "x" * 9000})["text"]) == MAX_PARAM


def test_a_round_made_again_alike_adds_nothing() -> None:
    posts, _ = mapped(
        opened(), closed(SILOS, 1), closed(SILOS, 2), opened(1), closed(SILOS, 2), closed(SILOS, 3)
    )
    assert len(places(posts)) == len(set(places(posts)))
    assert {step for _, key, step in places(posts) if key == "bytes/up"} == {1, 2, 3}


def test_a_round_made_again_otherwise_voids_what_was_posted() -> None:
    events = [opened(), closed(SILOS, 1), closed(SILOS, 2), opened(1), closed(SILOS, 2, seed=1)]
    with pytest.raises(Superseded) as error:
        mapped(*events)
    assert error.value.seqs == {2}
    posts, _ = mapped(*events, closed(SILOS, 3, seed=1), mapper=Mapper(error.value.seqs))
    assert len(places(posts)) == len(set(places(posts)))
    assert value(posts, RUN, "round/update_norm", 2) == closed(SILOS, 2, seed=1).update_norm
    assert value(posts, "va", "round/update_norm", 2) == closed(SILOS, 2, seed=1).contributors[3].norm


def test_rounds_beyond_the_end_are_voided() -> None:
    events = [opened(), closed(SILOS, 1), closed(SILOS, 2), opened(1)]
    with pytest.raises(Superseded):
        mapped(*events, ended(1, "stopped"))
    mapped(*events, ended(-1, "failed"))  # it failed before it had the model in hand: nothing is void


def test_the_last_version_is_evaluated_once_when_the_run_goes_on() -> None:
    last = VersionEvaluated(evaluated=figures(SILOS, 1), best=True)
    posts, _ = mapped(opened(), closed(SILOS, 1), last, ended(1, "stopped"), opened(1), closed(SILOS, 2))
    assert len(places(posts)) == len(set(places(posts)))
    assert posts[RUN].tags["siloray.best_version"] == "1"
    assert posts[RUN].status == "RUNNING"


def test_refusals_are_counted_per_round_and_silo() -> None:
    refused = [UpdateRefused(silo="va", version=0, code=code, reason="") for code in ("norm", "nonfinite")]
    posts, _ = mapped(opened(), *refused, closed(SILOS, 1), closed(SILOS, 2))
    assert [value(posts, RUN, "round/refused", version) for version in (1, 2)] == [2, 0]
    assert value(posts, "va", "round/refused", 1) == 2
    assert posts[RUN].tags["siloray.refused"] == "nonfinite: 1, norm: 1"


def test_status_and_contributors() -> None:
    waiting = Waiting(version=1, silos=["va"], why="it is away", until_s=60)
    before, _ = mapped(opened(), joined("va"), waiting)
    assert before[RUN].tags["siloray.status"] == "waiting for va: it is away"
    posts, _ = mapped(opened(), joined("va"), waiting, closed(SILOS, 1), closed(SILOS[:2], 2))
    assert posts[RUN].tags["siloray.status"] == "running"
    assert posts[RUN].tags["siloray.contributors"] == "cleveland: 2, hungarian: 2, switzerland: 1, va: 1"
    assert posts[RUN].tags["siloray.fingerprint.va"] == posts["va"].tags["siloray.fingerprint"] == "f-va"
    after, _ = mapped(opened(), joined("va"), closed(SILOS, 1), ended(1))
    assert (after[RUN].status, after["va"].status) == ("FINISHED", "FINISHED")

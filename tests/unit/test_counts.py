"""A silo that keeps its number of rows to itself (``share_counts: false``), behind its one door."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from orchestrator.core.messages import (
    Evaluate,
    Evaluated,
    Initial,
    Join,
    Joined,
    Ping,
    Progress,
    Refused,
    Train,
    Update,
)
from orchestrator.job import Job
from silos.configured_site import ConfiguredSite
from silos.silo import Silo
from tests.support.guarded import Clock

RUN: dict[str, Any] = {"run_id": "run", "epoch": 1}
ROWS, TEST_ROWS, BATCH = 73, 37, 4
STEPS = -(-ROWS // BATCH)


def write_silo(folder: Path, rows: int = ROWS, budget: Any = None, **policy: Any) -> Path:
    table = [f"{row % 7},{row % 2},{'train' if row < rows else 'test'}" for row in range(rows + TEST_ROWS)]
    (folder / "rows.csv").write_text("\n".join(["x,y,fold", *table]) + "\n")
    document = {
        "name": "a",
        "datasets": {"d": {"path": "rows.csv", "splits": {"column": "fold"}, "budget": budget}},
        "policy": policy,
    }
    path = folder / "silo.yaml"
    path.write_text(yaml.safe_dump({**document, "local": {"device": "cpu"}}))
    return path


def job(**sections: Any) -> Job:
    return Job.model_validate(
        {
            "name": "j",
            "task": {
                "name": "tabular",
                "dataset": "d",
                "target": "y",
                "features": ["x"],
                "standardise": False,
            },
            "silos": ["a", "b"],
            "rounds": {"total": 3},
            "local": {"epochs": 1, "batch_size": BATCH, "optimizer": {"name": "sgd", "lr": 0.1}},
            "combine": {"weights": "uniform"},
            **sections,
        }
    )


def replies(silo: Silo, job: Job, seen: list[Any] | None = None) -> list[Any]:
    """To all that a driver asks in a round; with ``seen``, the signs of life at every step."""
    joined = silo.handle(Join(**RUN, job=job.model_dump_json(), job_digest=job.digest))
    assert isinstance(joined, Joined), joined
    model = silo.handle(Initial(**RUN)).packet
    if seen is not None:
        assert silo._run is not None
        batches = silo._run.trainer.task.train_batches  # type: ignore[attr-defined]

        def watched(*at: Any) -> Any:
            for batch in batches(*at):
                seen.append(silo.handle(Ping(**RUN)))
                yield batch

        silo._run.trainer.task.train_batches = watched  # type: ignore[attr-defined]
    request = Train(**RUN, version=0, attempt=1, model=model, model_digest="m", counted=-1, inline=1000)
    return [joined, silo.handle(request), silo.handle(Evaluate(**RUN, version=1, model=model, counted=0))]


def numbers(what: Any) -> set[float]:
    """All that stand anywhere in it."""
    if isinstance(what, dict):
        return numbers(list(what.values()))
    if isinstance(what, list | tuple):
        return {number for each in what for number in numbers(each)}
    return {float(what)} if isinstance(what, int | float) and not isinstance(what, bool) else set()


def said(reply: Any) -> set[float]:
    return numbers({name: each for name, each in asdict(reply).items() if name not in ("packet", "seconds")})


@pytest.mark.parametrize("shared", [True, False])
def test_no_reply_holds_a_count(tmp_path: Path, shared: bool) -> None:
    silo, seen = Silo(ConfiguredSite(write_silo(tmp_path, share_counts=shared))), []
    joined, update, evaluated = replies(silo, job(), seen)
    assert isinstance(update, Update) and isinstance(evaluated, Evaluated) and len(seen) == STEPS
    told = said(joined) | said(update) | said(evaluated) | numbers([each.num_steps for each in seen])
    told |= numbers([each.total_steps for each in seen])
    assert bool(told & {ROWS, TEST_ROWS, STEPS, ROWS + TEST_ROWS}) is shared
    if not shared:
        assert (update.num_examples, update.num_steps, update.weight) == (1, 0, 1.0)
        assert update.train_metrics["loss"].count == evaluated.metrics["accuracy"].count == 1.0


@pytest.mark.parametrize("shared", [True, False])
def test_signs_of_life_do_not_tell_the_number_of_batches(tmp_path: Path, shared: bool) -> None:
    """One a second, however many batches there were; where time does not go on, none."""
    clock, seen = Clock(), []
    silo = Silo(ConfiguredSite(write_silo(tmp_path, share_counts=shared)), clock)
    replies(silo, job(), seen)
    marks = {each.marks for each in seen}
    assert len(marks) == (STEPS if shared else 1)


def test_signs_of_life_go_on(tmp_path: Path) -> None:
    """A driver's patience is at least seconds: each brings a sign, if work went on."""
    clock = Clock()
    silo = Silo(ConfiguredSite(write_silo(tmp_path, share_counts=False)), clock)
    replies(silo, job())
    assert silo._run is not None
    tick, marks = silo._working.tick(0, silo._run), []
    for _ in range(10):
        clock.now += 0.5
        tick("training", 1, 2)
        pong = silo.handle(Ping(**RUN))
        assert isinstance(pong, Progress)
        marks.append(pong.marks)
    assert marks[-1] - marks[0] in (4, 5)


def test_a_driver_that_was_told_the_counts_has_to_ask_again(tmp_path: Path) -> None:
    """The policy became stricter amid a run: the driver's books must not speak of rows any more."""
    silo = Silo(ConfiguredSite(write_silo(tmp_path)))
    joined, update, _ = replies(silo, job())
    assert update.num_examples == ROWS and joined.num_examples
    write_silo(tmp_path, share_counts=False)
    refused = silo.handle(Evaluate(**RUN, version=1, model={}, counted=0))
    assert isinstance(refused, Refused) and refused.code == "job" and "join again" in refused.reason
    joined, update, _ = replies(silo, job())
    assert joined.num_examples == {} and json.dumps(joined.model)


@pytest.mark.parametrize("shared", [True, False])
def test_an_error_does_not_tell_how_many_rows_it_looked_at(tmp_path: Path, shared: bool) -> None:
    """Also to a driver of the same organisation; the silo's record has all of it."""
    site, made = ConfiguredSite(write_silo(tmp_path, share_counts=shared)), job()
    table = tmp_path / "rows.csv"
    table.write_text(table.read_text().replace("train", "trian"))
    refused = Silo(site).handle(Join(**RUN, job=made.model_dump_json(), job_digest=made.digest))
    assert isinstance(refused, Refused) and refused.code == "data" and "no train rows" in refused.reason
    assert ("it holds: " in refused.reason) is shared
    table.write_text("\n".join(["x,y,fold", *[f",{row % 2},train" for row in range(ROWS)]]) + "\n,1,test\n")
    refused = Silo(ConfiguredSite(tmp_path / "silo.yaml")).handle(
        Join(**RUN, job=made.model_dump_json(), job_digest=made.digest)
    )
    assert isinstance(refused, Refused) and "no training row is complete" in refused.reason
    assert (f"of {ROWS}" in refused.reason) is shared
    assert shared or f"of {ROWS}" in site.guard.audit.path.read_text()


# with differential privacy, where the number of rows is in the sampling rate


def private(noise: dict[str, Any] | None = None, **local: Any) -> Job:
    dp = {"name": "dp_sgd", "max_grad_norm": 1e-6, **(noise or {"noise_multiplier": 4.0})}
    sgd = {"batch_size": 64, "optimizer": {"name": "sgd", "lr": 1.0}}
    return job(privacy=[dp], local={"steps": 20, **sgd, **local})


def told(folder: Path, rows: int, shared: bool) -> list[dict[str, Any]]:
    """All that leaves but what any two rows' files differ in, and figures on test rows, which are the same."""
    folder.mkdir()
    site = ConfiguredSite(write_silo(folder, rows, share_counts=shared, metrics="none"))
    different = ("seconds", "fingerprint", "key", "incarnation", "receipt", "ledger", "packet")
    return [
        {name: each for name, each in asdict(reply).items() if name not in different}
        for reply in replies(Silo(site), private())
    ]


@pytest.mark.parametrize("shared", [True, False])
def test_privacy_that_was_spent_does_not_tell_the_number_of_rows(tmp_path: Path, shared: bool) -> None:
    one, other = told(tmp_path / "a", 150, shared), told(tmp_path / "b", 151, shared)
    assert (one == other) is not shared
    assert [bool(reply[name]) for reply, name in zip(one, ("planned", "privacy"), strict=False)] == [
        shared
    ] * 2


def test_the_strength_of_the_noise_is_the_same_at_a_small_silo(tmp_path: Path) -> None:
    """Of 20 steps with a learning rate of 1, and next to no gradient: sqrt(20) sigma C / batch size."""
    found, made = [], private({"noise_multiplier": 1e3})
    for rows in (20, 400):
        (tmp_path / str(rows)).mkdir()
        silo, drawn = Silo(ConfiguredSite(write_silo(tmp_path / str(rows), rows, share_counts=False))), []
        nothing = {"params": 0 * replies(silo, made)[1].packet["values"]}
        for version in range(1, 200):
            place = {"version": version, "attempt": 1, "counted": -1, "inline": 1000}
            update = silo.handle(Train(**RUN, **place, model=nothing, model_digest=str(version)))
            drawn.append(update.packet["values"].copy())
        found.append(float(np.std(np.concatenate(drawn))))
    assert found == pytest.approx([math.sqrt(20) * 1e3 * 1e-6 / 64] * 2, rel=0.15)


@pytest.mark.parametrize(
    ("made", "remedy"),
    [
        (private(steps=None, epochs=1), "give local.steps"),
        (private({"target_epsilon": 3.0}), "give noise_multiplier in place of target_epsilon"),
        (private({"target_epsilon": 3.0}, steps=None), "of target_epsilon and local.steps"),
    ],
)
def test_noise_that_follows_the_number_of_rows_is_refused(tmp_path: Path, made: Job, remedy: str) -> None:
    join = Join(**RUN, job=made.model_dump_json(), job_digest=made.digest)
    refused = Silo(ConfiguredSite(write_silo(tmp_path, share_counts=False))).handle(join)
    assert isinstance(refused, Refused) and refused.code == "policy" and refused.reason.endswith(remedy)
    assert "its number of rows" in refused.reason and "\n" not in refused.reason
    write_silo(tmp_path)
    assert isinstance(Silo(ConfiguredSite(tmp_path / "silo.yaml")).handle(join), Joined)


@pytest.mark.parametrize("shared", [True, False])
def test_a_budget_that_is_too_small_is_told_without_figures_of_the_rows(tmp_path: Path, shared: bool) -> None:
    site = ConfiguredSite(write_silo(tmp_path, budget={"epsilon": 0.5, "delta": 1e-5}, share_counts=shared))
    made = private()
    refused = Silo(site).handle(Join(**RUN, job=made.model_dump_json(), job_digest=made.digest))
    assert isinstance(refused, Refused) and "is epsilon 0.5 at delta 1e-05" in refused.reason
    assert ("is spent" in refused.reason) is shared and refused.reason.endswith("(the whole job)")
    told = [line for line in site.guard.audit.path.read_text().splitlines() if "by itself" in line]
    assert len(told) == 1, "the owner has the figures"

"""A silo that keeps its number of rows to itself (``share_counts: false``), behind its one door."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

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


def write_silo(folder: Path, **policy: Any) -> Path:
    table = [f"{row % 7},{row % 2},{'train' if row < ROWS else 'test'}" for row in range(ROWS + TEST_ROWS)]
    (folder / "rows.csv").write_text("\n".join(["x,y,fold", *table]) + "\n")
    document = {
        "name": "a",
        "datasets": {"d": {"path": "rows.csv", "splits": {"column": "fold"}}},
        "policy": policy,
    }
    path = folder / "silo.yaml"
    path.write_text(yaml.safe_dump({**document, "local": {"device": "cpu"}}))
    return path


def job(**sections: Any) -> Job:
    return Job.model_validate(
        {
            "name": "j",
            "task": {"name": "tabular", "dataset": "d", "target": "y", "features": ["x"]},
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
    tick, marks = silo._tick(0, silo._run), []
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

"""A silo that dies in mid-round goes on: the same bits as if nobody had disturbed it, and few batches a second time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from orchestrator.core.protocols import LocalRun, Phase
from orchestrator.job import Job
from orchestrator.strategies.base import Averaging
from silos.mid_round import FILE, MidRound, Rhythm
from silos.site import Order, Trained
from silos.trainer import TorchTrainer
from tests.support.blobs import Blobs
from tests.support.quadratic import job_of

torch.set_num_threads(1)

SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.9}
EVERY_THIRD = Rhythm(every_s=None, every_steps=3)


class Died(BaseException):
    """The silo's process, killed."""


def job(**sections: Any) -> Job:
    local = {"epochs": 4, "batch_size": 8, "optimizer": SGD, **sections.pop("local", {})}
    return job_of(["a", "b"], local=local, **sections)


class Counted(Blobs):
    """Counts the batches trained on."""

    def __init__(self) -> None:
        super().__init__(dropout=0.3)
        self.losses = 0

    def loss(self, model: Any, batch: Any) -> torch.Tensor:
        self.losses += 1
        return super().loss(model, batch)


def order(made: TorchTrainer, state: Any, mid_round: MidRound | None, dies_at: int | None = None) -> Order:
    def tick(phase: str, done: int, total: int) -> None:
        if phase == "training" and done == dies_at:
            raise Died

    strategy = made.job.strategy
    received = dict(strategy.broadcast(strategy.init(made.initial())))
    return Order(version=3, received=received, state=state, tick=tick, mid_round=mid_round)


def trainer(made: Job, task: Blobs) -> TorchTrainer:
    return TorchTrainer(made, "a", task, "cpu", rhythm=EVERY_THIRD)


def bits(result: Trained) -> tuple[Any, ...]:
    parts = {name: part.tobytes() for name, part in result.parts.items()}
    return parts, result.scalars, result.num_steps, result.train_metrics


def killed_and_resumed(
    made: Job, folder: Path, dies_at: int, state: Callable[[], dict[str, Any]] = dict
) -> tuple[Counted, tuple[Any, ...], tuple[Any, ...]]:
    """The task of the second process, and what both runs gave: the disturbed one and the other."""
    undisturbed_state, resumed_state = state(), state()
    undisturbed = trainer(made, Counted())
    whole = bits(undisturbed.train(order(undisturbed, undisturbed_state, None)))
    first = trainer(made, Counted())
    with pytest.raises(Died):
        first.train(order(first, state(), MidRound(folder, "work"), dies_at))
    task = Counted()
    second = trainer(made, task)
    torch.rand(11)
    resumed = bits(second.train(order(second, resumed_state, MidRound(folder, "work"))))
    kept = [{name: each.tobytes() for name, each in s.items()} for s in (resumed_state, undisturbed_state)]
    return task, (resumed, kept[0]), (whole, kept[1])


STRATEGIES: dict[str, dict[str, Any]] = {
    "momentum and dropout": {},
    "adamw": {"local": {"optimizer": {"name": "adamw", "lr": 0.01}}},
    "memo": {"strategy": {"name": "fednova"}, "local": {"optimizer": {"name": "adam", "lr": 0.01}}},
    "kept": {"strategy": {"name": "scaffold"}},
    "kept optimizer": {"strategy": {"name": "diloco"}, "local": {"optimizer": {"name": "adamw", "lr": 0.01}}},
    "private": {"private": ["head.*", "bn.*"]},
    "steps": {"local": {"epochs": None, "steps": 19}},
    "fp16": {"local": {"precision": "fp16"}},
}


@pytest.mark.parametrize("sections", STRATEGIES.values(), ids=STRATEGIES)
def test_it_goes_on_with_the_same_bits(sections: dict[str, Any], tmp_path: Path) -> None:
    """Killed at step 17 of 20, in the last epoch: the last checkpoint is that after step 15."""
    task, resumed, undisturbed = killed_and_resumed(job(**sections), tmp_path, dies_at=17)
    assert resumed == undisturbed
    assert task.losses == (4 if sections.get("local", {}).get("steps") else 5)


@pytest.mark.parametrize("dies_at", [1, 3, 4, 5, 6, 20])
def test_wherever_it_dies(dies_at: int, tmp_path: Path) -> None:
    """Before the first checkpoint, right before and after one, at the end of an epoch, at the very end."""
    task, resumed, undisturbed = killed_and_resumed(job(), tmp_path, dies_at)
    assert resumed == undisturbed
    assert task.losses == 20 - (dies_at - 1) // 3 * 3


def test_in_the_second_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First the head alone, then all: the epochs of both count on, and each phase has an optimizer of its own."""
    phases = (Phase("own", epochs=2), Phase("all", steps=8))
    monkeypatch.setattr(Averaging, "phases", lambda self, length: phases)
    task, resumed, undisturbed = killed_and_resumed(job(private=["head.*"]), tmp_path, dies_at=17)
    assert resumed == undisturbed and task.losses == 18 - 15


def test_what_a_strategy_wrote_into_its_memory_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def direction(self: Any, run: LocalRun, grad_at: Any) -> Any:
        gradient = grad_at(run.params)
        run.kept["seen"] = 0.9 * run.kept["seen"] + gradient
        return run.kept["seen"] + 0.0

    monkeypatch.setattr(Averaging, "direction", direction)
    start = lambda: {"strategy/other": np.ones(3, np.float32)}  # noqa: E731
    _, resumed, undisturbed = killed_and_resumed(job(), tmp_path, 17, start)
    assert resumed == undisturbed and resumed[1]["strategy/seen"]
    with safe_open(tmp_path / FILE, "numpy") as file:
        assert "state/strategy/seen" in file.keys() and "state/strategy/other" not in file.keys()  # noqa: SIM118


def test_other_work_starts_anew(tmp_path: Path) -> None:
    """Another version or model, or other settings of the silo: what lies there is of no use, and goes."""
    made = trainer(job(), Counted())
    with pytest.raises(Died):
        made.train(order(made, {}, MidRound(tmp_path, "work"), dies_at=17))
    content = (tmp_path / FILE).read_bytes()
    assert MidRound(tmp_path, "other work").load() is None and not (tmp_path / FILE).exists()
    (tmp_path / FILE).write_bytes(content)
    task = Counted()
    local = job(local={"batch_size": 20}).local
    TorchTrainer(job(), "a", task, "cpu", local, EVERY_THIRD).train(
        order(made, {}, MidRound(tmp_path, "work"))
    )
    assert task.losses == 8


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"{}" * 400, None])
def test_a_file_that_cannot_be_read_is_none(content: bytes | None, tmp_path: Path) -> None:
    here = MidRound(tmp_path, "work")
    here.save(1, {"x": np.arange(1000.0)}, {"a": 1})
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    assert here.load() is None and not path.exists()


def test_a_checkpoint_is_numbers_and_json(tmp_path: Path) -> None:
    here = MidRound(tmp_path, "work")
    here.save(7, {"x": np.arange(3.0), "n": np.array(5)}, {"path": 0.1 + 0.2})
    arrays, facts = here.load() or ({}, {})
    assert arrays["x"].tolist() == [0, 1, 2] and int(arrays["n"]) == 5 and facts == {"path": 0.1 + 0.2}
    with safe_open(tmp_path / FILE, "numpy") as file:
        assert json.loads(file.metadata()["facts"]) == facts
    assert [path.name for path in tmp_path.iterdir()] == [FILE] and here.seconds > 0


def test_a_full_disk_costs_the_checkpoint_and_not_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    made = trainer(job(), Counted())
    result = made.train(order(made, {}, MidRound(tmp_path / "file", "work")))
    assert result.num_steps == 20 and "no checkpoint of the training" in caplog.text


def test_when_it_is_time(tmp_path: Path) -> None:
    here = MidRound(tmp_path, "work")
    assert here.due(Rhythm(0.0, None), 1) and not here.due(Rhythm(60.0, None), 1)
    assert here.due(Rhythm(None, 5), 5) and not here.due(Rhythm(None, 5), 4)
    here.save(5, {"x": np.zeros(1)}, {})
    assert not here.due(Rhythm(None, 5), 9) and here.due(Rhythm(None, 5), 10)

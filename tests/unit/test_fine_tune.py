"""Fine-tuning at a silo: what is trained on, what decides, and that a model which does not get better stays."""

from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.local import FineTune
from silos import fine_tune as module
from silos.fine_tune import Tuned, fine_tune
from silos.site import Cancelled
from silos.tasks.task import At
from silos.trainer import TorchTrainer
from tests.support.blobs import Blobs
from tests.support.quadratic import job_of
from tests.unit.test_trainer import order, trained

torch.set_num_threads(1)


def trainer(task: Blobs | None = None, **sections: Any) -> TorchTrainer:
    sgd = {"name": "sgd", "lr": 0.05}
    local = {"batch_size": 8, "optimizer": sgd, **sections.pop("local", {})}
    return TorchTrainer(job_of(["a", "b"], local=local, **sections), "a", task or Blobs(), "cpu")


def tuned(made: TorchTrainer, plan: FineTune, **options: Any) -> Tuned:
    return fine_tune(made, order(made), plan, **options)


def test_it_keeps_the_step_that_is_best_on_the_rows_set_aside() -> None:
    made = trainer()
    first = made.initial()["params"].tobytes()
    result = tuned(made, FineTune(epochs=6), with_test=True)
    by_step = {point.step: point.validation["loss"].value for point in result.curve}
    assert result.accepted and result.metric == "loss"
    assert by_step[result.step] == min(by_step.values()) < by_step[0]  # type: ignore[type-var]
    assert {point.validation["loss"].count for point in result.curve} == {8.0}, "a fifth of forty"
    assert {point.test["loss"].count for point in result.curve} == {20.0}
    again = made.measure_test(lambda *_: None)
    assert again == next(point.test for point in result.curve if point.step == result.step)
    assert made.initial()["params"].tobytes() == first


def test_what_decides_is_not_trained_on() -> None:
    """Eight rows decide, and each of the others is used once an epoch."""
    task, seen = Blobs(), []
    plain = task.loss
    task.loss = lambda model, batch: (seen.append(batch[0]), plain(model, batch))[1]  # type: ignore[method-assign]
    made = trainer(task)
    tuned(made, FineTune(epochs=2))
    rows = next(task.train_batches(At(made.job.seed, "a", 0, 0), 8))[0]
    aside = {row.numpy().tobytes() for row in rows}
    used = [row.numpy().tobytes() for batch in seen for row in batch]
    assert len(aside) == 8 and not aside & set(used)
    assert len(used) == 64 and len(set(used)) == 32


def test_a_model_that_gets_worse_stays_as_it_was() -> None:
    """A well trained model comes in, and the rate is far too high."""
    honest = trainer(local={"epochs": 20, "optimizer": {"name": "sgd", "lr": 0.1}})
    good = trained(honest).parts
    received = {"params": honest.initial()["params"] + good["delta"]}
    received["buffers"] = honest.initial()["buffers"] + good["buffers"]
    made = trainer()
    result = fine_tune(made, order(made, received=received), FineTune(steps=10, lr=50.0))
    assert not result.accepted and result.step == 0 and len(result.curve) == 11
    assert {name: part.tobytes() for name, part in made.flat.parts().items()} == {
        name: part.tobytes() for name, part in received.items()
    }


def test_the_same_order_gives_the_same_bits() -> None:
    one, other = trainer(Blobs(dropout=0.3)), trainer(Blobs(dropout=0.3))
    first = tuned(one, FineTune(steps=7))
    torch.rand(3)
    tuned(one, FineTune(steps=3))
    assert [point.step for point in first.curve] == [0, 1, 2, 3, 4, 5, 6, 7]
    for again in (tuned(one, FineTune(steps=7)), tuned(other, FineTune(steps=7))):
        assert {n: t.numpy().tobytes() for n, t in again.model.items()} == {
            n: t.numpy().tobytes() for n, t in first.model.items()
        }
        assert again.curve == first.curve


def test_looks_and_the_metric_of_the_job() -> None:
    result = tuned(trainer(stop={"metric": "accuracy"}), FineTune(steps=10), looks=(1, 5, 10))
    assert [point.step for point in result.curve] == [0, 1, 5, 10] and result.metric == "accuracy"
    assert tuned(trainer(stop={"metric": "f1"}), FineTune(steps=1)).metric == "loss", "the silo has no f1"


def test_a_private_head_is_tuned_with_the_rest() -> None:
    made, state = trainer(private=["head.*"]), {}
    trained(made, 0, state)
    given = order(made, 1, state)
    before = {name: part.copy() for name, part in state.items()}
    result = fine_tune(made, given, FineTune(epochs=4, lr=0.1))
    assert result.accepted and not np.allclose(
        result.model["head.weight"].reshape(-1), state["private/"][:16]
    )
    assert {n: p.tobytes() for n, p in state.items()} == {n: p.tobytes() for n, p in before.items()}


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_few_rows(rows: int) -> None:
    """Of nine rows one decides and eight train; one row alone can do neither, so the model stays."""
    result = tuned(trainer(Blobs(rows=rows), local={"batch_size": 7}), FineTune(steps=3))
    assert result.accepted in ({False} if rows == 1 else {False, True})
    assert len(result.curve) == {1: 1, 2: 4, 9: 4}[rows]


def test_of_a_large_data_set_the_first_part_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHED_BYTES", 8 * 64 * 4)
    assert {p.validation["loss"].count for p in tuned(trainer(), FineTune(steps=1)).curve} == {1.0}


def test_it_leaves_when_it_is_told_to() -> None:
    made = trainer()

    def tick(phase: str, done: int, total: int) -> None:
        assert (phase, total) == ("fine-tuning", 9)
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        fine_tune(made, order(made, tick=tick), FineTune(steps=9))


@pytest.mark.parametrize("switch", [{"precision": "fp16"}, {"clip_grad_norm": 0.1}], ids=str)
def test_switches(switch: dict[str, Any]) -> None:
    assert tuned(trainer(local=switch), FineTune(epochs=5)).accepted

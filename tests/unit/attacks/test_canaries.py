"""Canaries: planted where the secret says, trained on once an epoch, and known to a model that remembers them."""

import stat
from pathlib import Path

import pytest
import torch

from silos.attacks.attack import attack
from silos.attacks.canaries import HELD_BACK, Planted, exposed, made, number_of, planted, secret_in
from silos.attacks.rows import losses
from silos.site import Order
from silos.tasks.task import At, Batch
from silos.trainer import TorchTrainer
from tests.support.blobs import Blobs
from tests.support.noisy_digits import NoisyDigits
from tests.support.torch_site import torch_job

torch.set_num_threads(1)
SECRET = 1 << 200


def epoch(task: Planted, batch_size: int, version: int = 0) -> list[Batch]:
    return list(task.train_batches(At(0, "a", version, 0), batch_size))


def keys(rows: Batch) -> list[bytes]:
    return sorted(row.numpy().tobytes() for row in rows[0])


@pytest.mark.parametrize("batch_size", [1, 7, 16, 300])
def test_an_epoch_has_every_row_and_every_canary_once(batch_size: int) -> None:
    base = NoisyDigits(0)
    task = planted(base, 20, SECRET)
    assert isinstance(task, Planted) and task.num_examples("train") == 320
    batches = epoch(task, batch_size)
    assert [len(each[0]) for each in batches[:-1]] == [batch_size] * (len(batches) - 1)
    whole = tuple(torch.cat(column) for column in zip(*batches, strict=True))
    rows = tuple(map(torch.cat, zip(base.data["train"], task.canaries.planted, strict=True)))
    assert keys(whole) == keys(rows)  # type: ignore[arg-type]
    assert task.num_examples("test") == 300 and task.hidden == 64


def test_places_differ_by_epoch_and_repeat_with_the_place() -> None:
    task = planted(NoisyDigits(0), 20, SECRET)
    assert isinstance(task, Planted)
    ours = set(keys(task.canaries.planted))

    def places(version: int) -> list[int]:
        (batch,) = epoch(task, 320, version)
        return [i for i, row in enumerate(batch[0]) if row.numpy().tobytes() in ours]

    assert places(0) == places(0) != places(1)
    assert len(places(0)) == 20 and max(places(0)) > 150


def test_a_last_row_alone_gets_company() -> None:
    task = Planted(NoisyDigits(0, rows=60), made(NoisyDigits(0, rows=60), SECRET, 5), SECRET)
    assert [len(each[0]) for each in epoch(task, 16)] == [16, 16, 16, 16, 2]


def test_canaries_follow_from_the_secret_and_are_like_those_held_back() -> None:
    task = NoisyDigits(0)
    one, again, other = made(task, SECRET, 10), made(task, SECRET, 10), made(task, SECRET + 1, 10)
    assert torch.equal(one.planted[0], again.planted[0]) and not torch.equal(one.planted[0], other.planted[0])
    assert len(one.held_back[0]) == 10 * HELD_BACK
    assert not set(keys(one.planted)) & set(keys(one.held_back)) & set(keys(task.data["train"]))
    trainer = TorchTrainer(torch_job("ab"), "a", task, "cpu")
    bits = exposed(
        losses(trainer.flat.module, task, [one.planted]), losses(trainer.flat.module, task, [one.held_back])
    )
    assert bits.low < 1.44 < 3 and bits.mean < 3


def test_few_rows_bear_few_canaries() -> None:
    assert number_of(20, 1000) == 20 and number_of(20, 80) == 8 and number_of(20, 49) == 0
    task = Blobs(rows=40)
    assert planted(task, 20, SECRET) is task


def test_the_secret_is_made_once_and_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "canaries" / "job.key"
    secret = secret_in(path)
    assert secret_in(path) == secret >= 1 << 200
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert secret_in(tmp_path / "other.key") != secret


@pytest.mark.parametrize(("epochs", "vote"), [(40, "fail"), (1, "pass")])
def test_a_model_that_remembers_is_caught(epochs: int, vote: str) -> None:
    release = {"attacks": ["canary"], "canaries": 20}
    local = {"epochs": epochs, "batch_size": 32, "optimizer": {"name": "adam", "lr": 0.01}}
    job = torch_job("ab", local=local, release=release)
    trainer = TorchTrainer(job, "a", planted(NoisyDigits(0), 20, SECRET), "cpu")
    order = Order(version=0, received=trainer.initial(), state={}, tick=lambda *_: None)
    delta = trainer.train(order).parts["delta"]
    order = Order(
        version=1, received={"params": order.received["params"] + delta}, state={}, tick=lambda *_: None
    )
    assert job.release is not None
    found = attack(trainer, order, job.release)
    assert found.vote == vote
    assert (found.scores["exposure"] > 4) == (vote == "fail")


def test_without_canaries_there_is_no_such_vote() -> None:
    job = torch_job("ab", release={"attacks": ["canary"], "canaries": 20})
    trainer = TorchTrainer(job, "a", Blobs(), "cpu")
    order = Order(version=0, received=trainer.initial(), state={}, tick=lambda *_: None)
    assert job.release is not None
    found = attack(trainer, order, job.release)
    assert found.vote == "none" and "planted none" in found.why["canary"]

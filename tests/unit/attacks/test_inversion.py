"""Gradient inversion in closed form (privacy notes, tests that must hold, 7): exact on plain updates of one record; of
what is masked, encrypted or noised nothing comes out; a sum of one-record updates still shows some of them."""

import secrets
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from orchestrator.core.vector import Vector
from orchestrator.privacy.masking import Mask, add_masks
from silos.attacks.attack import attack
from silos.attacks.inversion import Inverted, best, entrance, inputs_of
from silos.site import Order
from silos.trainer import TorchTrainer
from tests.support.blobs import Net
from tests.support.noisy_digits import NoisyDigits
from tests.support.photo import patches
from tests.support.torch_site import torch_job

torch.set_num_threads(1)
SIDE, UNITS, SILOS = 32, 64, 8
RECORDS = patches(SILOS, SIDE)
"""One record for each of the silos, ``[silos, 3 * 32 * 32]`` in [0, 1]."""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(RECORDS.shape[1], UNITS), nn.ReLU(), nn.Linear(UNITS, 10))


def update_of(rows: list[int]) -> Vector:
    """The gradient of a batch of these records: the update of one step, with a rate of -1."""
    model = network()
    labels = torch.tensor([row % 10 for row in rows])
    nn.functional.cross_entropy(model(torch.from_numpy(RECORDS[rows])), labels).backward()
    grads = [param.grad.reshape(-1).numpy() for param in model.parameters() if param.grad is not None]
    return np.concatenate(grads)


def read_from(update: Any, records: Any = RECORDS) -> Inverted:
    weight = np.asarray(update[: RECORDS.shape[1] * UNITS]).reshape(UNITS, -1)
    bias = np.asarray(update[RECORDS.shape[1] * UNITS :][:UNITS])
    return best(inputs_of(weight, bias), records)


def clipped(update: Vector) -> Vector:
    return update * min(1.0, 1.0 / float(np.linalg.norm(update)))


def noised(update: Vector, sigma: float = 1.0) -> Vector:
    """Clipped to 1, and Gaussian noise of ``sigma`` on each number."""
    rng = np.random.default_rng(3)
    return clipped(update) + rng.normal(0, sigma, update.size)


def in_ring(update: Vector) -> Any:
    return np.round(clipped(update) * (1 << 15)).astype(np.int64).astype(np.uint32)


def masked(update: Vector) -> Any:
    """As the driver sees it under pairwise and self masks: numbers of a ring, read at the scale that all know."""
    ring = in_ring(update)
    add_masks(ring, [Mask(secrets.token_bytes(32), plus=True) for _ in range(SILOS)])
    return ring.astype(np.int32) / (1 << 15)


@pytest.mark.parametrize("row", range(3))
def test_a_plain_update_of_one_record_is_the_record(row: int) -> None:
    found = read_from(update_of([row]))
    assert found.psnr >= 100 and found.row == row and found.cosine > 0.999999


def encrypted(update: Vector) -> Any:
    """As the driver sees it in an encrypted sum: the bytes of a ciphertext, taken for numbers."""
    bfv = pytest.importorskip("orchestrator.privacy.bfv")
    pytest.importorskip("tenseal")
    key = bfv.SecretKey(bfv.Parameters())
    slots = in_ring(update)[: bfv.SLOTS].astype(np.uint64)
    sealed = b"".join(key.encrypted(slots) for _ in range(-(-update.size // (bfv.SLOTS * 2)) + 1))
    words = np.frombuffer(sealed[: len(sealed) // 4 * 4], np.int32)
    return np.resize(words, update.size) / (1 << 15)


@pytest.mark.parametrize("hidden", [noised, masked, encrypted])
def test_of_what_is_noised_masked_or_encrypted_nothing_comes_out(hidden: Any) -> None:
    assert read_from(update_of([0])).psnr >= 100, "without the plain attack this shows nothing"
    assert read_from(hidden(update_of([0])), RECORDS[:1]).psnr <= 12


def test_a_sum_of_one_record_updates_shows_some_of_them_unless_there_is_noise() -> None:
    """A secure sum is no differential privacy: a unit that one record alone moves gives it away in any sum."""
    total = np.sum([update_of([row]) for row in range(SILOS)], axis=0)
    each = [read_from(total, RECORDS[row : row + 1]).psnr for row in range(SILOS)]
    assert max(each) >= 100 and sum(psnr >= 40 for psnr in each) >= 1
    hidden = np.sum([clipped(update_of([row])) for row in range(SILOS)], axis=0)
    assert max(read_from(hidden, RECORDS[row : row + 1]).psnr for row in range(SILOS)) >= 40
    hidden = hidden + np.random.default_rng(4).normal(0, 1.0, total.size)
    assert max(read_from(hidden, RECORDS[row : row + 1]).psnr for row in range(SILOS)) <= 12


def test_the_input_enters_a_linear_layer_or_not() -> None:
    images = torch.rand(2, 1, 8, 8)
    assert entrance(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), images) == "1"
    assert entrance(nn.Linear(5, 2), torch.rand(2, 5)) == ""
    assert entrance(Net().eval(), images) is None
    assert entrance(nn.Sequential(nn.Flatten(), nn.Linear(64, 3, bias=False)), images) is None
    assert entrance(nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Linear(64, 3)), images) is None


def found_in(**sections: Any) -> dict[str, float]:
    """What a silo finds of one step of a job."""
    local = {
        "steps": 5,
        "batch_size": 1,
        "optimizer": {"name": "sgd", "lr": 1.0},
        **sections.pop("local", {}),
    }
    job = torch_job("abc", local=local, release={"attacks": ["inversion"]}, **sections)
    trainer = TorchTrainer(job, "a", NoisyDigits(0), "cpu")
    received = job.strategy.broadcast(job.strategy.init(trainer.initial()))
    order = Order(version=0, received=received, state={}, tick=lambda *_: None)
    assert job.release is not None
    found = attack(trainer, order, job.release)
    assert trainer.task.__class__ is NoisyDigits
    return {**found.scores, "fails": found.vote == "fail"}


def test_a_silo_sees_what_its_job_gives_away() -> None:
    plain = found_in()
    assert plain["psnr"] >= 60 and plain["cosine"] > 0.999 and plain["fails"]
    assert found_in(privacy=[{"name": "clip", "max_norm": 0.01}])["psnr"] >= 40, "a clip hides nothing"
    assert found_in(strategy={"name": "scaffold"})["fails"]
    assert found_in(strategy={"name": "fedasync"}, rounds={"mode": "async", "total": 2})["fails"]
    assert found_in(codec={"name": "bf16"})["psnr"] >= 40, "nor does rounding"


def test_in_a_sealed_sum_of_one_record_each_something_is_left_unless_there_is_noise() -> None:
    sealed = {
        "combine": {"name": "secure_sum"},
        "rounds": {"total": 2, "min_updates": 3},
    }
    open_sum = found_in(**sealed)
    assert open_sum["psnr"] > 20, "a sum of few one-record batches is no protection"
    whole = found_in(**sealed, local={"batch_size": 32})
    assert whole["psnr"] < open_sum["psnr"]
    noise = {"name": "gaussian", "noise_multiplier": 1.0, "where": "silos"}
    sealed["combine"] = {"name": "secure_sum", "range": 16.0}
    hidden = found_in(**sealed, privacy=[{"name": "clip", "max_norm": 1.0}, noise])
    assert hidden["psnr"] <= 12 and not hidden["fails"]


def test_of_a_step_with_differential_privacy_nothing_comes_out() -> None:
    noise = {"name": "dp_sgd", "max_grad_norm": 1.0, "noise_multiplier": 1.0, "insecure_test_noise_seed": 1}
    found = found_in(privacy=[noise])
    assert found["psnr"] <= 12 and not found["fails"]


def test_a_network_that_begins_otherwise_is_no_vote() -> None:
    from tests.support.blobs import Blobs

    job = torch_job("ab", release={"attacks": ["inversion"]})
    trainer = TorchTrainer(job, "a", Blobs(), "cpu")
    order = Order(version=0, received=trainer.initial(), state={}, tick=lambda *_: None)
    assert job.release is not None
    found = attack(trainer, order, job.release)
    assert found.vote == "none" and "linear layer" in found.why["inversion"]

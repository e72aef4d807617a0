"""Inverting gradients (Geiping et al. 2020), as its authors' own code does it, on what a driver sees: a photograph
comes back from the plain update of one record, and does not from a masked or noised one, nor from a noised sum."""

import secrets
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.privacy.masking import Mask, add_masks
from silos.attacks.statistics import psnr
from tests.support.photo import patches

pytestmark = pytest.mark.slow
breaching = pytest.importorskip("breaching")
torch.set_num_threads(1)

SIDE, LABEL, ITERATIONS, SILOS = 32, 3, 300, 8
PHOTO = torch.from_numpy(patches(1, SIDE)).reshape(1, 3, SIDE, SIDE)


class LeNet(nn.Module):
    """Four convolutions of twelve channels with tangents, as attacks have been tried on since Zhu et al. 2019."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((3, 2), (12, 2), (12, 1), (12, 1))
        layers = [(nn.Conv2d(size, 12, 5, stride, 2), nn.Tanh()) for size, stride in sizes]
        self.body = nn.Sequential(*(each for pair in layers for each in pair))
        self.head = nn.Linear(12 * 8 * 8, 10)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(images).flatten(1))
        return out


@cache
def network() -> LeNet:
    torch.manual_seed(7)
    return LeNet().eval()


def gradient(image: Tensor, label: int = LABEL) -> np.ndarray:
    loss = functional.cross_entropy(network()(image), torch.tensor([label]))
    grads = torch.autograd.grad(loss, list(network().parameters()))
    return torch.cat([each.reshape(-1) for each in grads]).numpy()


def clipped(update: np.ndarray) -> np.ndarray:
    return update * min(1.0, 1.0 / float(np.linalg.norm(update)))


def noised(update: np.ndarray) -> np.ndarray:
    """Clipped to 1, and noise of sigma 1."""
    return clipped(update) + np.random.default_rng(5).normal(0, 1.0, update.size).astype(np.float32)


def masked(update: np.ndarray) -> np.ndarray:
    ring = np.round(clipped(update) * (1 << 15)).astype(np.int64).astype(np.uint32)
    add_masks(ring, [Mask(secrets.token_bytes(32), plus=True)])
    return (ring.astype(np.int32) / (1 << 15)).astype(np.float32)


def read_from(update: np.ndarray) -> float:
    """PSNR of what their attack makes of it. It is told the label, which others recover from the last layer."""
    config = breaching.get_attack_config("invertinggradients")
    config.optim.max_iterations, config.optim.callback = ITERATIONS, ITERATIONS
    setup = {"device": torch.device("cpu"), "dtype": torch.float}
    loss = nn.CrossEntropyLoss()
    attacker = breaching.attacks.prepare_attack(network(), loss, config, setup)
    params = [param.detach() for param in network().parameters()]
    pieces = torch.from_numpy(np.ascontiguousarray(update, np.float32)).split(
        [param.numel() for param in params]
    )
    metadata = SimpleNamespace(shape=(3, SIDE, SIDE), mean=[0.5] * 3, std=[0.5] * 3, modality="vision")
    payload = [{"parameters": params, "buffers": [], "metadata": metadata}]
    told = {"num_data_points": 1, "labels": torch.tensor([LABEL]), "local_hyperparams": None}
    shared = [
        {
            "gradients": [piece.view(param.shape) for piece, param in zip(pieces, params, strict=True)],
            "buffers": None,
            "metadata": told,
        }
    ]
    torch.manual_seed(11)
    found, _ = attacker.reconstruct(payload, shared, {}, dryrun=False)
    image = (found["data"].detach() * 0.5 + 0.5).clamp(0, 1)
    return psnr(image.numpy(), PHOTO.numpy(), 1.0)


def test_a_plain_update_of_one_photograph_gives_it_away() -> None:
    assert read_from(gradient((PHOTO - 0.5) / 0.5)) >= 18


@pytest.mark.parametrize("hidden", [masked, noised])
def test_a_masked_or_noised_one_does_not(hidden: Any) -> None:
    """Which would show nothing, did the plain one not fall (above, same photograph, network and iterations)."""
    assert read_from(hidden(gradient((PHOTO - 0.5) / 0.5))) <= 12


def test_a_noised_sum_does_not_either() -> None:
    images = torch.from_numpy(patches(SILOS, SIDE)).reshape(SILOS, 1, 3, SIDE, SIDE)
    updates = [clipped(gradient((image - 0.5) / 0.5, LABEL)) for image in images]
    assert read_from(noised(np.sum(updates, axis=0))) <= 12

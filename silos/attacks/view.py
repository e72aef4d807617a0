"""What the driver sees of an update of one batch in this job, and the records that can be read from it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from orchestrator.core.random import seed_of
from orchestrator.core.vector import Layout, Parts, Vector
from orchestrator.pipeline import outgoing
from orchestrator.privacy.ring_sum import RingSum
from silos.attacks.inversion import Inverted, best, entrance, inputs_of
from silos.attacks.rows import MOST, gathered
from silos.attacks.wrapped import Watched
from silos.site import Order
from silos.state import Kept
from silos.tasks.task import At, Batch, Task
from silos.trainer import TorchTrainer


def inverted(trainer: TorchTrainer, order: Order) -> Inverted | None:
    """The record that comes out best of one local step of this job, as the driver sees it; None where the closed form
    has no way in.

    Where updates leave in a sealed sum, the driver sees single ones as uniform numbers, in which there is nothing to be
    found, and their sum: batches of this silo stand in for those of the other silos that are in it.
    """
    sample = next(trainer.task.train_batches(At(0, trainer.silo, 0, 0), 2), None)
    if sample is None:
        return None
    name = entrance(trainer.flat.module.eval(), trainer.network.on_device(sample)[0])
    if name is None or not _shared(trainer, name):
        return None
    combine = trainer.job.combine
    sealed = isinstance(combine, RingSum) and combine.protects
    count = max(trainer.job.policy.min_silos, combine.least) if sealed else 1
    steps = [one_step(trainer, order, order.version + number) for number in range(count)]
    seen = [batch for batches, _, _ in steps for batch in batches]
    if not seen:  # differential privacy draws its rows itself, so any may have been in it
        seen = [gathered(trainer.task.train_batches(At(0, trainer.silo, 0, 0), 256), MOST)]
    records = torch.cat([batch[0] for batch in seen]).flatten(1).cpu().numpy()
    total = np.sum([vector for _, vector, _ in steps], axis=0, dtype=np.float32)
    found = [
        best(inputs_of(*_layer(trainer, part, name)), records)
        for part in _parts(trainer, order, steps[0][2].unpack(total), count)
    ]
    return max(found, key=lambda each: each.psnr, default=None)


def _parts(trainer: TorchTrainer, order: Order, parts: Parts, count: int) -> list[Vector]:
    """Those that are changes of the shared parameters, of so many updates together."""
    vectors = [part for part in parts.values() if part.size == trainer.flat.num_shared]
    if trainer.job.strategy.sends_model:
        return [part - np.float32(count) * order.received["params"] for part in vectors]
    return vectors


def one_step(trainer: TorchTrainer, order: Order, version: int) -> tuple[list[Batch], Vector, Layout]:
    """A training of one step; the batches that went into it, and the update as it decodes."""
    job, watched = trainer.job, Watched(trainer.task)
    with on_task(trainer, watched):
        given = replace(order, version=version, state=dict(order.state), num_steps=1, mid_round=None)
        trained = trainer.train(given)
    extra = {name: np.zeros(size, np.float32) for name, size in job.extra_parts.items()}
    parts = {**trained.parts, **extra}
    layout = Layout.of(parts)
    packet = outgoing(job, trainer.silo, version, parts, Kept({}, "codec", layout.size))
    seed = seed_of(job.seed, "codec", version, trainer.silo)
    return watched.seen, job.codec.decode(packet, layout.size, seed), layout


@contextmanager
def on_task(trainer: TorchTrainer, task: Task) -> Iterator[None]:
    """The trainer has another task for a while."""
    ours, trainer.task = trainer.task, task
    try:
        yield
    finally:
        trainer.task = ours


def _shared(trainer: TorchTrainer, name: str) -> bool:
    shared = {each.name for each in trainer.flat.entries if each.kind == "param" and each.shared}
    return {f"{name}.weight".lstrip("."), f"{name}.bias".lstrip(".")} <= shared


def _layer(trainer: TorchTrainer, params: Vector, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    named = trainer.flat.named(torch.from_numpy(np.ascontiguousarray(params)))
    weight, bias = (named[f"{name}.{each}".lstrip(".")].numpy() for each in ("weight", "bias"))
    return weight, bias

"""The reference on Ray: FedAvg with NumPy arrays, as a competent user of Ray would write it in an afternoon.

Flat float32 arrays, one `ray.put` of the model per round, one actor per silo, one `ray.get` of all updates.
No validation, no record, no recovery, no deadline. Run: `python -m benchmarks.ray_fedavg [8x11M ...]`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"  # read when ray is imported: one machine, a cluster of its own
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import numpy as np
import ray
from numpy.typing import NDArray

from benchmarks.measure import shapes_command

Vector = NDArray[np.float32]

WARM_UP_ROUNDS = 2  # the first of a size pays the object store's page faults


@ray.remote(num_cpus=0)
class Silo:
    """One organisation; its "training" adds a constant to every parameter."""

    def __init__(self, step: float, num_examples: int) -> None:
        self.step, self.num_examples = np.float32(step), num_examples

    def train(self, model: Vector) -> tuple[Vector, int]:
        """The delta and the number of examples it rests on."""
        local = model.copy()
        local += self.step
        local -= model
        return local, self.num_examples


def run_round(model: Vector, silos: list[Any]) -> Vector:
    """One round of FedAvg: the next global model."""
    model_ref = ray.put(model)
    updates = ray.get([silo.train.remote(model_ref) for silo in silos])
    total = sum(num_examples for _, num_examples in updates)
    for delta, num_examples in updates:
        model += delta * np.float32(num_examples / total)
    return model


def seconds_per_round(num_silos: int, num_params: int, rounds: int) -> list[float]:
    """Seconds of each of `rounds` rounds, after warm-up, on the Ray that runs or on a local one."""
    with local_ray():
        create = Silo.remote  # type: ignore[attr-defined]
        silos = [create(step=index + 1, num_examples=100) for index in range(num_silos)]
        model, seconds = np.zeros(num_params, np.float32), []
        for _ in range(WARM_UP_ROUNDS + rounds):
            begin = time.perf_counter()
            model = run_round(model, silos)
            seconds.append(time.perf_counter() - begin)
        expected = len(seconds) * (num_silos + 1) / 2
        if not np.allclose((model.min(), model.max()), expected, rtol=1e-4):
            raise AssertionError(f"the mean is wrong: {model.min()} to {model.max()}, not {expected}")
        for silo in silos:
            ray.kill(silo)
    return seconds[WARM_UP_ROUNDS:]


@contextmanager
def local_ray() -> Iterator[None]:
    """A Ray of this process's own, in a short temporary folder; a Ray already connected is used as it is."""
    if ray.is_initialized():
        yield
        return
    folder = tempfile.mkdtemp(prefix="rayb", dir="/tmp")  # socket paths are limited to 107 bytes
    try:
        ray.init(address="local", include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    shapes_command("FedAvg on Ray with NumPy arrays", seconds_per_round, session=local_ray)

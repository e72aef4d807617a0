"""The limit: how fast this machine could do a federated round if nothing but the arithmetic cost anything.

Forked processes over shared memory, no messages, no copies that the work does not need. In a round each
silo loads the model into a buffer of its own and adds to it in place (the "training"); then the parent
takes one in-place mean over the silos' buffers, single-threaded, in blocks that fit a core's cache.
Run: `python -m benchmarks.limit [8x11M ...] [--rounds 10]`. Call it before starting threads: it forks.
"""

from __future__ import annotations

import mmap
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from multiprocessing.synchronize import Semaphore

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import shapes_command

Vector = NDArray[np.float32]

BLOCK = (
    128 * 1024
)  # float32s: 512 KiB, half of a core's second-level cache; larger and smaller were no faster
PATIENCE_S = 120.0  # nobody waits longer for the other side
WARM_UP_ROUNDS = 2  # the first touches every page once


def seconds_per_round(num_silos: int, num_params: int, rounds: int) -> list[float]:
    """Seconds of each of `rounds` rounds, after warm-up; raises AssertionError when the result is wrong."""
    model, *buffers = (_shared_vector(num_params) for _ in range(num_silos + 1))
    model[:] = _initial(0, num_params)
    fork = multiprocessing.get_context("fork")
    go, done = [fork.Semaphore(0) for _ in buffers], fork.Semaphore(0)
    silos = [
        fork.Process(target=_silo, args=(model, buffer, index + 1, go[index], done), daemon=True)
        for index, buffer in enumerate(buffers)
    ]
    try:
        for silo in silos:
            silo.start()
        seconds = [_timed_round(model, buffers, go, done) for _ in range(WARM_UP_ROUNDS + rounds)]
    finally:
        for silo in silos:
            silo.terminate()
            silo.join()
    _check(model, len(seconds) * (num_silos + 1) / 2)
    return seconds[WARM_UP_ROUNDS:]


def _silo(model: Vector, own: Vector, step: float, go: Semaphore, done: Semaphore) -> None:
    """A silo's process: load the model, "train" by adding `step` in place, say so; until terminated."""
    while go.acquire(timeout=PATIENCE_S):
        np.copyto(own, model)
        own += np.float32(step)
        done.release()


def _timed_round(model: Vector, buffers: Sequence[Vector], go: Sequence[Semaphore], done: Semaphore) -> float:
    """One round, in seconds."""
    begin = time.perf_counter()
    for semaphore in go:
        semaphore.release()
    for _ in go:
        if not done.acquire(timeout=PATIENCE_S):
            raise TimeoutError(f"a silo did not finish within {PATIENCE_S:.0f} s")
    _mean_into(model, buffers)
    return time.perf_counter() - begin


def _mean_into(model: Vector, buffers: Sequence[Vector]) -> None:
    """Write the mean of the buffers into the model; every value is read and written in main memory once."""
    scale = np.float32(1 / len(buffers))
    for block in _blocks(model.size):
        out = model[block]
        out[:] = buffers[0][block]
        for buffer in buffers[1:]:
            out += buffer[block]
        out *= scale


def _blocks(size: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK))


def _shared_vector(size: int) -> Vector:
    """A vector in anonymous shared memory: forked children see it, and nothing is left behind."""
    return np.frombuffer(mmap.mmap(-1, 4 * size), np.float32)


def _initial(start: int, stop: int) -> Vector:
    """Values that differ from place to place, so that a misplaced block is noticed."""
    return (np.arange(start, stop) % 7).astype(np.float32)


def _check(model: Vector, grown: float) -> None:
    """Every value must have grown by the mean of the silos' steps in every round."""
    for block in _blocks(model.size):
        if not np.allclose(model[block], _initial(block.start, block.stop) + grown, rtol=1e-4):
            raise AssertionError(f"the mean is wrong in values {block.start} to {block.stop}")


if __name__ == "__main__":
    shapes_command("The limit: forked processes over shared memory", seconds_per_round)

"""Digests of a version, from its checkpoint."""

import hashlib

import numpy as np

from orchestrator.core.protocols import State
from orchestrator.core.vector import digest_of
from orchestrator.job import Job
from orchestrator.shares import without_shares


def broadcast_digest(job: Job, state: State) -> str:
    """Of what the silos are sent of this version: what their receipts say that they received."""
    return digest_of(job.strategy.broadcast(without_shares(state)))


def parameters_digest(state: State) -> str:
    """As in `RunClosed`: SHA-256 of the shared parameters and buffers, little-endian float32, in layout order."""
    digest = hashlib.sha256()
    for name in ("params", "buffers"):
        if name in state:
            digest.update(np.ascontiguousarray(state[name], "<f4").data)
    return digest.hexdigest()

"""Checkpoints set aside for MLflow, so that the run may delete its own while the server is away."""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.checkpoints import MANIFEST, STATE, Checkpoints, Unusable, checkpoint_name
from orchestrator.disk import OsFileSystem
from orchestrator.run_key import run_key
from silos.weights import parameters_digest

State = Mapping[str, NDArray[np.float32]]
FOLDER = "tracking"


def keep(run_dir: Path, version: int) -> None:
    """Links a checkpoint's files into ``tracking/``: no copy, and no harm if the checkpoint is gone already."""
    name = checkpoint_name(version)
    source, final = run_dir / "checkpoints" / name, run_dir / FOLDER / name
    unfinished = run_dir / FOLDER / f"tmp-{name}"
    if final.exists():
        return
    shutil.rmtree(unfinished, ignore_errors=True)
    with suppress(OSError):
        unfinished.mkdir(parents=True)
        for file in (STATE, MANIFEST):
            os.link(source / file, unfinished / file)
        unfinished.rename(final)


def load(run_dir: Path, version: int) -> State:
    """The verified vectors of a version: ``params``, ``buffers`` and the strategy's own. Raises Unusable."""
    key = run_key(run_dir)
    try:
        return Checkpoints(run_dir / "checkpoints", OsFileSystem(), key).load(version, {})[0]
    except Unusable:
        return Checkpoints(run_dir / FOLDER, OsFileSystem(), key).load(version, {})[0]


def digest_of(run_dir: Path, version: int) -> str | None:
    """SHA-256 of a version's parameters; None where they are no longer there."""
    try:
        return parameters_digest(load(run_dir, version))
    except Unusable:
        return None


def release(run_dir: Path, version: int) -> None:
    """Removes what `keep` linked."""
    shutil.rmtree(run_dir / FOLDER / checkpoint_name(version), ignore_errors=True)
    with suppress(OSError):
        (run_dir / FOLDER).rmdir()

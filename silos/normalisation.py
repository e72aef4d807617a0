"""Batch normalisation, which no differential privacy goes with: what it makes of a record depends on the others."""

import math

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from orchestrator.core.errors import BadJob
from orchestrator.job import Job
from silos.flat_model import FlatModel
from silos.roles import Globs, entries_of


def unmixed(module: nn.Module, job: Job) -> nn.Module:
    """The job's model as it is trained: with ``dp_sgd`` and ``batch_norm: replace`` without batch normalisation."""
    if job.dp_sgd is None:
        return module
    module = _out_of_place(module)
    if job.dp_sgd.batch_norm == "refuse":
        return module
    frozen = ("*",) if job.adapters is not None else job.frozen
    return group_normalised(module, Globs(job.shared, job.private, frozen, job.unfreeze))


def group_normalised(module: nn.Module, globs: Globs) -> nn.Module:
    """The module with group normalisation (Wu and He 2018, arXiv 1803.08494: 32 groups, or as many as divide the
    channels) in the place of every batch normalisation that is not frozen. Draws nothing."""
    frozen = {entry.name for entry in entries_of(module, globs) if entry.frozen}
    for name, each in list(module.named_modules()):
        if isinstance(each, _BatchNorm) and f"{name}.running_mean" not in frozen:
            channels = each.num_features
            group = nn.GroupNorm(math.gcd(32, channels), channels, each.eps, each.affine)
            if not name:
                return group
            path, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(path), leaf, group)
    return module


def _out_of_place(module: nn.Module) -> nn.Module:
    """The module, none of whose layers overwrites its input: outputs of others are looked at later."""
    for each in module.modules():
        if getattr(each, "inplace", False):
            each.inplace = False  # type: ignore[assignment]
    return module


def check_unmixed(flat: FlatModel) -> None:
    """Raises `BadJob` for a model that mixes the records of a batch, or keeps statistics of them."""
    frozen = {entry.name for entry in flat.entries if entry.frozen}
    for name, each in flat.module.named_modules():
        mixes = isinstance(each, _BatchNorm) or (isinstance(each, _NormBase) and each.track_running_stats)
        if mixes and f"{name}.running_mean" not in frozen:
            raise BadJob(
                f"privacy: the layer '{name}' ({type(each).__name__}) makes one record's gradient depend on others, "
                "and its statistics are of private data; give batch_norm: replace, a model with group normalisation, "
                "or freeze the layer"
            )

"""A version of a run as a torch module, without any data: the job's architecture, filled by name."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.checkpoints import State
from orchestrator.job import Job
from orchestrator.starting import StartingWeights

if TYPE_CHECKING:
    from torch import nn


class NoModel(Exception):
    """Why a version cannot be made a model; another try would end in the same way."""


def module_of(
    job: Job, model: Mapping[str, Any], state: State, start: StartingWeights | None = None
) -> "nn.Module":
    """The job's model with the shared parameters of ``state``, in evaluation mode.

    ``model``: ``entries`` and ``input_shape`` as in `ModelReady`. ``start``: what the run started from. Private
    parameters and integer buffers have the values that the job's seed, or ``start``, gives them, and so have frozen
    ones. Raises NoModel where the vectors do not fit.
    """
    import torch

    from silos.adapters import adapted
    from silos.normalisation import unmixed
    from silos.tasks.build import model_of

    torch.manual_seed(job.seed)
    plain = model_of(job.task, tuple(model["input_shape"]))
    module = unmixed(adapted(plain, job.adapters, job.seed), job)
    tensors = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    with torch.no_grad():
        if start is not None:
            fitting = start.fitting(model["entries"])
            names = [{"name": name, "shape": shape} for name, shape in fitting.layout]
            _fill(tensors, names, torch.from_numpy(fitting.values))
        for kind, part in (("param", "params"), ("buffer", "buffers")):
            shared = [each for each in model["entries"] if each["kind"] == kind and each["shared"]]
            _fill(tensors, shared, torch.from_numpy(np.array(state.get(part, np.empty(0, np.float32)))))
    return module.eval()


def _fill(tensors: Mapping[str, Any], entries: list[dict[str, Any]], flat: Any) -> None:
    """Copies the flat vector into the named tensors, in the order of the entries."""
    sizes = [int(np.prod(each["shape"], dtype=np.int64)) for each in entries]
    if sum(sizes) != flat.numel():
        raise NoModel(f"{flat.numel()} numbers in the checkpoint, {sum(sizes)} in the model")
    for each, values in zip(entries, flat.split(sizes), strict=True):
        if each["name"] not in tensors or list(tensors[each["name"]].shape) != list(each["shape"]):
            raise NoModel(f"the job's model has no '{each['name']}' of shape {each['shape']}")
        tensors[each["name"]].copy_(values.view(each["shape"]))

"""Low-rank adapters around layers of a model, by `peft`."""

import fnmatch
import importlib
import re
from typing import Any

import torch
from torch import nn

from orchestrator.core.errors import BadInput, BadJob
from orchestrator.core.random import seed_of
from orchestrator.transfer import Adapters

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def adapted(module: nn.Module, spec: Adapters | None, seed: int) -> nn.Module:
    """The module with the job's adapters, which change nothing yet: ``B`` is zero. What is not an adapter is left as
    it is, trained or frozen. Raises `BadJob`."""
    if spec is None:
        return module
    wanted = {name: param.requires_grad for name, param in module.named_parameters()}
    targets = "|".join(re.escape(name) for name in _targets(module, spec))
    peft = _peft()
    config = peft.LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules=targets)
    torch.manual_seed(seed_of(seed, "adapters"))
    made: nn.Module = peft.inject_adapter_in_model(config, module)
    for name, param in made.named_parameters():
        if _is_adapter(name):
            param.requires_grad_(spec.trains_a or ".lora_A." not in name)
        else:
            param.requires_grad_(wanted[name.replace(".base_layer.", ".")])
    return made


def merged(module: nn.Module, spec: Adapters | None) -> nn.Module:
    """The plain module that computes the same: each adapter is added to its layer's weight."""
    if spec is None:
        return module
    tuners = importlib.import_module("peft.tuners.tuners_utils")
    for name, layer in list(module.named_modules()):
        if isinstance(layer, tuners.BaseTunerLayer):
            layer.merge()
            path, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(path), leaf, layer.get_base_layer())
    return module


def _is_adapter(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _targets(module: nn.Module, spec: Adapters) -> list[str]:
    layers = [name for name, layer in module.named_modules() if name and isinstance(layer, _LAYERS)]
    fit = [name for name in layers if _alone(module, name)]
    for glob in spec.targets:
        if not fnmatch.filter(fit, glob):
            raise BadJob(
                f"adapters.targets: '{glob}' matches no linear or convolutional layer; there are: "
                f"{', '.join(fit[:8])}"
            )
    return [name for name in fit if any(fnmatch.fnmatchcase(name, glob) for glob in spec.targets)]


def _alone(module: nn.Module, name: str) -> bool:
    """Attention reads the weight of its output layer itself, and would pass an adapter by."""
    path = name.rpartition(".")[0]
    return not isinstance(module.get_submodule(path), nn.MultiheadAttention)


def _peft() -> Any:
    try:
        return importlib.import_module("peft")
    except ModuleNotFoundError:
        remedy = "adapters: this machine has no peft; pip install 'siloray[adapters]'"
        raise BadInput(remedy, remedy) from None

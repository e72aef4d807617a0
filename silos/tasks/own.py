"""A user's own classes: imported only when the organisation allows their module."""

import importlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.core.errors import BadInput, BadJob
from silos.policy import code_allowed


def make(name: str, allow_code: Iterable[str], *args: Any, **options: Any) -> Any:
    """Import ``module:Class`` and call it; `BadInput` when it is not allowed, not there or fails."""
    module, _, attribute = name.partition(":")
    if not code_allowed(module, allow_code):
        raise BadJob(f"{name}: this silo's policy.allow_code does not name '{module}'")
    return call(name, _load(module, attribute), *args, **options)


def call(name: str, maker: Any, *args: Any, **options: Any) -> Any:
    """Call a class by a name of the job; whatever it raises becomes one line."""
    try:
        return maker(*args, **options)
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"{name}: {one_line(error)}", f"{name}: {type(error).__name__}") from error


def one_line(error: Exception) -> str:
    """Kind and first line of an exception."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


def _load(module: str, attribute: str) -> Any:
    try:
        return getattr(importlib.import_module(module), attribute)
    except AttributeError:
        raise BadJob(f"{module}: has no '{attribute}'") from None
    except Exception as error:
        what = f"{module}: cannot be imported: "
        raise BadInput(what + one_line(error), what + type(error).__name__) from error


def tried(name: str, model: Any, inputs: Tensor, wanted: tuple[int, ...]) -> nn.Module:
    """The model itself, once a try on ``inputs`` (two rows) gave an output of the wanted shape."""
    if not isinstance(model, nn.Module):
        raise BadJob(f"{name}: gave {type(model).__name__}, expected a torch.nn.Module")
    mode = model.training
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        output = logits(call(name, model.eval(), inputs))
    model.train(mode)
    if tuple(output.shape) != wanted:
        raise BadJob(f"{name}: its output for two rows has shape {tuple(output.shape)}, expected {wanted}")
    return model


def logits(output: Any) -> Tensor:
    """The main output of a model that returns several (torchvision's with auxiliary heads)."""
    main = output[0] if isinstance(output, tuple) else output
    if not isinstance(main, Tensor):
        raise BadJob(f"the model's output is {type(main).__name__}, expected a tensor")
    return main

"""A torch module on flat memory: parameters and gradients are views of two vectors.

Delta, norm, proximal pull and control correction become one operation each, and any torch optimizer works on
the one flat parameter. Shared parameters come first, so that what is shared is a slice.
"""

import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from orchestrator.core.errors import BadJob
from orchestrator.core.protocols import PrivateLayers
from orchestrator.core.vector import Parts, Vector

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


class Entry(NamedTuple):
    """One tensor of the model."""

    name: str
    shape: tuple[int, ...]
    kind: str
    """``param`` or ``buffer`` (float buffers only: integer buffers are counters and stay at the silo)."""
    shared: bool


class FlatModel:
    """``vector`` holds the parameters, shared ones first; ``gradient`` lies beside it; ``buffers`` holds the
    shared float buffers."""

    def __init__(
        self,
        module: nn.Module,
        shared: Sequence[str] = ("*",),
        private: Sequence[str] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        self.module = module.to(device)
        self.entries = _entries(module, shared, private)
        params, buffers = dict(module.named_parameters()), dict(module.named_buffers())
        ours = [params[e.name] for e in self.entries if e.kind == "param" and e.shared]
        own = [params[e.name] for e in self.entries if e.kind == "param" and not e.shared]
        self.num_shared = sum(p.numel() for p in ours)
        self.vector = _flatten([*ours, *own], device)
        self.gradient = torch.zeros_like(self.vector)
        _alias(ours + own, self.vector, self.gradient)
        self.buffers = _flatten(
            [buffers[e.name] for e in self.entries if e.kind == "buffer" and e.shared], device
        )
        _alias_buffers(
            module, [e.name for e in self.entries if e.kind == "buffer" and e.shared], self.buffers
        )
        self.parameter = nn.Parameter(self.vector)
        self.parameter.grad = self.gradient

    @property
    def shared(self) -> Tensor:
        """The shared parameters, a view."""
        return self.vector[: self.num_shared]

    @property
    def private(self) -> Tensor:
        """The silo's own parameters, a view."""
        return self.vector[self.num_shared :]

    @property
    def schema_digest(self) -> str:
        """Digest of names, shapes, kinds and order of what is shared."""
        text = json.dumps([entry for entry in self.entries if entry.shared])
        return hashlib.sha256(text.encode()).hexdigest()

    def load(self, parts: Mapping[str, Tensor]) -> None:
        """Copy received parameters and buffers into the model; raises ValueError for another size."""
        with torch.no_grad():
            self.shared.copy_(_sized("params", parts["params"], self.num_shared))
            if self.buffers.numel():
                self.buffers.copy_(_sized("buffers", parts["buffers"], self.buffers.numel()))

    def parts(self) -> Parts:
        """Copies of the shared parameters and buffers."""
        parts = {"params": _numpy(self.shared)}
        return {**parts, "buffers": _numpy(self.buffers)} if self.buffers.numel() else parts

    def parameter_of(self, trains: str) -> nn.Parameter:
        """``all`` parameters, the ``shared`` ones or the silo's ``own``, for an optimizer."""
        if trains == "all":
            return self.parameter
        part = slice(None, self.num_shared) if trains == "shared" else slice(self.num_shared, None)
        parameter = nn.Parameter(self.vector[part])
        parameter.grad = self.gradient[part]
        return parameter

    def clear_gradient(self) -> None:
        self.gradient.zero_()


def layers(module: nn.Module, kind: PrivateLayers) -> tuple[str, ...]:
    """Globs over the names of what belongs to layers of this kind; none where the module has no such layer."""
    if kind == "none":
        return ()
    if kind == "norm":
        return tuple(f"{name}.*" for name, each in module.named_modules() if isinstance(each, _NORMS))
    with_parameters = [
        name
        for name, each in module.named_modules()
        if next(each.parameters(recurse=False), None) is not None
    ]
    return tuple(f"{name}.*" for name in with_parameters[-1:])


def private_buffers(model: FlatModel) -> dict[str, Tensor]:
    """Buffers that stay at the silo: private ones and integer counters."""
    shared = {entry.name for entry in model.entries if entry.kind == "buffer" and entry.shared}
    return {name: buffer for name, buffer in model.module.named_buffers() if name not in shared}


def _entries(module: nn.Module, shared: Sequence[str], private: Sequence[str]) -> list[Entry]:
    named = [(n, p, "param") for n, p in module.named_parameters() if p.requires_grad]
    named += [(n, b, "buffer") for n, b in module.named_buffers() if b.is_floating_point()]
    names = [name for name, _, _ in named]
    for glob in (*shared, *private):
        if not fnmatch.filter(names, glob):
            raise BadJob(
                f"'{glob}' (shared or private) matches no parameter; there are: {', '.join(names[:8])}"
            )
    entries = [Entry(n, tuple(t.shape), kind, _is_shared(n, shared, private)) for n, t, kind in named]
    if not any(entry.shared and entry.kind == "param" for entry in entries):
        raise BadJob("'shared' and 'private' leave no parameter to train together")
    return sorted(entries, key=lambda entry: (entry.kind == "buffer", not entry.shared))


def _is_shared(name: str, shared: Sequence[str], private: Sequence[str]) -> bool:
    return _any(name, shared) and not _any(name, private)


def _any(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def _flatten(tensors: Sequence[Tensor], device: torch.device | str) -> Tensor:
    flat = torch.empty(sum(t.numel() for t in tensors), dtype=torch.float32, device=device)
    start = 0
    for tensor in tensors:
        flat[start : start + tensor.numel()] = tensor.detach().reshape(-1).to(flat)
        start += tensor.numel()
    return flat


def _alias(params: Sequence[nn.Parameter], vector: Tensor, gradient: Tensor) -> None:
    start = 0
    for param in params:
        stop = start + param.numel()
        shape = param.shape
        param.data = vector[start:stop].view(shape)
        param.grad = gradient[start:stop].view(shape)
        start = stop


def _alias_buffers(module: nn.Module, names: Sequence[str], flat: Tensor) -> None:
    start = 0
    for name in names:
        path, _, leaf = name.rpartition(".")
        owner: Any = module.get_submodule(path)
        buffer = owner._buffers[leaf]
        stop = start + buffer.numel()
        owner._buffers[leaf] = flat[start:stop].view(buffer.shape)
        start = stop


def _sized(name: str, tensor: Tensor, size: int) -> Tensor:
    if tensor.numel() != size:
        raise ValueError(f"{name}: {tensor.numel()} elements received, the model has {size}")
    return tensor


def _numpy(tensor: Tensor) -> Vector:
    vector: Vector = tensor.detach().to("cpu", copy=True).numpy()
    return vector

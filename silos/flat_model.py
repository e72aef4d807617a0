"""A torch module on flat memory: parameters and gradients are views of two vectors.

Delta, norm, proximal pull and control correction become one operation each, and any torch optimizer works on
the one flat parameter. Shared parameters come first, so that what is shared is a slice; and of these those that
are frozen until later, so that what is trained is a slice, too. Frozen ones lie outside.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from orchestrator.core.protocols import PrivateLayers
from orchestrator.core.vector import Parts, Vector
from silos.roles import Globs, entries_of

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


class FlatModel:
    """``vector`` holds the parameters, shared ones first; ``gradient`` lies beside it; ``buffers`` holds the
    shared float buffers."""

    def __init__(
        self,
        module: nn.Module,
        shared: Sequence[str] = ("*",),
        private: Sequence[str] = (),
        device: torch.device | str = "cpu",
        frozen: Sequence[str] = (),
        unfreeze: Mapping[int, Sequence[str]] | None = None,
    ) -> None:
        """The four lists of globs: see `silos.roles.Globs`."""
        self.module = module.to(device)
        self.entries = entries_of(module, Globs(shared, private, frozen, unfreeze or {}))
        params, buffers = dict(module.named_parameters()), dict(module.named_buffers())
        ours = [params[e.name] for e in self.entries if e.kind == "param" and e.shared]
        own = [params[e.name] for e in self.entries if e.kind == "param" and not e.shared and not e.frozen]
        self.num_shared = sum(p.numel() for p in ours)
        self.vector = _flatten([*ours, *own], device)
        self.gradient = torch.zeros_like(self.vector)
        _alias(ours + own, self.vector, self.gradient)
        shared_buffers = [e.name for e in self.entries if e.kind == "buffer" and e.shared]
        self.buffers = _flatten([buffers[name] for name in shared_buffers], device)
        _alias_buffers(module, shared_buffers, self.buffers)
        self.parameter = nn.Parameter(self.vector)
        self.parameter.grad = self.gradient
        self._frozen_digest: str | None = None
        self._freeze(params)

    def _freeze(self, params: Mapping[str, nn.Parameter]) -> None:
        for entry in self.entries:
            if entry.frozen and entry.kind == "param":
                param = params[entry.name]
                param.data = param.data.float()
                param.requires_grad_(False)

    @property
    def shared(self) -> Tensor:
        """The shared parameters, a view."""
        return self.vector[: self.num_shared]

    @property
    def private(self) -> Tensor:
        """The silo's own parameters, a view."""
        return self.vector[self.num_shared :]

    @property
    def num_parameters(self) -> int:
        """Of the whole model."""
        return sum(math.prod(entry.shape) for entry in self.entries if entry.kind == "param")

    @property
    def schema_digest(self) -> str:
        """Digest of names, shapes, kinds and order of what is shared; and of the frozen tensors' numbers, which every
        silo must have alike."""
        shared: list[Any] = [entry for entry in self.entries if entry.shared]
        if self._frozen_digest is None:
            self._frozen_digest = digest_of(self.frozen_tensors())
        if self._frozen_digest:
            shared.append(self._frozen_digest)
        return hashlib.sha256(json.dumps(shared).encode()).hexdigest()

    def frozen_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What is neither trained nor sent, by name."""
        tensors = self.tensors()
        return ((entry.name, tensors[entry.name]) for entry in self.entries if entry.frozen)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name."""
        return {**dict(self.module.named_buffers()), **dict(self.module.named_parameters())}

    def named(self, point: Tensor) -> dict[str, Tensor]:
        """The shared parameters at another point, by name: views of it."""
        shared = [entry for entry in self.entries if entry.kind == "param" and entry.shared]
        pieces = point.split([math.prod(entry.shape) for entry in shared])
        return {entry.name: piece.view(entry.shape) for entry, piece in zip(shared, pieces, strict=True)}

    def state(self) -> dict[str, NDArray[Any]]:
        """A copy of the module's whole state, by name; NumPy has no bfloat16."""
        state: Mapping[str, Tensor] = self.module.state_dict()
        whole = {name: t.float() if t.dtype == torch.bfloat16 else t for name, t in state.items()}
        return {name: t.detach().to("cpu", copy=True).numpy() for name, t in whole.items()}

    def load(self, parts: Mapping[str, Tensor]) -> None:
        """Copy received parameters and buffers into the model; raises ValueError for another size."""
        with torch.no_grad():
            self.shared.copy_(_sized("params", parts["params"], self.num_shared))
            if self.buffers.numel():
                self.buffers.copy_(_sized("buffers", parts["buffers"], self.buffers.numel()))

    def load_tensors(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Copy numbers into tensors, by name. Raises ValueError for one that the model does not have."""
        tensors = self.tensors()
        for name, array in weights.items():
            if name not in tensors or tuple(tensors[name].shape) != array.shape:
                raise ValueError(f"'{name}' of shape {list(array.shape)}")
        with torch.no_grad():
            for name, array in weights.items():
                tensors[name].copy_(torch.from_numpy(np.array(array)))
        self._frozen_digest = None

    def parts(self) -> Parts:
        """Copies of the shared parameters and buffers."""
        parts = {"params": _numpy(self.shared)}
        return {**parts, "buffers": _numpy(self.buffers)} if self.buffers.numel() else parts

    def parameter_of(self, trains: str, version: int = 0) -> nn.Parameter:
        """``all`` parameters, the ``shared`` ones or the silo's ``own``, for an optimizer; without those that are
        frozen in this version."""
        start = self.num_held(version)
        if trains == "all" and not start:
            return self.parameter
        parts = {"all": slice(start, None), "shared": slice(start, self.num_shared)}
        part = parts.get(trains, slice(self.num_shared, None))
        parameter = nn.Parameter(self.vector[part])
        parameter.grad = self.gradient[part]
        return parameter

    def num_held(self, version: int) -> int:
        """Numbers at the beginning of the vector that are frozen in this version."""
        held = (e for e in self.entries if e.kind == "param" and e.since > version)
        return sum(math.prod(entry.shape) for entry in held)

    def freeze_for(self, version: int, trains: str = "all") -> None:
        """Before a training on this version: what is frozen has no gradient, nor has what is not trained (as for
        `parameter_of`), and layers with frozen statistics leave them as they are. Call it when the module is in
        training mode."""
        params = dict(self.module.named_parameters())
        still = {e.name for e in self.entries if e.frozen or e.since > version}
        for entry in self.entries:
            if entry.kind == "param" and not entry.frozen:
                trained = trains == "all" or entry.shared == (trains == "shared")
                params[entry.name].requires_grad_(trained and entry.name not in still)
        for path, module in self.module.named_modules():
            if any(_joined(path, name) in still for name, _ in module.named_buffers(recurse=False)):
                module.eval()

    def clear_gradient(self) -> None:
        self.gradient.zero_()


def layers(module: nn.Module, kind: PrivateLayers) -> tuple[str, ...]:
    """Globs over the names of what belongs to layers of this kind; none where the module has no such layer."""
    if kind == "none":
        return ()
    if kind == "norm":
        norms = [(name, each) for name, each in module.named_modules() if isinstance(each, _NORMS)]
        return tuple(f"{name}.*" for name, each in norms if each.state_dict())
    with_parameters = [
        name
        for name, each in module.named_modules()
        if next(each.parameters(recurse=False), None) is not None
    ]
    return tuple(f"{name}.*" for name in with_parameters[-1:])


def private_buffers(model: FlatModel) -> dict[str, Tensor]:
    """Buffers that stay at the silo: private ones and integer counters."""
    others = {
        entry.name for entry in model.entries if entry.kind == "buffer" and (entry.shared or entry.frozen)
    }
    return {name: buffer for name, buffer in model.module.named_buffers() if name not in others}


def digest_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of names, shapes and float32 numbers; empty for none."""
    digest, some = hashlib.sha256(), False
    for name, tensor in tensors:
        array, some = tensor.detach().float().cpu().contiguous().numpy(), True
        digest.update(f"{name} {array.shape}\0".encode())
        digest.update(array.astype("<f4", copy=False).data)
    return digest.hexdigest() if some else ""


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


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

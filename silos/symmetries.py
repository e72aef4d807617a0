"""Which units of a torch module may change places, found by following them through the module's graph.

Two tensors that are added have their units in the same order, so a residual stream is one group; behind a flatten a
channel is a block of inputs. Inputs and outputs of the module keep their order, and so do channels where the graph
says more about them than that they are permuted (grouped convolutions, concatenations).
"""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod
from typing import Any

from torch import fx, nn

from orchestrator.core.errors import BadJob
from orchestrator.core.symmetry import Axis, Symmetry
from silos.flat_model import FlatModel

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_UNIT_BY_UNIT = (
    *(nn.Identity, nn.Flatten, nn.modules.dropout._DropoutNd, nn.Upsample),
    *(nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.AvgPool2d),
    *(nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
    *(nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softsign, nn.Threshold),
)
"""Layers that treat every unit alike, and none together with another."""
_FUNCTIONS = {
    *("relu", "relu_", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "softplus", "sigmoid"),
    *("tanh", "hardtanh", "hardswish", "hardsigmoid", "dropout", "dropout1d", "dropout2d", "dropout3d"),
    *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "boolean_dispatch", "interpolate"),
    *("flatten", "stochastic_depth", "clamp", "contiguous", "mean", "neg", "float", "to", "squeeze", "abs"),
}
"""Their like as functions and methods; of ``flatten``, ``mean`` and ``squeeze`` it holds from dimension 1 or 2 on."""
_FLATTEN = {"flatten", "view", "reshape", "mean", "squeeze"}
_JOINS = {"add", "add_", "iadd", "sub", "isub", "mul", "mul_", "imul", "truediv"}
"""Element by element: units of both sides correspond."""
_SHAPES = {"size", "getattr", "getitem", "dim", "floordiv"}
"""What they give is a number or a shape."""
_TRACING = threading.Lock()
"""Tracing replaces how torch calls modules, in the whole process: other silos in threads of it go on training."""


@dataclass(eq=False)
class _Group:
    """Units in one order, as far as the graph has been followed."""

    size: int | None = None
    fixed: bool = False
    axes: list[tuple[str, int]] = field(default_factory=list)
    """Names of tensors, and the axis there."""


def symmetries_of(flat: FlatModel) -> tuple[Symmetry, ...]:
    """Groups of shared units, in the order in which the graph meets them. Raises `BadJob` for a module that cannot be
    followed, or that has no such units."""
    single = next(flat.module.children(), None) is None
    return _found(flat, [] if single else _Walk(flat.module).groups())


def _found(flat: FlatModel, groups: Iterable[_Group]) -> tuple[Symmetry, ...]:
    places, shapes = _places(flat), {entry.name: entry.shape for entry in flat.entries}
    made = []
    for group in groups:
        names = {name for name, _ in group.axes}
        if group.size is not None and group.size > 1 and not group.fixed and names <= places.keys():
            axes = [
                Axis(start, shapes[name], axis, shapes[name][axis] // group.size, buffer)
                for name, axis in group.axes
                for start, buffer in [places[name]]
            ]
            made.append(Symmetry(group.size, tuple(axes)))
    if not made:
        raise BadJob(
            "strategy fedma: the model has no hidden units that are shared, so nothing can be matched"
        )
    return tuple(made)


def _places(flat: FlatModel) -> dict[str, tuple[int, bool]]:
    """Of every shared tensor: where it starts, and whether it is a buffer."""
    places = {}
    for kind in ("param", "buffer"):
        shared = [entry for entry in flat.entries if entry.kind == kind and entry.shared]
        starts = accumulate((prod(entry.shape) for entry in shared), initial=0)
        places |= {
            entry.name: (start, kind == "buffer") for entry, start in zip(shared, starts, strict=False)
        }
    return places


class _Tracer(fx.Tracer):
    """Knows where it is when the module turns out not to be traceable."""

    def __init__(self) -> None:
        super().__init__()
        self.where, self._thread = "", threading.get_ident()

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        self.where = self.path_of_module(m)
        return super().call_module(m, forward, args, kwargs)


class _Walk:
    """Through the graph of a module, node by node."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._graph = module, _traced(module)
        names = [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
        first = {id(tensor): name for name, tensor in reversed(names)}
        self._name = {name: first[id(tensor)] for name, tensor in names}
        """Of a tensor that occurs twice, the name that it has in the flat model."""
        self._groups: list[_Group] = []
        self._of: dict[fx.Node, _Group] = {}
        self._wide: set[fx.Node] = set()
        """Where the units are channels, with further axes behind them."""
        self._merged: dict[_Group, _Group] = {}

    def groups(self) -> list[_Group]:
        for node in self._graph.nodes:
            self._visit(node)
            if self._is_wide(node):
                self._wide.add(node)
        self._tie()
        return [group for group in self._groups if group not in self._merged]

    def _visit(self, node: fx.Node) -> None:
        match node.op:
            case "placeholder":
                self._of[node] = self._new(None, fixed=True)
            case "output":
                for each in self._inputs(node):
                    each.fixed = True
            case "call_module":
                self._layer(node, self._module.get_submodule(str(node.target)))
            case "call_function" | "call_method":
                self._function(node)
            case _:
                raise _unknown(f"'{node.target}', a tensor of its own")

    def _is_wide(self, node: fx.Node) -> bool:
        layer = self._module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, _CONVOLUTIONS):
            return True
        flat = isinstance(layer, nn.Linear | nn.Flatten) or _name_of(node) in _FLATTEN
        return not flat and any(each in self._wide for each in node.all_input_nodes)

    def _layer(self, node: fx.Node, layer: nn.Module) -> None:
        before = self._single(node)
        if isinstance(layer, nn.Linear | nn.LayerNorm):
            before.fixed |= any(each in self._wide for each in node.all_input_nodes)
        if isinstance(layer, nn.Linear):
            self._behind_weights(node, before, layer.in_features, layer.out_features)
        elif isinstance(layer, _CONVOLUTIONS) and layer.groups == 1:
            self._behind_weights(node, before, layer.in_channels, layer.out_channels)
        elif isinstance(layer, _CONVOLUTIONS) and layer.groups == layer.in_channels == layer.out_channels:
            self._of[node] = self._carry(node, before, layer, layer.out_channels)
        elif isinstance(layer, _CONVOLUTIONS):
            before.fixed = True
            self._of[node] = self._new(layer.out_channels, fixed=True)
        elif isinstance(layer, nn.modules.batchnorm._NormBase):
            self._of[node] = self._carry(node, before, layer, layer.num_features)
        elif isinstance(layer, nn.GroupNorm | nn.LayerNorm):
            self._of[node] = self._normed(node, before, layer)
        elif isinstance(layer, nn.PReLU):
            units = layer.num_parameters
            self._of[node] = before if units == 1 else self._carry(node, before, layer, units)
        elif isinstance(layer, _UNIT_BY_UNIT) and getattr(layer, "start_dim", 1) == 1:
            self._of[node] = before
        else:
            raise _unknown(f"'{node.target}' ({type(layer).__name__})")

    def _behind_weights(self, node: fx.Node, before: _Group, num_in: int, num_out: int) -> None:
        """``weight`` has outputs on axis 0 and inputs on axis 1."""
        self._attach(before, f"{node.target}.weight", 1, num_in)
        after = self._of[node] = self._new(num_out)
        self._attach(after, f"{node.target}.weight", 0, num_out)
        self._attach(after, f"{node.target}.bias", 0, num_out)

    def _carry(self, node: fx.Node, group: _Group, layer: nn.Module, size: int) -> _Group:
        """A layer with numbers of each unit."""
        for name, tensor in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
            if tensor.is_floating_point():
                self._attach(group, f"{node.target}.{name}", 0, size)
        return group

    def _normed(self, node: fx.Node, group: _Group, layer: nn.GroupNorm | nn.LayerNorm) -> _Group:
        """Over all units at once, which have no order in it; over some of them, they have."""
        if isinstance(layer, nn.LayerNorm):
            size, whole = layer.normalized_shape[-1], len(layer.normalized_shape) == 1
        else:
            size, whole = layer.num_channels, layer.num_groups in (1, layer.num_channels)
        group.fixed |= not whole
        return self._carry(node, group, layer, size) if whole else group

    def _function(self, node: fx.Node) -> None:
        name, inputs = _name_of(node), self._inputs(node)
        if name in _SHAPES or not inputs:
            return
        if name in _JOINS:
            for other in inputs[1:]:
                self._join(inputs[0], other)
            self._of[node] = self._real(inputs[0])
        elif name == "cat":
            for each in inputs:
                each.fixed = True
            self._of[node] = self._new(None, fixed=True)
        elif len(inputs) == 1 and ((name in _FUNCTIONS and _beyond_batch(node)) or _flattens(node, name)):
            self._of[node] = inputs[0]
        else:
            raise _unknown(f"'{name}' in its forward()")

    def _tie(self) -> None:
        """A tensor that is used twice has its units in one order."""
        seen: dict[tuple[str, int], _Group] = {}
        for group in list(self._groups):
            for key in group.axes:
                self._join(seen.setdefault(key, group), group)

    def _attach(self, group: _Group, name: str, axis: int, length: int) -> None:
        if name not in self._name:
            return
        group.fixed |= group.size is not None and length % group.size != 0
        if (self._name[name], axis) not in group.axes:
            group.axes.append((self._name[name], axis))

    def _join(self, one: _Group, other: _Group) -> None:
        one, other = self._real(one), self._real(other)
        if one is other:
            return
        one.fixed |= other.fixed or one.size != other.size
        one.axes += [axis for axis in other.axes if axis not in one.axes]
        self._merged[other] = one

    def _real(self, group: _Group) -> _Group:
        while group in self._merged:
            group = self._merged[group]
        return group

    def _new(self, size: int | None, fixed: bool = False) -> _Group:
        self._groups.append(_Group(size, fixed))
        return self._groups[-1]

    def _inputs(self, node: fx.Node) -> list[_Group]:
        """Groups of the tensors that go in; numbers and shapes have none."""
        return [self._real(self._of[each]) for each in node.all_input_nodes if each in self._of]

    def _single(self, node: fx.Node) -> _Group:
        inputs = self._inputs(node)
        if len(inputs) != 1:
            raise _unknown(f"'{node.target}', which has {len(inputs)} inputs")
        return inputs[0]


def _traced(module: nn.Module) -> fx.Graph:
    tracer = _Tracer()
    try:
        with _TRACING:
            return tracer.trace(module)
    except Exception as error:  # whatever the module's own code does with a symbol
        where = tracer.where or type(module).__name__
        why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise BadJob(f"strategy fedma: the model cannot be followed behind '{where}': {why}") from error


def _unknown(what: str) -> BadJob:
    return BadJob(f"strategy fedma: it is not known what becomes of single units in {what}; use fedavg")


def _name_of(node: fx.Node) -> str:
    """Of a function or method."""
    if node.op not in ("call_function", "call_method"):
        return ""
    return node.target if isinstance(node.target, str) else str(getattr(node.target, "__name__", ""))


def _beyond_batch(node: fx.Node) -> bool:
    """Whether a function leaves the dimensions of batch and units as they are."""
    name = _name_of(node)
    given = [*node.args[1:2], *(node.kwargs[key] for key in ("dim", "start_dim") if key in node.kwargs)]
    lowest = {"flatten": 1, "mean": 2, "squeeze": 2}.get(name)
    if lowest is None:
        return True
    dims = given[0] if given else 0
    wanted = list(dims) if isinstance(dims, Sequence) else [dims]
    return all(isinstance(dim, int) and (dim >= lowest or (dim < 0 and name != "flatten")) for dim in wanted)


def _flattens(node: fx.Node, name: str) -> bool:
    """``view(batch, rest)``."""
    if name not in ("view", "reshape"):
        return False
    shape = node.args[1] if isinstance(node.args[1], Sequence) else node.args[1:]
    return len(list(shape)) == 2

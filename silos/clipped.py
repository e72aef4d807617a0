"""Sums of gradients of which none is longer than the bound: of a batch's rows, or of the batch as one unit."""

import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from orchestrator.core.errors import BadInput, BadJob
from silos.network import Network
from silos.tasks import own
from silos.tasks.task import Batch, Task

SLACK = 1 - 2**-10
"""Rounding, of a GPU's convolutions above all, cannot lift a gradient over the bound."""

KEPT_BYTES = 64 << 20
"""Gradients of a layer's rows are kept, once their norms are known, where they are no larger than this."""


class Clipped(Protocol):
    """Adds a batch's gradients, each cut to the bound, to ``total``, which lies beside the gradient of what is
    trained. A gradient with NaN or infinity counts as zero. The model's own gradient is scratch."""

    def add(self, batch: Batch, total: Tensor) -> None: ...


class Single:
    """One backward pass for each unit."""

    def __init__(self, network: Network, task: Task, bound: float, gradient: Tensor, whole: bool) -> None:
        """``gradient``: of what is trained, in the model's flat memory. ``whole``: a batch is one unit."""
        self._network, self._task, self._bound = network, task, bound
        self.gradient, self._whole = gradient, whole

    def add(self, batch: Batch, total: Tensor) -> None:
        for unit in [batch] if self._whole else rows_of(batch):
            length = float(self.length(unit))
            if length < float("inf"):
                total.add_(self.gradient, alpha=float(_share(torch.tensor(length), self._bound)))

    def length(self, unit: Batch) -> Tensor:
        """Of the gradient of its mean loss, which then lies in the model's memory."""
        self._network.flat.clear_gradient()
        self._task.loss(self._network.call, unit).backward()
        return torch.linalg.vector_norm(self.gradient)


class Ghost:
    """All rows of a batch at once: ghost clipping (Li et al. 2022, arXiv 2110.05679), without its second pass through
    the network (Bu et al. 2023, arXiv 2210.00038).

    One pass gives the gradients of the loss by every layer's outputs. From these and the layer's inputs Opacus finds
    the norms of the rows' gradients, without the gradients where the layer allows. Then each layer's parameters get
    the sum of what is left of them.

    The loss must be a mean over rows, each of which depends on what the model makes of that row alone.
    """

    def __init__(self, network: Network, task: Task, bound: float, gradient: Tensor) -> None:
        """For what is trained now. Raises `BadInput` without Opacus, and NotImplementedError for a layer that it
        cannot do."""
        self.bound = bound
        self._module, self._task, self._gradient = network.flat.module, task, gradient
        self._flat = network.flat
        self._layers = {each: _Layer(each) for each in _layers(self._module)}
        self._handles = [each.register_forward_hook(self._see) for each in self._layers]
        self._watching = False

    def close(self) -> None:
        """Leave the module as it was."""
        for handle in self._handles:
            handle.remove()

    def add(self, batch: Batch, total: Tensor) -> None:
        lengths = self.lengths(batch)
        sound = torch.isfinite(lengths)
        if bool(sound.all()):
            self._flat.clear_gradient()
            shares = _share(lengths, self.bound)
            for layer in self._layers.values():
                layer.add(shares)
                layer.forget()
            total.add_(self._gradient)
        elif bool(sound.any()):
            self.add(tuple(each[sound] for each in batch), total)

    def lengths(self, batch: Batch) -> Tensor:
        """Of each row's gradient."""
        num_rows, layers = len(batch[0]), list(self._layers.values())
        for layer in layers:
            layer.forget()
        self._watching = True
        try:
            loss = self._task.loss(self._module, batch)
        finally:
            self._watching = False
        outputs = [layer.output_of(num_rows) for layer in layers]
        slopes = torch.autograd.grad(loss, outputs, torch.full_like(loss, num_rows), retain_graph=True)
        squares = [layer.squares(slope) for layer, slope in zip(layers, slopes, strict=True)]
        return torch.stack(squares).sum(0).sqrt()

    def _see(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if self._watching:
            self._layers[module].see(inputs, output)


class _Layer:
    """One layer that is trained, on the batch in hand."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._params = [param for param in module.parameters() if param.requires_grad]
        self._sampler, self._norms = _samplers(module)
        self.forget()

    def forget(self) -> None:
        self._input = self._output = self._slope = torch.empty(0)
        self._calls = self._version = 0
        self._kept: dict[Tensor, Tensor] = {}

    def see(self, inputs: tuple[Any, ...], output: Any) -> None:
        self._calls += 1
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not isinstance(output, Tensor):
            raise NotImplementedError(f"{self}: not one tensor in, one tensor out")
        self._input, self._output, self._version = inputs[0].detach(), output, output._version

    def output_of(self, num_rows: int) -> Tensor:
        """What it made of the batch."""
        if self._calls != 1 or len(self._output) != num_rows or len(self._input) != num_rows:
            raise NotImplementedError(f"{self}: not called once, with a row for each example")
        if self._output._version != self._version:
            raise NotImplementedError(f"{self}: its output is changed in place")
        return self._output

    def squares(self, slope: Tensor) -> Tensor:
        """Squared norm of each row's gradient, given the loss's by the output."""
        self._slope = slope
        norms = self._norms(self._module, [self._input], slope) if self._norms else {}
        if not norms:
            samples = self._sampler(self._module, [self._input], slope)
            norms = {param: each.flatten(1).norm(dim=1) for param, each in samples.items()}
            if sum(each.nbytes for each in samples.values()) <= KEPT_BYTES:
                self._kept = samples
        return torch.stack([norms[param] for param in self._params]).square().sum(0)

    def add(self, shares: Tensor) -> None:
        """To the parameters' gradient: the rows' gradients, each times its share."""
        if self._kept:
            for param in self._params:
                _gradient(param).add_(torch.tensordot(shares, self._kept[param], 1))
            return
        slope = self._slope * shares.view(-1, *[1] * (self._slope.dim() - 1))
        sums = torch.autograd.grad(self._output, self._params, slope, retain_graph=True)
        for param, each in zip(self._params, sums, strict=True):
            _gradient(param).add_(each)

    def __str__(self) -> str:
        return type(self._module).__name__


def _gradient(param: nn.Parameter) -> Tensor:
    assert param.grad is not None  # a view of the model's flat memory
    return param.grad


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The smallest modules that have parameters to train."""
    if any(param.requires_grad for param in module.parameters(recurse=False)):
        yield module
        return
    for each in module.children():
        yield from _layers(each)


def _samplers(module: nn.Module) -> tuple[Any, Any]:
    """What finds the rows' gradients in a layer, and what finds their norms without them, if there is such a thing."""

    try:
        from opacus.grad_sample import GradSampleHooksFastGradientClipping as Opacus
        from opacus.grad_sample.functorch import ft_compute_per_sample_gradient, prepare_layer
    except ModuleNotFoundError:
        remedy = "privacy: this machine has no Opacus; pip install 'siloray[dp]', or give engine: single"
        raise BadInput(remedy, remedy) from None
    kind = type(module)
    if kind in Opacus.GRAD_SAMPLERS:
        return Opacus.GRAD_SAMPLERS[kind], Opacus.NORM_SAMPLERS.get(kind)
    _check_randomness(module)
    if not hasattr(module, "ft_compute_sample_grad"):
        prepare_layer(module)  # copies the layer, which it must before that has hooks
    return ft_compute_per_sample_gradient, None


def _share(lengths: Tensor, bound: float) -> Tensor:
    """What is left of gradients of these lengths."""
    return (bound * SLACK / lengths.clamp(min=bound * 1e-9)).clamp(max=1.0)


def rows_of(batch: Batch) -> Iterator[Batch]:
    for i in range(len(batch[0])):
        yield tuple(each[i : i + 1] for each in batch)


def chosen(
    engine: str,
    network: Network,
    task: Task,
    bound: float,
    gradient: Tensor,
    sample: Callable[[], Batch] | None,
) -> Ghost | Single:
    """The engine that the job names, for single rows; ``auto``: ghost clipping where it finds the same as `Single`.
    ``sample``: gives rows to find that out, on the device; None: it is known to do so. Raises `BadInput` for one that
    cannot do the model."""
    single = Single(network, task, bound, gradient, whole=False)
    if engine == "single":
        return single
    try:
        ghost = Ghost(network, task, bound, gradient)
    except NotImplementedError as error:
        why = own.one_line(error)
    else:
        why = "" if sample is None else _difference(ghost, single, sample(), network.flat.module)
        if not why:
            return ghost
        ghost.close()
    if engine == "ghost":
        raise BadJob(f"privacy.engine: ghost clipping cannot do this model ({why}); use engine: auto")
    logging.getLogger(__name__).warning("DP-SGD goes through the records one by one: %s", why)
    return single


def _difference(ghost: Ghost, single: Single, sample: Batch, module: nn.Module) -> str:
    """What sets their gradients apart, dropout aside; nothing where they are the same."""
    dropping = [each for each in module.modules() if isinstance(each, _DropoutNd) and each.training]
    for each in dropping:
        each.eval()
    try:
        ours, theirs = torch.zeros_like(single.gradient), torch.zeros_like(single.gradient)
        lengths = ghost.lengths(sample)
        same = torch.allclose(
            lengths, torch.stack([single.length(row) for row in rows_of(sample)]), rtol=1e-3
        )
        ghost.add(sample, ours)
        single.add(sample, theirs)
    except (NotImplementedError, RuntimeError, AttributeError) as error:
        return own.one_line(error)
    finally:
        for each in dropping:
            each.train()
    same = same and torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * ghost.bound)
    return "" if same else "gradients of single records are not what they are in a batch"


def _check_randomness(module: nn.Module) -> None:
    """A layer that Opacus runs again for its gradients would drop other units the second time."""
    for each in module.modules():
        if float(getattr(each, "p", getattr(each, "dropout", 0.0)) or 0.0) > 0:
            raise NotImplementedError(f"{type(module).__name__} with dropout")

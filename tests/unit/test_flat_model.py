"""A torch module on flat memory: the same function, the same gradients, the same state, as views."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from orchestrator.core.errors import BadInput
from silos.flat_model import FlatModel, layers, private_buffers


class Net(nn.Module):
    """A CNN with batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(torch.relu(self.bn(self.conv(x)))))


class Tied(nn.Module):
    """One weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 6, bias=False)
        self.decoder = nn.Linear(6, 6)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.encoder(x)))


def made(kind: Callable[[], nn.Module] = Net) -> nn.Module:
    torch.manual_seed(0)
    return kind()


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(16, 1, 8, 8, generator=draw), torch.randint(0, 3, (16,), generator=draw)


def loss(module: nn.Module, seed: int = 0) -> Tensor:
    x, y = batch(seed)
    return nn.functional.cross_entropy(module(x), y)


def names(flat: FlatModel, shared: bool) -> list[str]:
    return [entry.name for entry in flat.entries if entry.shared == shared]


def test_the_function_does_not_change() -> None:
    plain, module = made(), made()
    FlatModel(module)
    assert torch.equal(plain.eval()(batch()[0]), module.eval()(batch()[0]))
    assert plain.state_dict().keys() == module.state_dict().keys()


def test_parameters_and_gradients_are_views() -> None:
    module = made()
    flat = FlatModel(module)
    assert flat.vector.numel() == sum(p.numel() for p in module.parameters()) == flat.num_shared
    flat.clear_gradient()
    loss(module).backward()
    start = 0
    by_name = dict(module.named_parameters())
    for entry in (each for each in flat.entries if each.kind == "param"):
        param = by_name[entry.name]
        stop = start + param.numel()
        assert (
            param.data_ptr() == flat.vector[start:].data_ptr()
            and param.grad.data_ptr() == flat.gradient[start:].data_ptr()
        )
        assert torch.equal(flat.vector[start:stop], param.detach().reshape(-1))
        assert torch.equal(flat.gradient[start:stop], param.grad.reshape(-1))
        start = stop
    flat.vector.zero_()
    assert all(not param.any() for param in module.parameters())


def test_gradients_are_torchs() -> None:
    plain, module = made(), made()
    flat = FlatModel(module)
    for seed in range(3):
        plain.zero_grad()
        flat.clear_gradient()
        loss(plain, seed).backward()
        loss(module, seed).backward()
        theirs = torch.cat(
            [
                dict(plain.named_parameters())[e.name].grad.reshape(-1)
                for e in flat.entries
                if e.kind == "param"
            ]
        )
        assert torch.equal(theirs, flat.gradient)
    assert flat.parameter.grad is flat.gradient


@pytest.mark.parametrize(
    "kind, arguments",
    [
        ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}),
        ("AdamW", {"lr": 0.01}),
        ("RMSprop", {"lr": 0.01}),
    ],
)
def test_a_torch_optimizer_on_the_flat_parameter_moves_the_module(
    kind: str, arguments: dict[str, float]
) -> None:
    """Twenty steps with batch norm: within float32 rounding of the optimizer on single tensors."""
    plain, module = made(), made()
    flat = FlatModel(module)
    theirs = getattr(torch.optim, kind)(plain.parameters(), **arguments)
    ours = getattr(torch.optim, kind)([flat.parameter], **arguments)
    for seed in range(20):
        theirs.zero_grad()
        flat.clear_gradient()
        loss(plain, seed).backward()
        loss(module, seed).backward()
        theirs.step()
        ours.step()
    for (name, a), (_, b) in zip(plain.state_dict().items(), module.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)
    assert int(module.bn.num_batches_tracked) == 20
    assert next(module.parameters()).data_ptr() == flat.vector.data_ptr(), "still views"


def test_float_buffers_are_shared_and_counters_stay() -> None:
    module = made()
    flat = FlatModel(module)
    assert flat.buffers.numel() == 8 and private_buffers(flat).keys() == {"bn.num_batches_tracked"}
    module(batch()[0])
    running = torch.cat([module.bn.running_mean, module.bn.running_var])
    assert torch.equal(flat.buffers, running) and running.abs().sum() > 0
    flat.load({"params": flat.shared.clone(), "buffers": torch.arange(8.0)})
    assert module.bn.running_var.tolist() == [4, 5, 6, 7]


def test_parts_are_copies_that_load_back() -> None:
    flat, other = FlatModel(made()), FlatModel(made(lambda: (torch.manual_seed(7), Net())[1]))
    parts = flat.parts()
    flat.vector.zero_()
    assert parts["params"].any() and parts["params"].dtype == np.float32
    other.load({name: torch.from_numpy(part) for name, part in parts.items()})
    assert torch.equal(other.module.eval()(batch()[0]), made().eval()(batch()[0]))


@pytest.mark.parametrize("name, size", [("params", 3), ("buffers", 3)])
def test_another_size_is_refused(name: str, size: int) -> None:
    flat = FlatModel(made())
    parts = {"params": flat.shared.clone(), "buffers": flat.buffers.clone(), name: torch.zeros(size)}
    with pytest.raises(ValueError, match=f"{name}: 3 elements received"):
        flat.load(parts)


def test_private_globs() -> None:
    flat = FlatModel(made(), private=["head.*"])
    assert names(flat, shared=False) == ["head.weight", "head.bias"]
    assert flat.private.numel() == 27 and flat.num_shared + 27 == flat.vector.numel()
    before = flat.private.clone()
    flat.load({"params": torch.zeros(flat.num_shared), "buffers": torch.zeros(8)})
    assert torch.equal(flat.private, before) and not flat.shared.any()


def test_fedbn_keeps_the_norm_with_its_statistics() -> None:
    flat = FlatModel(made(), private=["bn.*"])
    assert names(flat, shared=False) == ["bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"]
    assert flat.buffers.numel() == 0 and "buffers" not in flat.parts()
    assert private_buffers(flat).keys() == {"bn.running_mean", "bn.running_var", "bn.num_batches_tracked"}


def test_shared_globs_share_nothing_else() -> None:
    flat = FlatModel(made(), shared=["conv.*", "body.*"])
    assert names(flat, shared=True) == ["conv.weight", "conv.bias", "body.1.weight", "body.1.bias"]
    assert FlatModel(made(), shared=["*"], private=["*.bias"]).private.numel() == 4 + 4 + 8 + 3


@pytest.mark.parametrize(
    "globs",
    [{"shared": ["nothing.*"]}, {"private": ["haed.*"]}, {"private": ["*"]}, {"shared": ["bn.running_mean"]}],
)
def test_globs_that_cannot_be_meant(globs: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        FlatModel(made(), **globs)


def test_frozen_parameters_neither_travel_nor_move() -> None:
    module = made()
    module.conv.weight.requires_grad_(False)
    flat, frozen = FlatModel(module), module.conv.weight.clone()
    assert "conv.weight" not in names(flat, shared=True)
    loss(module).backward()
    flat.vector.sub_(flat.gradient)
    assert torch.equal(module.conv.weight, frozen)


def test_tied_weights_are_one_entry_and_stay_tied() -> None:
    plain, module = made(Tied), made(Tied)
    flat = FlatModel(module)
    assert flat.vector.numel() == 36 + 6
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    for each in (plain, module):
        each(x).square().sum().backward()
    assert torch.equal(plain.encoder.weight.grad, module.encoder.weight.grad), "both uses are in the gradient"
    flat.vector.sub_(flat.gradient, alpha=0.1)
    assert module.decoder.weight.data_ptr() == module.encoder.weight.data_ptr() == flat.vector.data_ptr()
    with torch.no_grad():
        plain.encoder.weight.sub_(plain.encoder.weight.grad, alpha=0.1)
        plain.decoder.bias.sub_(plain.decoder.bias.grad, alpha=0.1)
    assert torch.equal(plain(x), module(x))


def test_the_schema_is_of_what_is_shared() -> None:
    digest = FlatModel(made()).schema_digest
    assert FlatModel(made(lambda: (torch.manual_seed(5), Net())[1])).schema_digest == digest, (
        "not of the numbers"
    )

    def wider() -> nn.Module:
        net = Net()
        net.head = nn.Linear(8, 4)
        return net

    assert FlatModel(made(wider)).schema_digest != digest
    private = FlatModel(made(), private=["head.*"]).schema_digest
    assert private != digest and FlatModel(made(wider), private=["head.*"]).schema_digest == private


def test_other_dtypes_become_float32() -> None:
    module = made().double()
    flat = FlatModel(module)
    assert flat.vector.dtype == torch.float32 and {p.dtype for p in module.parameters()} == {torch.float32}


def test_a_copy_of_the_module_is_independent() -> None:
    module = made()
    flat = FlatModel(module)
    copied = deepcopy(module)
    flat.vector.zero_()
    assert next(copied.parameters()).any()


def test_layers_by_kind() -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(2, 2)
    )
    assert layers(module, "none") == ()
    assert layers(module, "norm") == ("1.*", "2.*")
    assert layers(module, "head") == ("4.*",)
    assert layers(nn.Linear(2, 2), "norm") == ()

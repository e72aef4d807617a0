"""`FlatSgd` against ``torch.optim.SGD`` to the bit; other optimizers by name; the path of momentum."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.core.errors import BadInput, BadJob
from orchestrator.local import Optimizer
from silos.optimizer import FlatSgd, Momentum, kept_of, make_optimizer, remind


def parameter(seed: int = 0) -> nn.Parameter:
    made = nn.Parameter(torch.randn(1000, generator=torch.Generator().manual_seed(seed)))
    made.grad = torch.zeros(1000)
    return made


def gradients(count: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(1000, generator=draw) for _ in range(count)]


CASES = [
    {"lr": 0.1, "momentum": momentum, "dampening": dampening, "weight_decay": decay, "nesterov": nesterov}
    for momentum, dampening, decay, nesterov in product((0.0, 0.9), (0.0, 0.3), (0.0, 1e-2), (False, True))
    if not nesterov or (momentum and not dampening)
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: ",".join(f"{k}={v}" for k, v in case.items() if v))
def test_sgd_to_the_bit(case: dict[str, Any]) -> None:
    mine, theirs = parameter(), parameter()
    ours, reference = FlatSgd(mine, **case), torch.optim.SGD([theirs], **case)
    for step, gradient in enumerate(gradients(10)):
        mine.grad.copy_(gradient)
        theirs.grad.copy_(gradient)
        for optimizer in (ours, reference):
            optimizer.param_groups[0]["lr"] = case["lr"] / (1 + step)
            optimizer.step()
        assert torch.equal(mine.data, theirs.data)
        assert torch.equal(mine.grad, gradient), "the gradient stays as it is"


def test_sgd_is_ours_and_others_are_torchs() -> None:
    assert type(make_optimizer(Optimizer(name="SGD", lr=0.1, momentum=0.9), parameter())) is FlatSgd
    assert type(make_optimizer(Optimizer(name="sgd", lr=0.1, foreach=True), parameter())) is torch.optim.SGD
    for name in ("adamw", "AdamW", "Adam", "rmsprop", "adagrad", "RAdam"):
        optimizer = make_optimizer(Optimizer(name=name, lr=0.1), parameter())
        assert type(optimizer).__name__.lower() == name.lower() and optimizer.param_groups[0]["lr"] == 0.1


def test_adamw_by_name_is_adamw() -> None:
    mine, theirs = parameter(), parameter()
    ours = make_optimizer(Optimizer(name="adamw", lr=0.01, betas=(0.8, 0.95), weight_decay=0.1), mine)
    reference = torch.optim.AdamW([theirs], lr=0.01, betas=(0.8, 0.95), weight_decay=0.1)
    for gradient in gradients(5):
        mine.grad.copy_(gradient)
        theirs.grad.copy_(gradient)
        ours.step()
        reference.step()
    assert torch.equal(mine.data, theirs.data)


@pytest.mark.parametrize(
    "spec, said",
    [
        ({"name": "adamm"}, "torch.optim has no 'adamm'"),
        ({"name": "optimizer"}, "torch.optim has no 'optimizer'"),
        ({"name": "lr_scheduler"}, "torch.optim has no"),
        ({"name": "sgd", "momentum": -1}, "local.optimizer.momentum"),
        ({"name": "sgd", "momentum": "0.9"}, "local.optimizer.momentum"),
        ({"name": "sgd", "nesterov": True}, "needs a momentum"),
        ({"name": "sgd", "nesterov": True, "momentum": 0.9, "dampening": 0.1}, "no dampening"),
        ({"name": "adam", "momentum": 0.9}, "local.optimizer: "),
        ({"name": "adam", "betas": (2, 0)}, "local.optimizer: "),
        ({"name": "lbfgs"}, "local.optimizer.name"),
        ({"name": "sparseadam"}, "local.optimizer.name"),
    ],
    ids=str,
)
def test_wrong_names_and_arguments(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        make_optimizer(Optimizer(**spec), parameter())
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("case", CASES, ids=lambda case: ",".join(f"{k}={v}" for k, v in case.items() if v))
def test_the_path_is_how_far_a_constant_gradient_carries(case: dict[str, Any]) -> None:
    """With gradient 1 all along (and no decay), parameters move by exactly the path."""
    group = {**case, "weight_decay": 0.0}
    mine = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    mine.grad = torch.ones(1, dtype=torch.float64)
    optimizer, momentum, path = FlatSgd(mine, **group), Momentum(group), 0.0
    for step in range(12):
        lr = 0.1 / (1 + step)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        path += momentum.next(lr)
        assert mine.item() == pytest.approx(-path, rel=1e-12)


OTHERS = sorted(
    name.lower()
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type)
    and issubclass(kind, torch.optim.Optimizer)
    and kind is not torch.optim.Optimizer
)


@pytest.mark.parametrize("name", OTHERS)
def test_it_goes_on_from_what_it_remembered(name: str) -> None:
    """To the bit, for all of torch's that take a flat vector."""
    arguments = {"momentum": 0.9} if name == "sgd" else {}
    spec = Optimizer(name=name, lr=0.01, **arguments)
    try:
        one, two = parameter(), parameter()
        whole, first = make_optimizer(spec, one), make_optimizer(spec, two)
    except BadJob:
        pytest.skip("not for a flat vector")
    for step, gradient in enumerate(gradients(6)):
        one.grad, two.grad = gradient.clone(), gradient.clone()
        whole.step()
        first.step()
        if step == 2:
            kept = kept_of(first)
            first = make_optimizer(spec, two)
            remind(first, kept)
    assert torch.equal(one, two)

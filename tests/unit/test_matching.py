"""Units of networks: found in a module's graph, permuted, and matched again."""

import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.core.errors import BadJob
from orchestrator.core.symmetry import read
from orchestrator.strategies.matching import align, assigned
from silos.flat_model import FlatModel
from silos.symmetries import symmetries_of
from silos.tasks.vision_models import SmallCnn
from tests.support.permuted import Flattened, Residual, drawn, mlp

IMAGES = torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(1))


class Separable(nn.Module):
    """Depthwise and grouped convolutions, a gate, a layer norm, functional flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.depth = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.gate = nn.Conv2d(6, 6, 1)
        self.point, self.act = nn.Conv2d(6, 8, 1), nn.PReLU(8)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2, padding=1)
        self.norm, self.fc1, self.ln, self.fc2 = (
            nn.GroupNorm(1, 8),
            nn.Linear(8, 7),
            nn.LayerNorm(7),
            nn.Linear(7, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.depth(self.stem(x)))
        x = x * torch.sigmoid(self.gate(functional.adaptive_avg_pool2d(x, 1)))
        x = self.norm(self.grouped(self.act(self.point(x)))).mean((2, 3))
        return self.fc2(functional.gelu(self.ln(self.fc1(torch.flatten(x, 1)))))


NETS = {
    "mlp": (lambda: mlp(7, 16, 12, 4), torch.randn(5, 7, generator=torch.Generator().manual_seed(2))),
    "residual": (Residual, IMAGES),
    "cnn": (lambda: SmallCnn(2, (6, 6), 3), IMAGES),
    "separable": (Separable, IMAGES),
}


def spread(output: Tensor) -> float:
    """How much the outputs differ from input to input."""
    return float((output - output.mean(0)).std())


@pytest.mark.parametrize("name", NETS)
def test_36_permuted_copies_are_recovered_exactly(name: str) -> None:
    make, x = NETS[name]
    net = Flattened(drawn(make(), 3))
    known = net.output(net.params, net.buffers, x)
    copies = [net.permuted(seed) for seed in range(4)]
    for params, buffers in copies:
        assert not torch.equal(params, net.params)
        assert (net.output(params, buffers, x) - known).abs().max() < 1e-12
    plain = net.output(*(torch.stack(each).mean(0) for each in zip(*copies, strict=True)), x)
    assert spread(plain - known) > 0.5 * spread(known)
    for params, buffers in copies:
        assert align(params, net.params, net.symmetries, buffers) < 0.9
        assert torch.equal(params, net.params) and torch.equal(buffers, net.buffers)


def test_36_the_plain_mean_errs_by_most_of_the_outputs_scale() -> None:
    errors = []
    for seed in range(5):
        net = Flattened(drawn(mlp(8, 32, 32, 4), seed))
        x = torch.randn(50, 8, generator=torch.Generator().manual_seed(seed))
        known = net.output(net.params, net.buffers, x)
        params = torch.stack([net.permuted(each)[0] for each in range(8)]).mean(0)
        errors.append(spread(net.output(params, net.buffers, x) - known) / spread(known))
    assert 0.7 < np.mean(errors) < 1.2, errors


@pytest.mark.parametrize("seed", range(20))
def test_36_random_residual_networks(seed: int) -> None:
    """Slightly trained on, so that the copies are near each other and not equal; and in float32, as at a silo."""
    net = Flattened(drawn(Residual(8, 6), seed), torch.float32)
    params, buffers = net.permuted(seed)
    noise = torch.randn(params.shape, generator=torch.Generator().manual_seed(seed)) * 1e-3
    params += noise
    align(params, net.params, net.symmetries, buffers)
    assert (params - net.params).abs().max() < 6e-3 and torch.equal(buffers, net.buffers)


@pytest.mark.slow
def test_36_resnet18() -> None:
    from torchvision.models import resnet18

    net = Flattened(drawn(resnet18(num_classes=10), 0), torch.float32)
    assert [each.size for each in net.symmetries] == [64] * 3 + [128] * 3 + [256] * 3 + [512] * 3
    params, buffers = net.permuted(5)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    known = net.output(net.params, net.buffers, x)
    assert (net.output(params, buffers, x) - known).abs().max() < 1e-4 * known.abs().max()
    assert align(params, net.params, net.symmetries, buffers) < 0.05
    assert torch.equal(params, net.params) and torch.equal(buffers, net.buffers)


def test_numpy_and_torch_align_alike() -> None:
    net = Flattened(drawn(Residual(), 1))
    params, buffers = net.permuted(2)
    array, statistics = params.numpy().copy(), buffers.numpy().copy()
    assert align(params, net.params, net.symmetries, buffers) == align(
        array, net.params.numpy(), net.symmetries, statistics
    )
    assert (array == params.numpy()).all() and (statistics == buffers.numpy()).all()


def test_units_that_are_best_where_they_are_stay_without_an_assignment() -> None:
    assert assigned(np.array([[2.0, 1.0], [2.0, 3.0]])) is None
    assert assigned(np.zeros((3, 3))) is None
    order = assigned(np.array([[1.0, 5.0], [5.0, 6.0]]))
    assert order is not None and order.tolist() == [1, 0]
    net = Flattened(drawn(Residual(), 1))
    params = net.params + 1e-3 * torch.randn(net.params.shape, generator=torch.Generator().manual_seed(0))
    before = params.clone()
    assert align(params, net.params, net.symmetries, net.buffers.clone()) == 1.0
    assert torch.equal(params, before)


def test_groups_of_the_small_cnn() -> None:
    found = symmetries_of(FlatModel(SmallCnn(1, (28, 28), 10)))
    assert [each.size for each in found] == [6, 16, 120, 84]
    repeats = {axis.repeat for axis in found[1].axes}
    assert repeats == {1, 16}  # 4 x 4 pixels of a channel are neighbours behind the flatten


def test_what_is_not_shared_keeps_its_place() -> None:
    flat = FlatModel(mlp(4, 6, 5, 2), private=("4.*",))
    assert [each.size for each in symmetries_of(flat)] == [6]
    for module in (mlp(3, 2), nn.Linear(3, 2)):
        with pytest.raises(BadJob, match="no hidden units that are shared"):
            symmetries_of(FlatModel(module))


def test_tied_weights_tie_their_units() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.second(torch.relu(self.first(x)))))

    with pytest.raises(BadJob, match="no hidden units"):
        symmetries_of(FlatModel(Tied()))  # the first layer's inputs are the module's, which stay in order


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.two(x if x.sum() > 0 else -x)


class Transposing(Branching):
    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).transpose(0, 1).transpose(0, 1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.cells(x)[0]


@pytest.mark.parametrize(
    "module, words",
    [
        (Branching(), "cannot be followed behind 'one'"),
        (Transposing(), "'transpose' in its forward"),
        (Recurrent(), r"'cells' \(LSTM\)"),
    ],
)
def test_a_module_that_cannot_be_followed_is_named(module: nn.Module, words: str) -> None:
    with pytest.raises(BadJob, match=words):
        symmetries_of(FlatModel(module))


@pytest.mark.parametrize(
    "change",
    [{"start": 90}, {"start": -1}, {"axis": 2}, {"shape": [4, 5]}, {"repeat": 2}, {"shape": [-3, 5]}],
)
def test_a_silos_word_on_symmetries_is_checked(change: dict[str, int]) -> None:
    axis = {"start": 0, "shape": [3, 5], "axis": 0, "repeat": 1, "buffer": False}
    assert read([{"size": 3, "axes": [axis]}], 100, 0)[0].size == 3
    with pytest.raises(ValueError):
        read([{"size": 3, "axes": [{**axis, **change}]}], 100, 0)


def test_other_threads_train_on_while_a_module_is_followed() -> None:
    net, wrong, done = drawn(Residual(), 1), [], threading.Event()

    def train() -> None:
        while not done.is_set():
            try:
                assert type(net(IMAGES)) is Tensor
            except BaseException as error:
                wrong.append(error)
                return

    thread = threading.Thread(target=train)
    thread.start()
    for _ in range(20):
        symmetries_of(FlatModel(Residual()))
    done.set()
    thread.join()
    assert not wrong

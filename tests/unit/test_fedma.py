"""FedMA at the silo and at the driver: FedAvg from a common start, and networks that were trained apart."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.core.messages import CohortInfo
from orchestrator.core.protocols import LocalRun
from orchestrator.strategies.fedavg import FedAvg
from orchestrator.strategies.fedma import FedMA
from orchestrator.strategies.layerwise import held, incoming
from silos.flat_model import FlatModel
from silos.symmetries import symmetries_of
from tests.support.blob_federation import blob_job, run_blobs
from tests.support.permuted import Flattened, Residual, drawn, mlp
from tests.support.quadratic import Zeros


def run_of(net: Flattened, params: Any, buffers: Any, version: int = 2, **given: Any) -> LocalRun:
    options = {"kept": Zeros(net.params.numel()), "silo": "b", **given}
    return LocalRun(
        params=params.clone(),
        anchor=net.params,
        received={},
        version=version,
        buffers=buffers.clone(),
        symmetries=net.symmetries,
        **options,
    )


def test_37_from_a_common_start_it_is_fedavg_bit_for_bit(tmp_path: Path) -> None:
    plain = run_blobs(blob_job(strategy={"name": "fedavg"}), tmp_path / "fedavg")
    matched = run_blobs(blob_job(strategy={"name": "fedma"}), tmp_path / "fedma")
    assert matched.params.tobytes() == plain.params.tobytes()


def test_37_the_driver_too_in_version_0_and_after_the_last_layer(tmp_path: Path) -> None:
    plain = run_blobs(blob_job(1, strategy={"name": "fedavg"}), tmp_path / "fedavg")
    matched = run_blobs(blob_job(1, strategy={"name": "fedma", "at": "driver"}), tmp_path / "fedma")
    assert matched.params.tobytes() == plain.params.tobytes()


def test_a_permuted_model_is_reported_as_no_change() -> None:
    net = Flattened(drawn(Residual(), 1))
    run = run_of(net, *net.permuted(3))
    report = FedMA().report(run)
    assert not report.parts["delta"].any() and torch.equal(run.buffers, net.buffers)
    assert report.scalars["stayed"] < 0.9 and report.scalars["leads"] == 0


def test_the_reference_becomes_version_1_and_the_others_wait() -> None:
    strategy = FedMA(alone_epochs=1, reference="a")
    net = Flattened(drawn(Residual(), 1))
    other = Flattened(drawn(Residual(), 2))
    reports, runs = [], []
    for silo in ("a", "b"):
        runs.append(run_of(net, other.params, net.buffers, 0, silo=silo))
        strategy.begin(runs[-1])
        runs[-1].buffers[:] = other.buffers  # what a training does
        reports.append(strategy.report(runs[-1]))
    deltas = [run.buffers - net.buffers for run in runs]
    assert reports[1].parts["delta"].any().item() is False and not deltas[1].any()
    mean = {
        "delta": sum(0.25 * (1 + 2 * i) * r.parts["delta"].float().numpy() for i, r in enumerate(reports)),
        "buffers": sum(0.25 * (1 + 2 * i) * d.float().numpy() for i, d in enumerate(deltas)),
    }
    state = strategy.init({"params": net.params.float().numpy(), "buffers": net.buffers.float().numpy()})
    info = CohortInfo(2, (0.25, 0.75), tuple(dict(r.scalars) for r in reports))
    state = strategy.step(state, mean, info)
    assert np.allclose(state["params"], other.params.numpy(), atol=1e-6)
    assert np.allclose(state["buffers"], other.buffers.numpy(), atol=1e-6)
    assert torch.equal(runs[1].kept["alone"], other.params)


def test_version_1_goes_on_from_the_silos_own_network() -> None:
    strategy, net = FedMA(alone_epochs=1, reference="a"), Flattened(drawn(Residual(), 1))
    own = drawn(Residual(), 2)
    params, buffers = Flattened(own).params, Flattened(own).buffers
    kept = Zeros(params.numel()) | {"alone": params, "alone_buffers": buffers}
    for version, expected in ((1, params), (2, net.params)):
        run = run_of(net, net.params, net.buffers, version, kept=kept)
        strategy.begin(run)
        assert torch.equal(run.params, expected)
    late = run_of(net, net.params, net.buffers, 1)
    strategy.begin(late)
    assert torch.equal(late.params, net.params)


def test_36_layer_by_layer_the_driver_recovers_permuted_copies() -> None:
    """Every silo has the same network, with its units in another order: the mean is that network again."""
    net = Flattened(drawn(mlp(7, 16, 12, 4), 1), torch.float32)
    strategy = FedMA(at="driver")
    state = strategy.init({"params": np.zeros(net.params.numel(), np.float32)})
    copies = [net.permuted(seed)[0] for seed in range(3)]
    keeps: list[Any] = [Zeros(net.params.numel()) | {"alone": copy} for copy in copies]
    x = torch.randn(9, 7, generator=torch.Generator().manual_seed(1))
    for version in range(3):
        updates = []
        for kept in keeps:
            anchor = torch.from_numpy(state["params"])
            run = LocalRun(anchor.clone(), anchor, {}, kept, version=version, symmetries=net.symmetries)
            strategy.begin(run)
            if version == 0:
                run.params[:] = kept["alone"]
            report = strategy.report(run)
            updates.append({name: part.numpy().copy() for name, part in report.parts.items()})
        mean = strategy.fold(state, updates, [0.2, 0.5, 0.3], version, net.symmetries)
        state = strategy.step(state, mean, CohortInfo(3, (0.2, 0.5, 0.3), ({"leads": 0.0},) * 3))
    known = net.output(net.params, net.buffers, x)
    ours = net.output(torch.from_numpy(state["params"]), net.buffers, x)
    assert (ours - known).abs().max() < 1e-5 * known.abs().max()


def test_what_is_compared_and_what_is_held_of_a_chain() -> None:
    flat = FlatModel(mlp(7, 5, 4, 3))
    symmetries = symmetries_of(flat)
    sizes = [7 * 5, 5, 5 * 4, 4]
    starts = np.cumsum([0, *sizes]).tolist()
    assert [sorted(a.start for a in incoming(symmetries, i)) for i in (0, 1)] == [starts[0:2], starts[2:4]]
    for done in range(3):
        slices = sorted((part.start, part.stop) for part in held(symmetries, done))
        assert slices == [(starts[i], starts[i + 1]) for i in range(2 * done)]


def test_matched_layers_are_held_while_the_rest_is_trained() -> None:
    net = Flattened(drawn(mlp(7, 5, 4, 3), 1))
    strategy = FedMA(at="driver")
    params = net.params + 1.0
    run = run_of(net, params, net.buffers, version=1)
    gradient = strategy.direction(run, lambda point: torch.ones_like(point))
    assert torch.equal(gradient, (torch.arange(params.numel()) >= 40).to(gradient))
    assert torch.equal(run.params[:40], net.params[:40]) and torch.equal(run.params[40:], params[40:])
    run.version = 3
    assert bool(strategy.direction(run, lambda point: torch.ones_like(point)).all())


@pytest.mark.parametrize("at", ["silo", "driver"])
def test_networks_trained_apart_in_a_federation(tmp_path: Path, at: str) -> None:
    """Three silos, each from its own seed: matched, they are as good as each alone, and the plain mean of them has
    another order in every unit."""
    alone = {"alone_epochs": 6}
    silos = ("a", "b", "c")
    if at == "silo":
        alone = {**alone, "reference": "a"}
    job = blob_job(5, silos, strategy={"name": "fedma", "at": at, **alone}, required_silos=["a"])
    ended = run_blobs(job, tmp_path)
    figures = [closed.evaluated.overall["accuracy"] for closed in ended.rounds]
    assert ended.outcome.status == "done" and figures[-1] > 0.9, figures
    again = run_blobs(job, tmp_path / "again")
    assert again.params.tobytes() == ended.params.tobytes()


def test_an_identity_fold_is_the_weighted_mean() -> None:
    rng = np.random.default_rng(0)
    updates = [{"delta": rng.normal(size=9).astype(np.float32)} for _ in range(3)]
    shares = [0.2, 0.5, 0.3]
    known = sum(np.float32(s) * u["delta"] for s, u in zip(shares, updates, strict=True))
    assert (FedAvg().fold({}, updates, shares, 0, ())["delta"] == known).all()

"""What a silo finds out about a model, and what of that leaves."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.core.messages import Assess, Assessed, Join, Joined, Refused
from orchestrator.core.metrics import values
from orchestrator.job import Job
from silos.config import Policy
from silos.silo import Silo
from silos.site import Cancelled, Guard, Order
from silos.tasks.task import At
from silos.trainer import TorchTrainer
from tests.support.blobs import Blobs, Net
from tests.support.torch_site import TorchSite, blob_sites, torch_job

torch.set_num_threads(1)  # as the trainer does


def asked(silo: Silo, job: Job, **given: Any) -> Any:
    """The reply to an assessment of the initial model, after joining."""
    header = {"run_id": "run", "epoch": 1}
    joined = silo.handle(Join(**header, job=job.model_dump_json(), job_digest=job.digest))
    assert isinstance(joined, Joined), joined
    model = dict(TorchTrainer(job, silo.name, silo.site.task, "cpu").initial())  # type: ignore[attr-defined]
    fields = {
        "version": 2,
        "model": model,
        "model_digest": "m",
        "counted": -1,
        "trainings": 2,
        "num_steps": 6,
    }
    return silo.handle(Assess(**header, **{**fields, **given}))


def found(folder: Path, job: Job | None = None, **site: Any) -> Assessed:
    reply = asked(Silo(TorchSite("a", folder, **{"task": Blobs(), **site})), job or torch_job())
    assert isinstance(reply, Assessed), reply
    return reply


def test_all_models_with_intervals_and_the_curve(tmp_path: Path) -> None:
    reply = found(tmp_path)
    assert set(reply.models) == {"global", "alone", "fine_tuned"} and reply.num_steps == 6
    assert [steps for steps, _ in reply.curve] == [0, 1, 5, 10, 50]
    assert reply.curve[0][1] == reply.models["global"].metrics
    for name, model in reply.models.items():
        figures = values(model.metrics)
        assert model.intervals.keys() == figures.keys() == {"loss", "accuracy"}
        assert all(
            model.intervals[metric][0] <= value <= model.intervals[metric][1]
            for metric, value in figures.items()
        )
        assert model.gains.keys() == model.verdicts.keys() == (set() if name == "alone" else figures.keys())
    accepted = dict(reply.curve)[reply.accepted]
    assert values(reply.models["fine_tuned"].metrics) == pytest.approx(values(accepted), abs=1e-6)


def test_alone_is_a_plain_loop(tmp_path: Path) -> None:
    job, task = torch_job(), Blobs()
    torch.manual_seed(job.seed)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    net.train()
    for version in (0, 1):
        for batch, _ in zip(task.train_batches(At(job.seed, "a", version, 0), 8), range(3), strict=False):
            optimizer.zero_grad()
            task.loss(net, batch).backward()
            optimizer.step()
    net.eval()
    images, labels = task.data["test"]
    assert found(tmp_path).models["alone"].metrics == task.measure(net, (images, labels))


def test_the_same_bits_again(tmp_path: Path) -> None:
    one, again = (replace(found(tmp_path / str(i)), seconds={}) for i in (0, 1))
    assert one == again


def test_parts_can_be_left_out_and_bounded(tmp_path: Path) -> None:
    bounded = found(tmp_path, torch_job(report={"adapt": [2], "max_steps": 4}))
    assert bounded.num_steps == 4 and [steps for steps, _ in bounded.curve] == [0, 2]
    bare = found(tmp_path / "b", torch_job(report={"adapt": [], "alone": False}))
    assert set(bare.models) == {"global"} and not bare.curve and not bare.models["global"].verdicts


def test_without_the_drivers_count_the_silo_knows_its_own_steps(tmp_path: Path) -> None:
    silo = Silo(TorchSite("a", tmp_path, Blobs()))
    assert asked(silo, torch_job(), num_steps=0, trainings=5).num_steps == 15


def test_what_leaves_is_what_may(tmp_path: Path) -> None:
    """An interval's width tells the number of rows."""
    policy = Policy(metrics_out=("accuracy",), share_counts=False)
    job = torch_job(combine={"weights": "uniform"})
    reply = found(tmp_path, job, policy=policy)
    assert reply.num_steps == 0
    for name, model in reply.models.items():
        assert set(model.metrics) == {"accuracy"} and model.metrics["accuracy"].count == 1
        assert not model.intervals and not model.gains
        assert set(model.verdicts) == (set() if name == "alone" else {"accuracy"})
    assert all(set(sums) == {"accuracy"} for _, sums in reply.curve)
    only = found(tmp_path / "b", job, policy=Policy(metrics_out=("loss",)))
    assert all(set(model.intervals) == {"loss"} for model in only.models.values())


def test_the_same_model_is_assessed_once_and_recorded_each_time(tmp_path: Path) -> None:
    class Recording(Guard):
        def __init__(self) -> None:
            self.lines: list[dict[str, Any]] = []

        def left(self, what: str, run_id: str, **facts: Any) -> None:
            self.lines.append({"what": what, **facts})

    site = TorchSite("a", tmp_path, Blobs(), guard=Recording())
    silo = Silo(site)
    assert asked(silo, torch_job()) == asked(silo, torch_job())
    assert site.assessed == [2]
    assert isinstance(asked(silo, torch_job(), model_digest="another"), Assessed)
    assert site.assessed == [2, 2]
    assert [line["what"] for line in site.guard.lines] == ["assessed"] * 3  # type: ignore[attr-defined]
    line = site.guard.lines[0]  # type: ignore[attr-defined]
    assert line["metrics"] == "accuracy, loss" and "alone" in line["models"]


def test_a_guard_may_forbid_it(tmp_path: Path) -> None:
    class No(Guard):
        def begins(self, *_: Any) -> str | None:
            return "enough"

    reply = asked(Silo(TorchSite("a", tmp_path, Blobs(), guard=No())), torch_job())
    assert isinstance(reply, Refused) and (reply.code, reply.reason) == ("policy", "enough")


def test_it_can_be_cancelled_at_every_step(tmp_path: Path) -> None:
    phases: dict[str, int] = {}

    def tick(phase: str, done: int, total: int) -> None:
        assert 1 <= done <= total
        phases[phase] = phases.get(phase, 0) + 1
        if phase == "resampling":
            raise Cancelled

    site, job = blob_sites(tmp_path)["a"], torch_job()
    trainer = site.trainer(job)
    model = dict(trainer.initial())
    with pytest.raises(Cancelled):
        site.assess(trainer, Order(version=2, received=model, state={}, tick=tick, num_steps=6, trainings=2))
    assert phases["training"] == 6 and phases["fine-tuning"] == 50 and phases["resampling"] == 1
    assert not trainer.network.call._forward_hooks


def test_a_personal_model_is_measured_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = torch_job()
    monkeypatch.setattr(type(job.strategy), "personal", lambda self, kept, params: params * 0)
    reply = found(tmp_path, job)
    assert set(reply.models) == {"global", "alone", "fine_tuned", "personal"}
    assert values(reply.models["personal"].metrics)["loss"] == pytest.approx(np.log(2), abs=1e-6)


def test_few_rows_have_no_interval_and_no_verdict(tmp_path: Path) -> None:
    task = Blobs()
    task.data["test"] = tuple(each[:9] for each in task.data["test"])  # type: ignore[assignment]
    models = found(tmp_path, task=task).models
    assert all(not each.intervals and not each.verdicts and each.metrics for each in models.values())


def test_no_test_rows_no_figures(tmp_path: Path) -> None:
    task = Blobs()
    task.data["test"] = tuple(each[:0] for each in task.data["test"])  # type: ignore[assignment]
    task.test_batches = lambda size: iter(())  # type: ignore[method-assign, assignment]
    reply = found(tmp_path, task=task)
    assert all(not each.metrics for each in reply.models.values())

"""DP-SGD in a silo's training: what is taken, the noise, whom it protects, and what it does not go with."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from orchestrator.core.errors import BadInput, BadJob
from orchestrator.job import Job, Strategy
from orchestrator.privacy.accountant import Query
from silos.assess import assess
from silos.clipped import Ghost, Single
from silos.flat_model import FlatModel
from silos.mid_round import MidRound, Rhythm
from silos.normalisation import unmixed
from silos.rebuilt import module_of
from silos.site import Trained
from silos.spending import Charge, Spend
from silos.tasks.task import At
from silos.tasks.vision_models import SmallCnn
from silos.trainer import TorchTrainer
from tests.support.blobs import Blobs, Net
from tests.support.quadratic import job_of
from tests.support.records import Rows, Sequences, convolutions, order_of

torch.set_num_threads(1)

DP = {"name": "dp_sgd", "max_grad_norm": 0.5, "noise_multiplier": 2.0}


def job(dp: dict[str, Any] | None = None, **sections: Any) -> Job:
    local = {"steps": 4, "batch_size": 8, "optimizer": {"lr": 0.1}, **sections.pop("local", {})}
    return job_of(["a", "b"], local=local, privacy=[{**DP, **(dp or {})}], **sections)


def trainer(made: Job, task: Blobs | None = None) -> TorchTrainer:
    return TorchTrainer(made, "a", task or Rows(convolutions), "cpu")


def trained(made: TorchTrainer, **given: Any) -> Trained:
    return made.train(order_of(made, **given))


def delta(made: TorchTrainer, **given: Any) -> np.ndarray:
    return np.array(trained(made, **given).parts["delta"])


def spent(made: TorchTrainer) -> int:
    """Steps that a training is charged with."""
    spend = made.spends(order_of(made))
    assert spend is not None and spend == made.most(0)
    return spend.query.steps


def steps(made: TorchTrainer, version: int = 0, trains: str = "all") -> Iterator[Tensor]:
    """The gradients of an epoch, of shared and private parameters."""
    assert made.private is not None
    made.network.call.train()
    with made.private.phase(trains, version):
        for each in made.private.epoch(At(0, "a", version, 0), 0):
            each(made.flat.shared)
            yield made.flat.gradient.clone()


def test_noise_has_the_deviation_that_is_accounted_for() -> None:
    """Over the expected batch, whoever was taken: sigma C / batch_size."""
    made = trainer(job({"max_grad_norm": 1e-6}))  # noise alone, to all intents
    found = torch.stack([each for _ in range(60) for each in steps(made)]) / 1e-6
    assert abs(float(found.std()) * 8 / 2.0 - 1) < 0.02
    assert abs(float(found.mean())) < 5 * float(found.std()) / found.numel() ** 0.5
    assert len(torch.unique(found)) > 0.99 * found.numel()


def test_without_noise_it_is_the_mean_over_the_expected_batch() -> None:
    made = trainer(job({"max_grad_norm": 1e9, "noise_multiplier": 1e-15}, local={"batch_size": 40}))
    images, labels = made.task.data["train"]  # type: ignore[attr-defined]
    found = next(steps(made))
    made.flat.clear_gradient()
    made.task.loss(made.flat.module, (images, labels)).backward()
    assert torch.allclose(found, made.flat.gradient, rtol=1e-4, atol=1e-5)


def test_a_batch_in_pieces_is_the_same_batch() -> None:
    wanted: Tensor | None = None
    for pieces in (64, 7, 1):
        made = trainer(
            job(
                {"physical_batch": pieces, "noise_multiplier": 1e-9, "insecure_test_noise_seed": 1},
                local={"batch_size": 20},
            )
        )
        found = next(steps(made))
        assert wanted is None or torch.allclose(found, wanted, atol=1e-6)
        wanted = found


def test_steps_without_anybody_are_noise() -> None:
    made = trainer(job({"max_grad_norm": 1.0}, local={"batch_size": 1}), Rows(convolutions, rows=3))
    sizes = [float(each.norm()) for _ in range(20) for each in steps(made)]
    assert len(sizes) == 60 and min(sizes) > 1.0


def test_an_epoch_takes_everybody_once_on_average() -> None:
    made = trainer(job(local={"steps": None, "epochs": 2, "batch_size": 16}))
    assert made.private is not None
    assert (made.private.num_units, made.private.chance, made.private.steps_per_epoch) == (40, 0.4, 3)
    result = trained(made)
    assert result.num_steps == 6 and spent(made) == 6
    assert result.train_metrics == {}  # a loss of rows trained on would be outside the budget


def test_a_run_goes_on_with_its_own_noise_beside_that_of_the_silo() -> None:
    """Which another step of the job adds to the sum, and the ledger has on the line after."""
    target = job({"noise_multiplier": None, "target_epsilon": 3.0}, local={"batch_size": 40})
    first, again = trainer(target), trainer(target)
    first.settle([], "run")
    charged = [first.most(0), Spend(Query(1.0, 0.1, 1), unit="silo")]
    again.settle([Charge(each, "job", "data", run="run") for each in charged if each], "run")
    assert first.private is not None and again.private is not None
    assert again.private.noise_multiplier == first.private.noise_multiplier != 0.1


def test_all_of_a_small_data_set_in_every_step() -> None:
    made = trainer(job(local={"batch_size": 64}))
    assert made.private is not None and (made.private.chance, made.private.steps_per_epoch) == (1.0, 1)


def test_what_comes_of_it_repeats_only_where_a_test_wants_it() -> None:
    assert not (delta(trainer(job())) == delta(trainer(job()))).any()
    same = job({"insecure_test_noise_seed": 3})
    assert (delta(trainer(same)) == delta(trainer(same))).all()
    assert not (delta(trainer(same)) == delta(trainer(same), version=1)).any()


def test_a_training_taken_up_again_draws_anew(tmp_path: Any) -> None:
    """As many steps in all as are accounted for, and no noise twice."""
    made, seen = TorchTrainer(job(), "a", Rows(convolutions), "cpu", rhythm=Rhythm(None, 1)), []

    def train(dies_after: int) -> int:
        done = 0

        def tick(phase: str, at: int, total: int) -> None:
            nonlocal done
            if phase == "training":
                done, _ = at, seen.append(made.flat.gradient.clone())
                if at == dies_after:
                    raise KeyboardInterrupt

        with suppress(KeyboardInterrupt):
            trained(made, mid_round=MidRound(tmp_path, "the work"), tick=tick)
        return done

    assert train(3) == 3 and train(9) == 4
    assert len(seen) == 3 + 2  # the third one was lost with the process, after the checkpoint of the second
    noises = torch.stack(seen)
    assert len(torch.unique(noises)) > 0.99 * noises.numel()


def test_who_is_taken_does_not_follow_the_jobs_seed() -> None:
    taken = []
    for _ in range(2):
        made = trainer(job(seed=5))
        torch.manual_seed(0)
        draws = made.private._draws(At(5, "a", 0, 0), 0)  # type: ignore[union-attr]
        taken.append(torch.cat(made.private._taken(draws)).tolist())  # type: ignore[union-attr]
    assert taken[0] != taken[1]


@pytest.mark.parametrize("unit", ["record", "patient"])
def test_everybody_is_taken_as_often_as_is_accounted_for(unit: str) -> None:
    """Each by itself, whoever else is in the step."""
    who = {"unit": unit, "column": "p"} if unit == "patient" else {}
    made = trainer(job(who, local={"batch_size": 10}), Rows(convolutions, patients=range(40)))
    spend = made.spends(order_of(made))
    assert made.private is not None and spend is not None and spend.query.q == 0.25
    draws, times, in_step = made.private._draws(At(0, "a", 0, 0), 0), np.zeros(40), []
    for _ in range(4000):
        taken = torch.cat([*made.private._taken(draws), torch.empty(0, dtype=torch.int64)]).numpy()
        times[taken] += 1
        in_step.append(len(taken))
    deviation = (0.25 * 0.75 / 4000) ** 0.5
    assert np.abs(times / 4000 - 0.25).max() < 5 * deviation
    assert abs(times.mean() / 4000 - 0.25) < 5 * deviation / 40**0.5
    assert np.var(in_step) == pytest.approx(40 * 0.25 * 0.75, rel=0.15)  # no batch of a fixed size


PATIENTS = np.repeat([0, 1, 2, 3], [25, 10, 4, 1])


def test_patients_are_taken_and_cut_as_a_whole() -> None:
    dp = {"unit": "patient", "column": "patient", "max_records": 6, "max_grad_norm": 0.01}
    made = trainer(job(dp, local={"batch_size": 4}), Rows(convolutions, patients=PATIENTS))
    assert made.private is not None
    assert (made.private.num_units, made.private.chance) == (4, 1.0)
    pieces = made.private._taken(made.private._draws(At(0, "a", 0, 0), 0))
    assert [len(each) for each in pieces] == [6, 6, 4, 1]
    assert [set(PATIENTS[each.numpy()].tolist()) for each in pieces] == [{0}, {1}, {2}, {3}]


@pytest.mark.parametrize("gone", [0, 3])
def test_a_patient_more_or_less_moves_the_sum_by_the_bound_at_most(gone: int) -> None:
    dp = {
        "unit": "patient",
        "column": "patient",
        "max_records": 30,
        "noise_multiplier": 1e-12,
        "max_grad_norm": 0.05,
    }
    found = []
    for kept in (np.ones(40, bool), gone != PATIENTS):
        task = Rows(convolutions, patients=np.unique(PATIENTS[kept], return_inverse=True)[1])
        task.data["train"] = tuple(each[torch.from_numpy(kept)] for each in task.data["train"])
        found.append(next(steps(trainer(job(dp, local={"batch_size": 4}), task))) * 4)
    assert 0.9 * 0.05 < float((found[0] - found[1]).norm()) <= 0.05 + 1e-6


def test_private_layers_are_inside_the_bound() -> None:
    """FedPer trains the head, which stays, and the body, which leaves, with one gradient."""
    made = trainer(job({"max_grad_norm": 1e-3, "noise_multiplier": 1e-9}, strategy={"name": "fedper"}))
    assert made.flat.private.numel() == 14
    for each in steps(made):
        assert 0 < float(each.norm()) <= 40 / 8 * 1e-3
        assert each[made.flat.num_shared :].any() and each[: made.flat.num_shared].any()


def test_phases_cut_what_they_train() -> None:
    """FedRep: the head, then the body; both are steps of the budget."""
    made = trainer(job(strategy={"name": "fedrep", "head_epochs": 1}, local={"steps": None, "epochs": 1}))
    num_shared = made.flat.num_shared
    for trains, part in (("own", slice(num_shared, None)), ("shared", slice(num_shared))):
        for each in steps(made, trains=trains):
            assert each[part].all()
            each[part] = 0
            assert not each.any()
    assert spent(made) == trained(made).num_steps + 5 == 10


def test_what_is_frozen_gets_no_noise() -> None:
    made = trainer(job(frozen=["0.*", "1.*"], unfreeze={2: ["1.*"]}, rounds={"total": 3}))
    assert made.flat.gradient.numel() == 208
    for version, held in ((0, 8), (2, 0)):
        for each in steps(made, version):
            assert int((each == 0).sum()) == held


def test_adapters() -> None:
    pytest.importorskip("peft")
    made = trainer(
        job(adapters={"name": "lora", "rank": 2, "targets": ["inner"]}, shared=["head.*"]), Rows(Sequences)
    )
    before = {name: each.clone() for name, each in made.flat.frozen_tensors()}
    result = trained(made)
    assert result.parts["delta"].size == made.flat.num_shared == 2 * (8 + 5) + 12
    assert result.parts["delta"].all()
    assert all(torch.equal(each, before[name]) for name, each in made.flat.frozen_tensors())


def test_batch_normalisation_is_refused_or_replaced() -> None:
    with pytest.raises(BadJob, match=r"layer 'bn' \(BatchNorm2d\).*batch_norm: replace"):
        trainer(job(), Rows(Net))
    made = trainer(job({"batch_norm": "replace"}), Rows(Net))
    replaced = dict(made.flat.module.named_modules())["bn"]
    assert isinstance(replaced, nn.GroupNorm) and (replaced.num_groups, replaced.num_channels) == (4, 4)
    assert "buffers" not in made.initial() and "buffers" not in trained(made).parts
    plain = TorchTrainer(job_of(["a", "b"]), "a", Rows(Net), "cpu")
    assert (made.initial()["params"] == plain.initial()["params"]).all()  # the same draws as without
    other = TorchTrainer(job({"batch_norm": "replace"}), "b", Rows(Net, seed=3), "cpu")
    assert other.schema_digest == made.schema_digest
    assert (other.initial()["params"] == made.initial()["params"]).all()


def test_frozen_batch_normalisation_mixes_nobody() -> None:
    made = trainer(job(frozen=["bn.*"]), Rows(Net))
    before = made.flat.module.bn.running_mean.clone()
    assert np.isfinite(delta(made)).all()
    assert torch.equal(made.flat.module.bn.running_mean, before)


class OnlyBatches(Blobs):
    """A user's own task that knows nothing of row numbers."""

    def model(self) -> nn.Module:
        return convolutions()


def test_a_task_without_row_numbers_is_refused() -> None:
    with pytest.raises(BadJob, match="'OnlyBatches' has no 'train_rows'"):
        trainer(job(), OnlyBatches())


@pytest.mark.parametrize(
    ("dp", "sections", "why"),
    [
        ({"target_epsilon": 1.0}, {}, "one of the two"),
        ({"noise_multiplier": None}, {}, "one of the two"),
        ({"noise_multiplier": 0}, {}, "greater than 0"),
        ({"unit": "patient"}, {}, "give 'column'"),
        ({"column": "patient"}, {}, "give 'column'"),
        ({"unit": "patient", "column": "p", "engine": "ghost"}, {}, "of single records"),
        (
            {"noise_multiplier": None, "target_epsilon": 1.0, "insecure_test_noise_seed": 1},
            {},
            "keeps no 'target_epsilon'",
        ),
        ({}, {"strategy": {"name": "moon"}}, "'moon' looks at the rows in another way"),
        ({}, {"strategy": {"name": "ditto"}}, "'ditto' looks"),
        ({}, {"strategy": {"name": "apfl"}}, "'apfl' looks"),
        ({}, {"strategy": {"name": "fomaml"}}, "'fomaml' looks"),
        ({}, {"strategy": {"name": "per_fedavg"}}, "'per_fedavg' looks"),
        ({}, {"strategy": {"name": "meta_sgd"}}, "'meta_sgd' looks"),
        ({}, {"strategy": {"name": "fedmd", "public": "p"}}, "'fedmd' looks"),
        ({}, {"local": {"precision": "fp16"}}, "use float32"),
        ({}, {"local": {"precision": "bf16"}}, "use float32"),
        ({}, {"local": {"clip_grad_norm": 1.0}}, "local.clip_grad_norm"),
        ({}, {"local": {"compile": True}}, "local.compile"),
        ({}, {"report": {"do_no_harm": "block"}}, "nothing can be found to block"),
        ({}, {"release": {"attacks": ["canary"], "canaries": 5}}, "a record has a part in several units"),
    ],
)
def test_jobs_that_make_no_sense(dp: dict[str, Any], sections: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        job(dp, **sections)


def test_once() -> None:
    with pytest.raises(ValueError, match="stands twice"):
        job_of(["a"], privacy=[DP, DP])


def test_a_silos_own_settings_are_looked_at_too() -> None:
    made = job()
    with pytest.raises(BadInput, match=r"use float32 .*silo\.yaml"):
        own = made.local.model_copy(update={"precision": "bf16"})
        TorchTrainer(made, "a", Rows(convolutions), "cpu", own)


def test_a_strategy_that_asks_for_more_than_is_accounted_for_is_stopped() -> None:
    made = trainer(job())
    assert made.private is not None
    made.network.call.train()
    with made.private.phase("all", 0):
        for ask in (
            {"point": made.flat.shared.clone()},
            {"point": made.flat.shared, "part": "support"},
        ):
            step = next(made.private.epoch(At(0, "a", 0, 0), 0))
            with pytest.raises(RuntimeError, match="accounts for one gradient"):
                step(**ask)
        step = next(made.private.epoch(At(0, "a", 0, 0), 0))
        step(made.flat.shared)
        with pytest.raises(RuntimeError, match="accounts for one gradient"):
            step(made.flat.shared)


class Counting(nn.Module):
    """Keeps the mean of what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 2)
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.copy_(x.mean())
        return self.head(x.flatten(1))


def test_statistics_of_the_rows_do_not_leave() -> None:
    for private in ([], ["mean"]):  # one that stays moves the gradients of later steps
        with pytest.raises(BadJob, match="training changes 'mean'"):
            trained(trainer(job(private=private), Rows(Counting)))
    assert trained(trainer(job_of(["a", "b"]), Rows(Counting))).parts["buffers"].any()


def test_constant_buffers_do_no_harm() -> None:
    class Fixed(Counting):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.flatten(1) + self.mean)

    assert not trained(trainer(job(), Rows(Fixed))).parts["buffers"].any()


def test_the_report_trains_on_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a model alone nor a fine-tuned one: both would be outside the budget."""
    made = trainer(job())
    trained(made)
    monkeypatch.setattr(made.task, "train_batches", None)
    found = assess(made, order_of(made, 1, trainings=1))
    assert set(found.models) == {"global"} and not found.curve and not found.num_steps


GIVEN: dict[str, dict[str, Any]] = {
    "fedasync": {"rounds": {"mode": "fedasync", "total": 3}},
    "area": {"combine": {"weights": "uniform"}},
    "fedmd": {"strategy": {"name": "fedmd", "public": "p"}},
    "fedbn": {"private": ["1.*"]},
}
NAMES = [each.model_fields["name"].default for each in get_args(get_args(Strategy)[0])]


@pytest.mark.parametrize("name", NAMES)
def test_the_rows_are_known_by_the_sums_of_cut_gradients_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two data sets of which these are the same leave the same: updates, public numbers, private state, figures."""
    for engine in (Ghost, Single):
        monkeypatch.setattr(engine, "add", lambda self, batch, total: total.add_(0.01 * len(batch[0])))
    sections = {"strategy": {"name": name}, "rounds": {"total": 3}, **GIVEN.get(name, {})}
    try:
        made = job({"insecure_test_noise_seed": 1}, **sections)
    except ValueError as refused:
        assert f"'{name}' looks at the rows in another way" in str(refused)
        return
    assert everything(made, 7) == everything(made, 8)


def everything(made: Job, seed: int) -> list[Any]:
    """That comes of three trainings on rows of this seed, and of the report."""
    task, state, found = Rows(convolutions), {}, list[Any]()
    task.data["train"] = Rows(convolutions, seed=seed).data["train"]
    silo = trainer(made, task)
    for version in range(3):
        result = silo.train(order_of(silo, version, state))
        vectors = {name: np.array(each).tobytes() for name, each in {**result.parts, **state}.items()}
        found.append((vectors, result.scalars, result.num_steps, result.metrics, result.train_metrics))
    assessed = assess(silo, order_of(silo, 3, state, trainings=3))
    return [*found, {name: each.metrics for name, each in assessed.models.items()}, assessed.curve]


def test_a_model_is_rebuilt_as_it_was_trained() -> None:
    """For exports: with what took the place of batch normalisation."""
    task = {
        "name": "image_classification",
        "dataset": "d",
        "num_classes": 2,
        "channels": 1,
        "model": {"name": "cnn", "norm": "batch"},
    }
    made = job({"batch_norm": "replace"}, task=task)
    torch.manual_seed(made.seed)
    module = unmixed(SmallCnn(1, (8, 8), 2, "batch"), made)
    flat = FlatModel(module)
    model = {"entries": [entry._asdict() for entry in flat.entries], "input_shape": [1, 8, 8]}
    flat.shared.add_(1.0)
    rebuilt = module_of(made, model, flat.parts())
    assert isinstance(rebuilt.norm1, nn.GroupNorm)
    inputs = torch.randn(3, 1, 8, 8)
    assert torch.equal(rebuilt(inputs), flat.module.eval()(inputs))


def test_what_is_said_of_updates_is_not_said_of_dp_sgd() -> None:
    for sections in (
        {"strategy": {"name": "fedasync"}, "rounds": {"mode": "fedasync", "total": 2}},
        {"strategy": {"name": "area"}, "combine": {"weights": "uniform"}},
    ):
        job(**sections)
        with pytest.raises(ValueError, match="a bound that they fit under bounds nothing"):
            job_of(["a", "b"], privacy=[{"name": "clip", "max_norm": 1.0}], **sections)

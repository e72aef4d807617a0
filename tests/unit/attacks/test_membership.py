"""Membership inference tells members of an overfitted model from others, and of a fresh one it does not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from orchestrator.release import ReleaseSettings
from silos.attacks import membership
from silos.attacks.attack import attack
from silos.attacks.membership import Shadow, attacked, logit
from silos.attacks.rows import chunks, losses
from silos.attacks.telling import told_of
from silos.config import Policy
from silos.site import Findings, Order
from silos.trainer import TorchTrainer
from tests.support.blobs import Blobs, Net
from tests.support.noisy_digits import NoisyDigits
from tests.support.torch_site import torch_job

torch.set_num_threads(1)

EAGER = {"epochs": 60, "batch_size": 32, "optimizer": {"name": "adam", "lr": 0.01}}


def trained(epochs: int, privacy: Any = (), **release: Any) -> tuple[TorchTrainer, Order]:
    """Alone on digits of which a fifth have random labels, and the order to attack what came of it."""
    settings = ReleaseSettings(**release)
    job = torch_job(
        "ab",
        local={**EAGER, "epochs": max(1, epochs)},
        privacy=privacy,
        release=settings.model_dump(mode="json"),
    )
    trainer = TorchTrainer(job, "a", NoisyDigits(0), "cpu")
    order = Order(version=0, received=trainer.initial(), state={}, tick=lambda *_: None)
    if epochs:
        given = trainer.train(order).parts["delta"]
        model = {"params": (order.received["params"] + given).astype(np.float32)}
        order = Order(version=1, received=model, state={}, tick=lambda *_: None, trainings=1)
    return trainer, order


def test_an_overfitted_model_is_told_and_a_fresh_one_is_not() -> None:
    trainer, order = trained(100)
    assert trainer.job.release is not None
    found = attack(trainer, order, trainer.job.release)
    assert found.scores["auc"] >= 0.65 and found.scores["auc_low"] > 0.6
    assert found.vote == "fail" and found.num_rows == 300
    fresh, order = trained(0)
    assert fresh.job.release is not None
    found = attack(fresh, order, fresh.job.release)
    assert 0.42 < found.scores["auc"] < 0.58 and found.vote == "pass"


def test_with_differential_privacy_members_are_not_told() -> None:
    """The same rows and steps as above, at which the attack without it finds members with an AUC of .65 and more."""
    noise = {"name": "dp_sgd", "max_grad_norm": 1.0, "noise_multiplier": 2.0, "insecure_test_noise_seed": 1}
    trainer, order = trained(100, privacy=[noise])
    assert trainer.job.release is not None
    found = attack(trainer, order, trainer.job.release)
    assert found.scores["auc"] <= 0.57 and found.vote == "pass"


@pytest.mark.slow
def test_shadow_models_do_not_make_the_attack_weaker() -> None:
    trainer, order = trained(100, shadows=4)
    assert trainer.job.release is not None
    plain = attack(trainer, order, trainer.job.release.model_copy(update={"shadows": 0}))
    found = attack(trainer, order, trainer.job.release)
    assert found.scores["auc"] >= plain.scores["auc"] >= 0.65
    assert found.scores["tpr_at_1_fpr"] > 0.03


def test_shadows_know_which_rows_are_hard() -> None:
    """Losses are the row's difficulty less a little for members: only what is calibrated sees the little."""
    rng = np.random.default_rng(0)
    hard = rng.gamma(1.0, 2.0, 400)
    member = np.arange(400) < 200
    ours = hard * np.where(member, 0.7, 1.0) * rng.uniform(0.95, 1.05, 400)
    shadows = []
    for number in range(8):
        saw = ~saw if number % 2 else rng.random(400) < 0.5  # noqa: F821
        shadows.append(Shadow(hard * np.where(saw, 0.7, 1.0) * rng.uniform(0.95, 1.05, 400), saw))
    by_name = {each.attack: each for each in attacked(ours[:200], ours[200:], shadows)}
    assert by_name.keys() == {"threshold", "calibrated", "likelihood"}
    assert by_name["threshold"].auc < 0.62 < 0.85 < by_name["calibrated"].auc
    assert by_name["likelihood"].auc > 0.85
    assert [each.attack for each in attacked(ours[:200], ours[200:])] == ["threshold"]


def test_one_shadow_that_saw_a_row_leaves_it_unknown() -> None:
    saw = np.array([True] * 30 + [False] * 10)
    found = attacked(np.ones(20), np.ones(20), [Shadow(np.ones(40), saw)])
    assert [each.attack for each in found] == ["threshold"]


def test_logits_of_losses() -> None:
    assert logit(-np.log(np.array([0.5, 0.9]))) == pytest.approx([0.0, np.log(9)])
    assert np.isfinite(logit(np.array([0.0, 1e9]))).all()


def test_losses_row_by_row_are_those_of_single_rows() -> None:
    task, model = Blobs(rows=30), Net()
    rows = task.data["train"]
    with torch.no_grad():
        expected = [
            float(task.loss(model.eval(), (rows[0][i : i + 1], rows[1][i : i + 1]))) for i in range(30)
        ]
    assert losses(model, task, chunks(rows, 7)) == pytest.approx(expected, abs=1e-5)


def test_a_loss_that_asks_for_more_than_outputs_is_taken_row_by_row() -> None:
    class Decayed(Blobs):
        def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
            return super().loss(model, batch) + sum((p**2).sum() for p in model.parameters())

    task, model = Decayed(rows=12), Net()
    rows = task.data["train"]
    with torch.no_grad():
        expected = [
            float(task.loss(model.eval(), (rows[0][i : i + 1], rows[1][i : i + 1]))) for i in range(12)
        ]
    assert losses(model, task, chunks(rows, 5)) == pytest.approx(expected, abs=1e-5)


def test_too_few_rows_are_no_vote(tmp_path: Path) -> None:
    job = torch_job("ab", release={"attacks": ["membership"]})
    trainer = TorchTrainer(job, "a", Blobs(rows=membership.FEWEST - 1), "cpu")
    order = Order(version=0, received=trainer.initial(), state={}, tick=lambda *_: None)
    assert job.release is not None
    found = attack(trainer, order, job.release)
    assert found.vote == "none" and "needs 10 rows" in found.why["membership"]


def test_what_leaves_is_rounded_or_nothing() -> None:
    found = Findings(
        verdicts={"membership": "fail", "canary": "unable"},
        scores={"auc": 0.65432, "auc_low": 0.61, "psnr": 23.456, "exposure_low": 3.14159},
        why={"canary": "none planted"},
        num_rows=60,
        seconds={},
    )
    told = told_of(found, Policy())
    assert told.scores == {"auc": 0.65, "auc_low": 0.61, "psnr": 23.0, "exposure_low": 3.1}
    assert told.verdicts == found.verdicts and told.why == found.why
    few = Findings(verdicts=found.verdicts, scores=found.scores, why=found.why, num_rows=49, seconds={})
    for kept in (
        told_of(few, Policy()),
        told_of(found, Policy(attacks="vote")),
        told_of(found, Policy(share_counts=False)),
        told_of(found, Policy(metrics="summed")),
        told_of(found, Policy(), budgeted=True),
    ):
        assert (kept.verdicts, kept.scores, kept.why) == ({}, {}, {})

"""The attacks of the job's ``release`` section, made by a silo on a model that it has received.

The silo knows more than any attacker: which rows it trained on, and what an update of its own was made of. So what it
finds is about the most that others could find by the same means.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch

from orchestrator.core.random import rng_of
from orchestrator.release import Attack, ReleaseSettings
from silos.assess import train_alone
from silos.attacks.canaries import Planted, exposed
from silos.attacks.membership import FEWEST, Shadow, attacked
from silos.attacks.rows import MOST, chunks, gathered, losses, rows_at
from silos.attacks.view import inverted, on_task
from silos.attacks.wrapped import Only
from silos.site import Findings, Order
from silos.tasks.task import At, Batch
from silos.trainer import TorchTrainer


def attack(trainer: TorchTrainer, order: Order, settings: ReleaseSettings) -> Findings:
    """All attacks that the job asks for. Draws come from the order's version alone: the same again, the same scores."""
    found = _Found(num_rows=trainer.num_examples["train"])
    for name in settings.attacks:
        began = perf_counter()
        _ATTACKS[name](trainer, order, settings, found)
        found.seconds[name] = perf_counter() - began
    return Findings(
        verdicts=found.verdicts,
        scores=found.scores,
        why=found.why,
        num_rows=found.num_rows,
        seconds=found.seconds,
    )


@dataclass(slots=True)
class _Found:
    num_rows: int
    """Of the smallest group behind the figures on the silo's rows; canaries are nobody's."""
    verdicts: dict[str, Literal["pass", "fail", "unable"]] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def judge(self, name: Attack, scores: Mapping[str, float], evidence: Mapping[str, float]) -> None:
        """``evidence``: what is known of each limit's figure; above the limit, it fails."""
        self.scores.update(scores)
        self.verdicts[name] = "fail" if any(value > 0 for value in evidence.values()) else "pass"

    def unable(self, name: Attack, why: str) -> None:
        self.verdicts[name], self.why[name] = "unable", why


def _membership(trainer: TorchTrainer, order: Order, settings: ReleaseSettings, found: _Found) -> None:
    """The strongest attack counts."""
    base = trainer.task.task if isinstance(trainer.task, Planted) else trainer.task
    members = gathered(base.train_batches(At(trainer.job.seed, trainer.silo, order.version, 0), 256), MOST)
    others = gathered(base.test_batches(256), MOST)
    if min(len(members[0]) if members else 0, len(others[0]) if others else 0) < FEWEST:
        return found.unable(
            "membership", f"needs {FEWEST} rows that were trained on and {FEWEST} that were not"
        )
    m, n = len(members[0]), len(others[0])
    found.num_rows = min(found.num_rows, m, n)
    trainer.load(order)
    ours = _losses(trainer, order, (members, others), "membership")
    shadows = _shadows(trainer, order, settings.shadows, (members, others))
    each = attacked(ours[:m], ours[m:], shadows)
    strongest = max(each, key=lambda one: one.auc_low)
    sharpest = max(each, key=lambda one: one.tpr_low or 0.0)
    scores = {"auc": strongest.auc, "auc_low": strongest.auc_low}
    evidence = {"auc": strongest.auc_low - settings.max_auc}
    if sharpest.tpr is not None and sharpest.tpr_low is not None:
        scores |= {"tpr_at_1_fpr": sharpest.tpr, "tpr_at_1_fpr_low": sharpest.tpr_low}
        evidence["tpr_at_1_fpr"] = sharpest.tpr_low - settings.max_tpr_at_1_fpr
    return found.judge("membership", scores, evidence)


def _losses(
    trainer: TorchTrainer, order: Order, groups: tuple[Batch, ...], phase: str
) -> "np.ndarray[Any, np.dtype[np.float64]]":
    total, network = sum(len(each[0]) for each in groups), trainer.network
    rows = (network.on_device(batch) for group in groups for batch in chunks(group))
    return losses(network.flat.module, trainer.task, rows, lambda done: order.tick(phase, done, total))


def _shadows(trainer: TorchTrainer, order: Order, count: int, groups: tuple[Batch, Batch]) -> list[Shadow]:
    """Models trained alone on half of the rows; each second one on the other half of the one before."""
    pool = tuple(torch.cat(column) for column in zip(*groups, strict=True))
    rng, found = rng_of(trainer.job.seed, "shadows", trainer.silo, order.version), []
    steps = order.num_steps or max(order.trainings, 1) * trainer.steps_per_training
    steps = min(steps, trainer.job.report.max_steps)
    saw = np.zeros(len(pool[0]), bool)
    for number in range(count):
        saw = ~saw if number % 2 else rng.permutation(len(saw)) < len(saw) // 2
        with on_task(trainer, Only(trainer.task, rows_at(pool, np.flatnonzero(saw)))):
            train_alone(trainer, order, steps, max(1, steps // max(order.trainings, 1)))
        found.append(Shadow(_losses(trainer, order, groups, "shadows"), saw.copy()))
    return found


def _canary(trainer: TorchTrainer, order: Order, settings: ReleaseSettings, found: _Found) -> None:
    if not isinstance(trainer.task, Planted):
        return found.unable(
            "canary", "the silo planted none: too few training rows, or its policy is against it"
        )
    ours = trainer.task.canaries
    trainer.load(order)
    each = _losses(trainer, order, (ours.planted, ours.held_back), "canary")
    count = len(ours.planted[0])
    bits = exposed(each[:count], each[count:])
    return found.judge(
        "canary",
        {"exposure": bits.mean, "exposure_low": bits.low},
        {"exposure": bits.low - settings.max_exposure},
    )


def _inversion(trainer: TorchTrainer, order: Order, settings: ReleaseSettings, found: _Found) -> None:
    """No bound: the silo knows the record, so that the figure has no error."""
    best = inverted(trainer, order)
    if best is None:
        return found.unable(
            "inversion", "in closed form only where the input enters a shared linear layer with a bias"
        )
    return found.judge(
        "inversion", {"psnr": best.psnr, "cosine": best.cosine}, {"psnr": best.psnr - settings.max_psnr}
    )


_ATTACKS = {"membership": _membership, "canary": _canary, "inversion": _inversion}

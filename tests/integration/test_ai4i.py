"""The predictive maintenance example reaches its figures, from its own files, through real silos and the driver.

``alone``: the smallest silo trains the same model with the same settings for as many rounds of one epoch, and nobody
else takes part. Both models are judged on the test rows of all silos together, each row standardised by its own silo.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sklearn.metrics import roc_auc_score

from orchestrator.core import events
from orchestrator.job import Job
from silos.configured_site import ConfiguredSite
from silos.silo import Silo
from tests.support.federation import Ended, federate
from tests.support.scratch import scratch

EXAMPLE = Path(__file__).parents[2] / "examples" / "predictive_maintenance"
SILOS = ("grade-l", "grade-m", "grade-h")
SMALLEST = "grade-h"


def job(seed: int, silos: Sequence[str] = SILOS) -> Job:
    document = yaml.safe_load((EXAMPLE / "job.yaml").read_text(encoding="utf-8"))
    rounds = {**document["rounds"], "min_updates": len(silos)}
    return Job.model_validate({**document, "seed": seed, "silos": list(silos), "rounds": rounds})


def sites(folder: Path) -> dict[str, Path]:
    """The example's own silo.yaml files, in a copy beside which silos may write; they allow training alone."""
    shutil.copytree(EXAMPLE, folder / "example")
    documents = {name: folder / "example" / "silos" / name / "silo.yaml" for name in SILOS}
    for path in documents.values():
        text = path.read_text(encoding="utf-8")
        assert "min_cohort: 3" in text
        path.write_text(text.replace("min_cohort: 3", "min_cohort: 1"), encoding="utf-8")
    return documents


def train(work: Job, documents: dict[str, Path], folder: Path) -> Ended:
    makers: dict[str, Any] = {
        name: lambda path=documents[name]: Silo(ConfiguredSite(path)) for name in work.silos
    }
    ended = federate(work, makers, folder, limit_s=300)
    assert ended.outcome.status == "done" and not ended.refusals, ended.outcome
    assert ended.contributors == [sorted(work.silos)] * work.rounds.total
    return ended


def pooled_auc(ended: Ended, documents: dict[str, Path]) -> float:
    """Of the final model, over the test rows of all silos."""
    scores, labels = [], []
    for path in documents.values():
        trainer = ConfiguredSite(path).trainer(job(0))
        trainer.flat.load({"params": torch.from_numpy(ended.params.copy())})
        for inputs, failed in trainer.task.test_batches(512):
            with torch.inference_mode():
                scores.append(trainer.flat.module(inputs).reshape(-1))
            labels.append(failed)
    return float(roc_auc_score(torch.cat(labels), torch.cat(scores)))


def figures(seed: int) -> tuple[float, float, float]:
    """Area under the curve of the federation, as the run says it too, and of the smallest silo alone."""
    with scratch() as folder:
        documents = sites(folder)
        together = train(job(seed), documents, folder / "together")
        alone = train(job(seed, [SMALLEST]), documents, folder / "alone")
        (last,) = together.of(events.VersionEvaluated)
        return pooled_auc(together, documents), last.evaluated.overall["auc"], pooled_auc(alone, documents)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_the_federation_reaches_its_targets(seed: int) -> None:
    """Area under the curve on all test rows at least .978; the smallest silo gains at least .10 over training alone
    (notes/learning_targets.md, 3.5 and target 7: reference .9831, and .8646 alone)."""
    together, reported, alone = figures(seed)
    print(f"together {together:.4f}, alone {alone:.4f}")
    assert reported == pytest.approx(together, abs=0.001), "the run's own figure is the pooled one"
    assert together >= 0.978 and together - alone >= 0.10

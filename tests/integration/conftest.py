"""The four hospitals of the heart example and a job for them, as the tests on Ray need them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.job import Job

HEART = Path(__file__).parents[2] / "examples" / "heart_disease"


@pytest.fixture
def heart_silos(tmp_path: Path) -> Path:
    """The four hospitals' silo.yaml files, which allow the tests' tasks."""
    return write_silos(tmp_path / "silos")


def write_silos(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for document in sorted((HEART / "silos").glob("*/silo.yaml")):
        silo = yaml.safe_load(document.read_text(encoding="utf-8"))
        heart = silo["datasets"]["heart"]
        heart["path"] = str(document.parent / heart["path"])
        silo["policy"] = {**silo.get("policy", {}), "allow_code": ["tests.support"], "min_cohort": 1}
        (folder / f"{silo['name']}.yaml").write_text(yaml.safe_dump(silo), encoding="utf-8")
    return folder


@pytest.fixture
def slow_job() -> Callable[..., Job]:
    """A job of a few short rounds in which each training lasts ``steps`` times ``pause_s`` seconds."""

    def make(total: int = 4, steps: int = 20, pause_s: float = 0.03, **sections: Any) -> Job:
        return Job.model_validate(
            {
                "name": "slow-heart",
                "task": {
                    "name": "tests.support.slow_task:SlowTask",
                    "dataset": "heart",
                    "options": {"pause_s": pause_s},
                },
                "silos": ["cleveland", "hungarian", "switzerland", "va"],
                "rounds": {"total": total, "patience_s": 20, **sections.pop("rounds", {})},
                "local": {"steps": steps, "batch_size": 4, "optimizer": {"name": "sgd", "lr": 0.03}},
                "stop": {"metric": "accuracy"},
                **sections,
            }
        )

    return make

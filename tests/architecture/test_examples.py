"""Every algorithm has a job to begin with, and every job of the examples is valid."""

from pathlib import Path
from typing import get_args

import pytest

from orchestrator.job import Strategy, load_job

EXAMPLES = Path(__file__).parents[2] / "examples"
JOBS = [path for path in sorted(EXAMPLES.glob("*/*.yaml")) if "\ntask:" in path.read_text(encoding="utf-8")]
WITHOUT = {"fedprox", "scaffold"}
"""One word in any of the jobs."""


@pytest.mark.parametrize("path", JOBS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_job_of_the_examples_is_valid(path: Path) -> None:
    assert load_job(path).silos


def test_every_strategy_has_an_example() -> None:
    names = {each.model_fields["name"].default for each in get_args(get_args(Strategy)[0])}
    assert names - {load_job(path).strategy.name for path in JOBS} == WITHOUT

"""Eight organisations with DP-SGD: epsilon 8 for every image of theirs, and a model that still reads digits."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.core import events
from orchestrator.job import load_job
from silos.configured_site import ConfiguredSite
from silos.silo import Silo
from tests.support.federation import federate

pytestmark = pytest.mark.slow
EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"
WITHOUT = 0.97
"""Accuracy of ``job.yaml``, the network without noise."""


def silos(folder: Path) -> dict[str, Any]:
    """Makers of the example's silos, which keep what they write in a folder of their own."""
    folder.mkdir()
    for path in sorted(EXAMPLE.glob("silos/*/silo.yaml")):
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        given["datasets"] = {
            "digits": {**given["datasets"]["digits"], "path": str(path.with_name("data.parquet"))}
        }
        (folder / f"{given['name']}.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
    return {path.stem: lambda path=path: Silo(ConfiguredSite(path)) for path in folder.glob("*.yaml")}


def test_a_model_under_epsilon_eight(tmp_path: Path) -> None:
    given = load_job(EXAMPLE / "dp_sgd.yaml")
    made = given.model_copy(update={"report": given.report.model_copy(update={"silos": False})})
    ended = federate(made, silos(tmp_path / "silos"), tmp_path, limit_s=900)
    assert ended.outcome.status == "done" and not ended.refusals
    for each in ended.rounds[-1].contributors:
        assert each.privacy["delta"] == 1e-5 and 7.9 < each.privacy["epsilon"] <= 8.0
    (last,) = ended.of(events.VersionEvaluated)
    assert last.evaluated.overall["accuracy"] >= 0.85 * WITHOUT

"""The examples in which nobody sees a single update: they train, and hide what their first lines say."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.core import events
from orchestrator.job import load_job
from silos.configured_site import ConfiguredSite
from silos.silo import Silo
from silos.tasks.owners import Scheme
from silos.tasks.partition import write_silos
from tests.integration.test_dp_heart import HOSPITALS, hospitals
from tests.support.federation import Ended, federate

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(example: str, makers: dict[str, Any], folder: Path) -> Ended:
    given = load_job(EXAMPLES / f"{example}.yaml")
    made = given.model_copy(update={"report": given.report.model_copy(update={"silos": False})})
    ended = federate(made, makers, folder, limit_s=600)
    assert ended.outcome.status == "done" and not ended.refusals
    return ended


def heart(name: str, folder: Path) -> Ended:
    folder.mkdir(exist_ok=True)
    return run(f"heart_disease/{name}", hospitals(folder / "silos"), folder)


def accuracy(ended: Ended) -> float:
    """Of the last version."""
    (last,) = ended.of(events.VersionEvaluated)
    return float(last.evaluated.overall["accuracy"])


@pytest.mark.slow
def test_the_hospitals_sums_are_the_same_to_the_bit(tmp_path: Path) -> None:
    """Those with as many bits to a value: the encrypted one has fewer."""
    names = ("fixed_point_sum", "secure_sum", "two_aggregators")
    assert len({heart(name, tmp_path / name).digest for name in names}) == 1


@pytest.mark.parametrize("name", ["silo_dp", pytest.param("silo_dp_secure", marks=pytest.mark.slow)])
def test_a_hospital_is_hidden_at_epsilon_eight(name: str, tmp_path: Path) -> None:
    ended = heart(name, tmp_path)
    assert ended.contributors == [sorted(HOSPITALS)] * 4
    for each in ended.rounds[-1].contributors:
        assert each.privacy["delta"] == 1e-5 and 7.9 < each.privacy["epsilon"] <= 8.0


@pytest.mark.slow
def test_hospitals_at_their_own_pace_are_summed_unseen(tmp_path: Path) -> None:
    ended = heart("secure_buffered", tmp_path)
    assert all(len(set(names)) >= 3 for names in ended.contributors)
    assert accuracy(ended) >= 0.65


@pytest.mark.slow
def test_groups_of_digits(tmp_path: Path) -> None:
    paths = write_silos("digits", tmp_path / "nine", 9, Scheme(name="iid"), seed=0)
    makers = {path.parent.name: lambda path=path: Silo(ConfiguredSite(path)) for path in paths}
    ended = run("digits/groups", makers, tmp_path)
    assert all(sorted(map(len, closed.sealed.groups)) == [3, 3, 3] for closed in ended.rounds)
    assert accuracy(ended) >= 0.95

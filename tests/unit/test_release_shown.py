"""The silos' vote as it is shown: summary, MLflow, and where the registry's alias goes."""

from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.core.events import ReleaseVoted, RunClosed, RunOpened, SiloAttacked
from orchestrator.summary import summarise
from tests.support.arrivals import closed
from tests.support.torch_site import torch_job
from tracking import publish
from tracking.cursor import Cursor
from tracking.mapping import Mapper
from tracking.points import RUN

SCORES = {"auc": 0.71, "auc_low": 0.66}


def story(passed: bool = False, lineage: str = "l3", release: Any = None) -> list[Any]:
    job = torch_job("abc", 3, release=release or {"attacks": ["membership"]}).model_dump(mode="json")
    opened = RunOpened(run_id="r", name="j", job=job, job_digest="d", epoch=1, versions={}, time=1)
    rounds = [closed(version, lineage=f"l{version}") for version in (1, 2, 3)]
    votes = [
        SiloAttacked(
            silo="a", version=3, lineage=lineage, vote="fail", verdicts={"membership": "fail"}, scores=SCORES
        ),
        SiloAttacked(silo="b", version=3, lineage=lineage, vote="pass"),
        SiloAttacked(silo="c", version=2, lineage="l2", vote="pass"),
    ]
    voted = ReleaseVoted(
        version=3,
        lineage=lineage,
        votes={"a": "fail", "b": "pass"},
        missing={"c": "lost: gone"},
        needed=1 if passed else 3,
        passed=passed,
    )
    ended = RunClosed(
        status="done", reason="", version=3, parameters_digest="p", best_version=3, best_metric="accuracy"
    )
    return [opened, *rounds, *votes, voted, ended]


def mapped(events: list[Any]) -> tuple[Mapper, list[Any]]:
    mapper = Mapper()
    return mapper, [mapper.posts(event) for event in events]


class Registry:
    """What is asked of MLflow's registry."""

    def __init__(self) -> None:
        self.client, self.tags, self.aliases = self, {}, []  # type: ignore[var-annotated]
        self.labels: dict[str, str] = {}

    def set_tag(self, run: str, key: str, value: str) -> None:
        self.tags[key] = value

    def search_model_versions(self, query: str) -> list[Any]:
        return [SimpleNamespace(source="models:/m-3", version="7")]

    def set_registered_model_alias(self, *alias: str) -> None:
        self.aliases.append(alias)

    def set_model_version_tag(self, name: str, number: str, key: str, value: str) -> None:
        assert number == "7"
        self.labels[key] = value


def crowned(events: list[Any]) -> Registry:
    mapper, registry = mapped(events)[0], Registry()
    cursor = Cursor(uri="", runs={RUN: "1"}, models={"3": "m-3"})
    publish._label(mapper, cursor, registry)  # type: ignore[arg-type]
    publish._crown(mapper, cursor, registry)  # type: ignore[arg-type]
    return registry


def test_the_alias_moves_only_to_what_was_let_go() -> None:
    held = crowned(story())
    assert held.aliases == [] and "1 of 3 silos voted pass, 3 are needed" in held.tags["siloray.promotion"]
    assert [alias[1:] for alias in crowned(story(passed=True)).aliases] == [("champion", "7")]
    plain = [event for event in story() if not isinstance(event, ReleaseVoted | SiloAttacked)]
    unvoted = crowned(plain)
    assert unvoted.aliases == [] and "have not voted" in unvoted.tags["siloray.promotion"]
    other = crowned(story(passed=True, lineage="another"))
    assert other.aliases == [], "the version was made again after the vote"


def test_a_job_without_a_vote_needs_none() -> None:
    events = [event for event in story() if not isinstance(event, ReleaseVoted | SiloAttacked)]
    events[0] = events[0].model_copy(update={"job": torch_job("abc", 3).model_dump(mode="json")})
    assert len(crowned(events).aliases) == 1


def test_the_models_version_carries_votes_and_scores() -> None:
    labels = crowned(story()).labels
    assert labels["siloray.vote.a"] == "fail; auc 0.71" and labels["siloray.vote.b"] == "pass"
    assert "siloray.vote.c" not in labels, "that was about another version"
    assert labels["siloray.release"].startswith("held back")


def test_silos_runs_have_the_scores_as_points() -> None:
    _, posts = mapped(story())
    points = {(each.key, each.step): each.value for each in posts[4]["a"].points}
    assert points == {("release/auc", 3): 0.71, ("release/auc_low", 3): 0.66}
    assert posts[7][RUN].tags["siloray.release"].startswith("held back")


def test_the_summary_has_the_vote() -> None:
    release = summarise(story())["release"]
    assert release["votes"] == {"a": "fail", "b": "pass"} and release["missing"] == {"c": "lost: gone"}
    assert release["silos"]["a"]["scores"] == SCORES and list(release["silos"]) == ["a", "b"]
    assert summarise(story()[:4])["release"] is None


@pytest.mark.parametrize("passed", [True, False])
def test_the_console_says_how_the_vote_went(passed: bool) -> None:
    from orchestrator.cli.report_table import release_lines

    lines = release_lines(summarise(story(passed=passed)))
    assert lines[0].startswith(f"release  version 3 {'passed' if passed else 'held back'} (")
    assert lines[1:] == ["release  a: fail, auc 0.71", "release  b: pass", "release  c: no vote: lost: gone"]
    assert release_lines(summarise(story()[:4])) == []

"""The report on silos as people see it: console, page, MLflow."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.report_table import print_report
from orchestrator.cli.tables import print_silos
from orchestrator.core.events import (
    AdaptedFigures,
    Assessment,
    ContributionsFound,
    DriftAlarm,
    Event,
    Figures,
    RunOpened,
    SiloAssessed,
    VersionEvaluated,
    Worth,
)
from orchestrator.fairness import judged
from orchestrator.summary import summarise
from tests.support.tracking_run import closed, job
from tracking import publish, report
from tracking.cursor import Cursor
from tracking.mapping import Mapper
from tracking.points import RUN


def assessed(silo: str, ours: float, alone: float, verdict: Any, held_out: bool = False) -> SiloAssessed:
    gains = {"accuracy": (ours - alone - 0.05, ours - alone + 0.05)}
    model = Assessment(
        metrics={"accuracy": ours},
        intervals={"accuracy": (ours - 0.1, ours + 0.1)},
        gains=gains,
        verdicts={"accuracy": verdict},
    )
    curve = [AdaptedFigures(steps=steps, metrics={"accuracy": ours + steps / 1000}) for steps in (0, 5, 10)]
    models = {"global": model, "alone": Assessment(metrics={"accuracy": alone})}
    return SiloAssessed(
        silo=silo,
        version=3,
        lineage="x",
        models=models,
        curve=curve,
        held_out=held_out,
        num_steps=5,
        run_steps=9,
    )


def story() -> list[Event]:
    opened = RunOpened(
        run_id="r",
        name="heart-disease",
        job=job(held_out=["va"]).model_dump(mode="json"),
        job_digest="d",
        epoch=1,
        versions={},
    )
    each = [assessed("cleveland", 0.8, 0.7, "better"), assessed("hungarian", 0.5, 0.9, "worse")]
    each += [assessed("switzerland", 0.7, 0.71, "same"), assessed("va", 0.4, 0.6, "worse", held_out=True)]
    worths = [Worth(silo="cleveland", value=0.3, error=0.01), Worth(silo="hungarian", value=-0.1)]
    return [
        opened,
        DriftAlarm(silo="hungarian", version=2, signals=["norm", "loss"], norm=2.0, cosine=0.1, loss=3.0),
        ContributionsFound(method="shapley", metric="accuracy", worths=worths),
        *each,
        judged(each, ["cleveland", "hungarian", "switzerland"], 3, "accuracy", block=True),
    ]


def test_the_console_says_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    lines = print_report(summarise(story()))
    table = capsys.readouterr().out
    for words in (
        "va (held out)",
        "harmed",
        "alone: 5 of 9 steps",
        "0.8  (0.7 to 0.9)",
        "0.5  hungarian",
        "jain",
    ):
        assert words in table
    assert lines == [
        "harm     worse than alone: hungarian; the alias stays where it is (report.do_no_harm: block)",
        "held out mean accuracy 0.4 after 0, 0.405 after 5, 0.41 after 10 local steps",
        "worth    accuracy, shapley: cleveland +0.3 (±0.01), hungarian -0.1",
        "drift    hungarian in version 2: norm, loss",
    ]


def test_a_run_without_a_report_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_report(summarise(story()[:1])) == [] and not capsys.readouterr().out


def test_the_page_has_the_tables_and_the_verdict() -> None:
    page = report.page(summarise(story()), {}, "")
    for words in (
        "What the federation does for each silo",
        "va (held out)",
        "harmed: hungarian",
        "Drift alarms",
    ):
        assert words in page
    assert "2 of 3 silos are below what they reach alone" in page and "after 10 local steps" in page
    assert "federated" in report.note(summarise(story()))


def test_mlflow_has_the_figures_once() -> None:
    mapper = Mapper()
    posts: list[Any] = [mapper.posts(event) for event in story()]
    by_run = {run: rows for each in posts[3:7] for run, rows in each.items()}
    figures = {(point.key, point.step): point.value for point in by_run["cleveland"].points}
    assert figures["report/global/accuracy", 3] == 0.8 and figures["report/alone/accuracy", 3] == 0.7
    assert figures["report/adapted/accuracy", 10] == pytest.approx(0.81)
    verdict = posts[-1][RUN]
    values = {point.key: point.value for point in verdict.points}
    assert values["report/global/accuracy_worst"] == 0.5 and values["report/share_harmed"] == pytest.approx(
        1 / 3
    )
    assert values["report/held_out/after 5 steps/accuracy_mean"] == pytest.approx(0.405)
    assert verdict.tags["siloray.do_no_harm"] == "worse than alone: hungarian (alias kept)"
    assert posts[1][RUN].tags["siloray.drift"] == "hungarian in 2: norm, loss"
    assert posts[2]["cleveland"].points[0].value == 0.3
    assert [mapper.posts(event) for event in story()[3:]] == [{}] * 5


class Registry:
    """What is asked of MLflow's registry."""

    def __init__(self) -> None:
        self.client, self.tags, self.aliases = self, {}, []  # type: ignore[var-annotated]

    def set_tag(self, run: str, key: str, value: str) -> None:
        self.tags[key] = value

    def set_registered_model_alias(self, *alias: str) -> None:
        self.aliases.append(alias)


def test_a_blocked_model_is_not_promoted(tmp_path: Path) -> None:
    mapper, registry = Mapper(), Registry()
    for event in story():
        mapper.posts(event)
    cursor = Cursor(uri="", runs={RUN: "1"})
    publish._crown(mapper, cursor, registry)  # type: ignore[arg-type]
    assert registry.aliases == [] and "hungarian" in registry.tags["siloray.promotion"]


def test_silos_that_keep_their_figures_in_make_no_empty_table(capsys: pytest.CaptureFixture[str]) -> None:
    kept = [
        each.model_copy(update={"models": {"global": Assessment(metrics={})}})
        for each in story()
        if isinstance(each, SiloAssessed)
    ]
    told = judged(kept, ["cleveland", "hungarian", "switzerland"], 3, "accuracy", block=False)
    print_report(summarise([story()[0], *kept, told]))
    assert capsys.readouterr().out == ""


def test_what_silos_tell_only_together_stands_below_them(capsys: pytest.CaptureFixture[str]) -> None:
    first = closed(["cleveland"], 1).model_copy(
        update={"evaluated": Figures(version=0, overall={"accuracy": 0.25}), "contributors": []}
    )
    last = VersionEvaluated(evaluated=Figures(version=1, overall={"accuracy": 0.75}))
    print_silos(summarise([story()[0], first, last]))
    assert "0.25 → 0.75" in capsys.readouterr().out

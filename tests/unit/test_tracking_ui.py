"""Addresses of MLflow's pages, and the command that serves them."""

import json
from pathlib import Path

import pytest

from tracking import ui, views
from tracking.cursor import Cursor, save


def test_addresses_come_from_what_the_follower_noted(tmp_path: Path) -> None:
    assert ui.page_of(tmp_path, "http://127.0.0.1:5000") is None
    assert ui.charts_of(tmp_path, "http://127.0.0.1:5000") is None
    save(tmp_path, Cursor("sqlite:///x", run_id="heart-1", experiment_id="7", runs={"": "abc"}))
    side = "workflowType=machine_learning"
    assert (
        ui.page_of(tmp_path, "http://127.0.0.1:5000/")
        == f"http://127.0.0.1:5000/#/experiments/7/runs/abc?{side}"
    )
    assert ui.charts_of(tmp_path, "http://h") == (
        f"http://h/#/experiments/7/runs?viewStateShareKey=siloray-heart-1&compareRunsMode=CHART&{side}"
    )


def test_the_server_is_on_loopback_with_one_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ui.command("sqlite:///mlflow.db", 5123)
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--backend-store-uri") + 1] == f"sqlite:///{tmp_path}/mlflow.db"
    assert words[words.index("--workers") + 1] == "1"
    with pytest.raises(ValueError, match="is a server already"):
        ui.serve("http://127.0.0.1:1", 2)


def test_the_view_shows_the_jobs_metric_first() -> None:
    view = json.loads(views.view_of("r-1", "auc"))
    assert [chart["metricKey"] for chart in view["compareRunCharts"]] == [
        "auc",
        "accuracy",
        "loss",
        "train_loss",
    ]
    assert view["searchFilter"] == "tags.`siloray.run_id` = 'r-1'"
    assert [section["name"] for section in view["compareRunSections"]] == list(views.SECTIONS)

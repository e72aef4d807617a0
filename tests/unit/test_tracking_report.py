"""Plots and report say what the journal says."""

import json
from pathlib import Path

import pytest
import yaml

from orchestrator.core.events import parse
from orchestrator.history import History
from orchestrator.journal import JOURNAL, read_journal
from tests.support.tracking_run import SILOS, Recorder, figures, job, record
from tracking import report
from tracking.plots import MANY, figures_of, human_bytes
from tracking.tail import Tail


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("run")
    record(run_dir, 6)
    return run_dir


def history(run_dir: Path) -> History:
    return History.of(parse(read_journal(run_dir / JOURNAL)[0]))


def test_the_curves_show_every_silo_and_the_pooled_figure(finished: Path) -> None:
    figure = figures_of(history(finished))["curves"]
    axes = {each.get_title(loc="left"): each for each in figure.axes}
    assert set(axes) == {"accuracy", "loss"}
    lines = {line.get_label(): line for line in axes["accuracy"].lines}
    assert set(lines) == {*SILOS, "all silos, pooled", "best version (6)"}
    assert list(lines["va"].get_xdata()) == list(range(7))
    assert lines["va"].get_ydata()[4] == figures(SILOS, 4).silos["va"]["accuracy"]
    assert lines["all silos, pooled"].get_ydata()[6] == figures(SILOS, 6).overall["accuracy"]


def test_shares_are_stacked_to_one(finished: Path) -> None:
    axes = figures_of(history(finished))["contributions"].axes[0]
    heights = [bars.patches[2].get_height() for bars in axes.containers]
    assert len(heights) == len(SILOS)
    assert sum(heights) == pytest.approx(1)


def test_all_figures_draw(finished: Path) -> None:
    found = figures_of(history(finished))
    assert list(found) == ["curves", "contributions", "seconds", "traffic"]
    for figure in found.values():
        figure.canvas.draw()


def test_late_updates_get_an_axis(finished: Path) -> None:
    late = history(finished)
    last = late.rounds[6]
    last.contributors[0] = last.contributors[0].model_copy(update={"staleness": 2})
    figure = figures_of(late)["contributions"]
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "share of the update",
        "staleness\n(versions late)",
    ]
    figure.canvas.draw()


def test_many_silos_and_few_versions_draw(tmp_path: Path) -> None:
    silos = [f"s{index}" for index in range(MANY + 4)]
    record(tmp_path, 1, silos=silos)
    for figure in figures_of(history(tmp_path)).values():
        figure.canvas.draw()


def test_a_run_that_never_began_draws_nothing(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, job())
    recorder.open()
    recorder.close(0, "failed")
    assert figures_of(history(tmp_path)) == {}


def test_the_report_is_one_page_with_its_plots(finished: Path, tmp_path: Path) -> None:
    note = report.write(finished, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "http" not in page.replace("http-equiv", "")
    first, last = figures(SILOS, 0).silos["va"], figures(SILOS, 6).silos["va"]
    for text in (page, note):
        assert f"{first['accuracy']:.4g}" in text and f"{last['accuracy']:.4g}" in text
        assert "Best version: 6 (highest accuracy" in text
    assert "NaN in the update" in page
    assert "sha256:hungarian" in page
    assert len(list((tmp_path / "plots").iterdir())) == 4
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "done"
    assert yaml.safe_load((tmp_path / "job.yaml").read_text())["silos"] == list(SILOS)


def test_names_cannot_put_markup_into_the_page() -> None:
    summary = {
        "name": "<script>", "run_id": "r", "status": "failed", "reason": "<b>", "versions": [], "best": None,
        "started": 0, "ended": 0, "silos": {}, "refused": [], "lost": [], "job_digest": None,
        "parameters_digest": None, "initial": {"metrics": {"global": {}, "silos": {}}},
    }  # fmt: skip
    page = report.page(summary, {}, "<i>")
    assert "<script>" not in page and "<b>" not in page and "<i>" not in page


def test_the_job_file_as_it_was_given_is_kept(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: x  # a remark\n")
    assert report.job_text(tmp_path, []) == "name: x  # a remark\n"


def test_a_round_made_again_is_drawn_once(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, job(3))
    recorder.open()
    for version in (1, 2):
        recorder.round(version)
    recorder.release()
    recorder.open(resumed_from=1)
    recorder.store._journal.commit = 1
    recorder.seed = 1
    recorder.round(2)
    recorder.close(2)
    found = history(tmp_path)
    assert list(found.rounds) == [1, 2]
    assert found.rounds[2].lineage == "2-1"
    assert found.figures[2] == figures(SILOS, 2, seed=1)


def test_the_tail_gives_every_event_once(tmp_path: Path) -> None:
    recorder, tail = Recorder(tmp_path, job()), Tail(tmp_path)
    assert tail.read() == []
    recorder.open()
    seen = [event.seq for event in tail.read()]
    recorder.round(1)
    seen += [event.seq for event in tail.read()]
    assert tail.read() == []
    assert seen == list(range(len(seen))) and len(seen) == 7
    recorder.release()


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (344e6, "344 MB"), (2.5e12, "2.5 TB")]
)
def test_bytes_are_readable(value: float, text: str) -> None:
    assert human_bytes(value) == text

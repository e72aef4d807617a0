"""Which run a command goes on with, and how it names one: from run directories alone."""

import os
from pathlib import Path

import pytest

from orchestrator.bucket import child, parent
from orchestrator.cli import run_dirs
from orchestrator.cli.run_dirs import Folder
from orchestrator.cli.session import tracking_uri
from orchestrator.core.errors import BadInput
from orchestrator.transport.started_runs import SUBMISSION, named, place, submission_note
from tests.support import scripted

ENDED = scripted.whole_run()
UNFINISHED = ENDED[:-1]
DIGEST = next(line["job_digest"] for line in ENDED if line["type"] == "run_opened")


def write(folder: Path, run_id: str, lines: list[dict[str, object]], submission: str | None = None) -> None:
    run_dir = scripted.write_journal(folder / run_id, lines)
    if submission is not None:
        (run_dir / SUBMISSION).write_text(submission_note(submission))


def test_a_submission_goes_on_with_its_own_run_and_with_no_other(tmp_path: Path) -> None:
    """Whatever became of the command that started it, and of what Ray knew of that."""
    write(tmp_path, "plain", UNFINISHED)
    write(tmp_path, "first", UNFINISHED, "siloray-1-a")
    write(tmp_path, "other", UNFINISHED, "siloray-1-b")
    found = place(str(tmp_path), DIGEST, None, "siloray-1-a")
    assert (found.run_id, found.num_opened, found.done) == ("first", 2, None)
    assert place(str(tmp_path), DIGEST, None, "siloray-1").run_id is None
    assert place(str(tmp_path), DIGEST, None, None).run_id == "other"
    assert place(str(tmp_path), DIGEST, "plain", None).run_id == "plain"


def test_a_submission_whose_run_is_done_has_nothing_to_go_on_with(tmp_path: Path) -> None:
    write(tmp_path, "first", ENDED, "siloray-1")
    found = place(str(tmp_path), DIGEST, None, "siloray-1")
    assert found.run_id == "first" and found.done is not None and found.done.exit_code == 0
    stopped = {**ENDED[-1], "status": "stopped"}
    write(tmp_path, "second", [*UNFINISHED, stopped], "siloray-2")
    assert place(str(tmp_path), DIGEST, None, "siloray-2").done is None
    assert place(str(tmp_path), DIGEST, None, None).run_id == "second"


def test_a_run_that_has_no_journal_yet_is_known_by_its_note(tmp_path: Path) -> None:
    (tmp_path / "starting").mkdir()
    (tmp_path / "starting" / SUBMISSION).write_text(submission_note("siloray-1"))
    assert place(str(tmp_path), DIGEST, None, "siloray-1").run_id == "starting"


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="file is a file"):
        place(str(tmp_path / "file" / "runs"), None, None)
    assert place(str(tmp_path / "new" / "runs"), None, None).run_id is None
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(BadInput, match=r"runs: the account that drives runs may not write in"):
        place(str(tmp_path / "new" / "runs"), None, None)


def test_last_is_the_run_that_was_active_last_wherever_it_lies(tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    for age, (folder, run_id) in enumerate([(elsewhere, "e-new"), (here, "h-old"), (elsewhere, "e-old")]):
        write(folder, run_id, UNFINISHED)
        for file in (folder / run_id).iterdir():
            os.utime(file, (1000 - age, 1000 - age))
    driven = {each: str(elsewhere / each) for each in ("e-new", "e-old", "e-starting")}
    folder, known = run_dirs.runs_in(str(here), driven)
    assert folder == str(here)
    assert list(known) == ["e-old", "h-old", "e-new", "e-starting"]
    assert known["h-old"] == str(here / "h-old") and known["e-new"] == str(elsewhere / "e-new")


def test_a_run_is_named_as_it_is_found_again() -> None:
    assert named("heart-1") == "heart-1"
    assert named("heart-1", "auto") == "heart-1 --address auto"
    assert named("heart-1", "auto", "/my runs") == "heart-1 --address auto --runs-dir '/my runs'"
    assert run_dirs.named("heart-1", None, run_dirs.HERE) == "heart-1"
    assert run_dirs.named("heart-1", None, Folder("others")) == "heart-1 --runs-dir others"
    assert run_dirs.named("heart-1", "auto", None) == "heart-1 --address auto"
    with pytest.raises(BadInput, match=r"'siloray list --address auto' names them"):
        run_dirs.match("x", ["heart-1"], "runs", "auto")


def test_a_folder_that_ray_deletes_is_no_place_for_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_1"
    package.mkdir(parents=True)
    assert Folder("runs").there == Path.cwd() / "runs"
    monkeypatch.chdir(package)
    for wrong in (lambda: Folder("runs").there, lambda: tracking_uri("sqlite:///x.db", "auto")):
        with pytest.raises(BadInput, match="no place that stays"):
            wrong()
    assert Folder("/srv/runs").there == Path("/srv/runs")
    assert tracking_uri("sqlite:////srv/x.db", "auto") == "sqlite:////srv/x.db"
    assert tracking_uri(None, "auto") is None


def test_a_tilde_is_not_taken_for_a_folder() -> None:
    with pytest.raises(BadInput, match="'~' is for the shell"):
        _ = Folder("~/runs").there


def test_the_folder_of_a_run_in_a_store() -> None:
    uri = "s3://bucket/my/runs?endpoint_override=localhost:9000"
    assert parent(child(uri, "heart-1")) == uri

"""The command as a process: signals, pipes, and mistakes of ours. Ray's place is taken by a script."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.support import scripted
from tests.unit.test_cli import DOCUMENT

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(DOCUMENT))
    (tmp_path / "silos").mkdir()
    for name in DOCUMENT["silos"]:
        silo = {"name": name, "datasets": {"heart": {"path": "x"}}}
        (tmp_path / "silos" / f"{name}.yaml").write_text(yaml.safe_dump(silo))
    return tmp_path


def start(folder: Path, script: str, *arguments: str) -> subprocess.Popen[str]:
    environ = {**os.environ, "SCRIPT": script, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    return subprocess.Popen(
        [sys.executable, scripted.__file__, *arguments],
        cwd=folder,
        env={key: value for key, value in environ.items() if key != "RAY_ADDRESS"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], words: str) -> str:
    """Standard output up to the line with these words."""
    seen = ""
    for line in process.stdout:  # type: ignore[union-attr]
        seen += line
        if words in line:
            return seen
    raise AssertionError(f"{words!r} did not come: {seen}{process.stderr.read()}")  # type: ignore[union-attr]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_after_the_round(folder: Path, number: int) -> None:
    process = start(folder, "endless", "run", "job.yaml")
    wait_for(process, "round 3/3")
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 3, err
    assert "stopping after this round; again to leave at once" in out
    assert "stopped: asked to" in out
    assert "go on    siloray resume heart-1" in out
    assert "Traceback" not in out + err


def test_the_second_signal_leaves_at_once(folder: Path) -> None:
    process = start(folder, "deaf", "run", "job.yaml")
    wait_for(process, "round 3/3")
    process.send_signal(signal.SIGINT)
    wait_for(process, "again to leave at once")
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 3, err
    assert time.monotonic() - began < 8
    assert "go on with 'siloray resume heart-1'" in err
    assert "Traceback" not in out + err


def test_leaving_a_watch_leaves_the_run_alone(folder: Path) -> None:
    scripted.write_journal(folder / "runs" / "heart-1", scripted.whole_run()[:5])
    process = start(folder, "endless", "watch", "last")
    wait_for(process, "round 3/3")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert err == "heart-1 goes on; 'siloray stop heart-1' ends it\n"


def test_json_on_a_pipe_is_json_alone(folder: Path) -> None:
    out, _ = start(folder, "", "run", "job.yaml", "--json").communicate(timeout=20)
    assert [json.loads(line)["type"] for line in out.splitlines()][-1] == "run_closed"


def test_a_reader_that_goes_away_is_no_error(folder: Path) -> None:
    scripted.write_journal(folder / "runs" / "heart-1", scripted.whole_run())
    for arguments in (["list"], ["show", "last"], ["schema"], ["run", "job.yaml"]):
        process = start(folder, "", *arguments)
        process.stdout.close()  # type: ignore[union-attr]
        _, err = process.communicate(timeout=20)
        assert "Traceback" not in err
        assert "BrokenPipe" not in err


def test_a_mistake_of_ours_costs_one_line_and_a_file(folder: Path) -> None:
    process = start(folder, "bug", "run", "job.yaml")
    out, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert out == ""
    line = err.splitlines()[-1]
    assert line.startswith("siloray: unexpected KeyError: 'a mistake of ours'; the traceback is in ")
    path = re.search(r"in (\S+)$", line)
    assert path is not None
    assert "Traceback (most recent call last)" in Path(path[1]).read_text()
    assert "Traceback" not in err


def test_a_folder_that_cannot_be_written_costs_one_line(folder: Path) -> None:
    (folder / "runs").write_text("a file where a folder should be")
    process = start(folder, "", "list", "--runs-dir", "runs")
    _, err = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "Traceback" not in err

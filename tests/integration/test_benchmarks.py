"""The benchmark that goes through Ray still runs; what it measures is not looked at."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_orchestration(tmp_path: Path) -> None:
    root, found = Path(__file__).parents[2], tmp_path / "found.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.orchestration",
        "2x0.1M",
        "--rounds",
        "2",
        "--json",
        str(found),
    ]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| 2x0.1M |" in done.stdout and json.loads(found.read_text())

"""What people and scripts hold on to: commands, options, exit codes, and that light commands are light."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from orchestrator.cli import failures
from orchestrator.cli.main import app

SURFACE = {
    "run": {
        "job",
        "--address",
        "--silos-dir",
        "--runs-dir",
        "--new",
        "--tracking-uri",
        "--no-track",
        "--json",
        "--detach",
        "--no-checks",
        "--submission",
    },
    "serve": {
        "job",
        "--credentials",
        "--listen",
        "--address",
        "--runs-dir",
        "--new",
        "--tracking-uri",
        "--no-track",
        "--json",
    },
    "agent": {"silo", "--driver", "--credentials", "--address", "--once"},
    "submit": {
        "job",
        "--address",
        "--token",
        "--new",
        "--wait",
        "--runs-dir",
        "--tracking-uri",
        "--no-track",
        "--no-checks",
        "--python",
    },
    "card": {"run", "--output", "--runs-dir"},
    "validate": {"job"},
    "verify": {"run", "--runs-dir", "--replay", "--roster", "--driver-key", "--audit", "--json"},
    "simulate": {
        "job",
        "--speeds",
        "--per",
        "--timings",
        "--exactly",
        "--what-if",
        "--target",
        "--seed",
        "--for",
        "--silos-dir",
        "--runs-dir",
        "--out",
        "--plots",
        "--json",
    },
    "silos": {"job", "--address", "--silos-dir", "--json"},
    "watch": {"run", "--address", "--runs-dir", "--json"},
    "stop": {"run", "--now", "--address", "--runs-dir"},
    "resume": {"run", "--address", "--runs-dir", "--json", "--detach", "--no-checks"},
    "list": {"--address", "--runs-dir", "--json"},
    "show": {"run", "--runs-dir", "--json"},
    "ui": {"--runs-dir", "--tracking-uri", "--port"},
    "partition": {
        "source",
        "--out",
        "--silos",
        "--rule",
        "--alpha",
        "--labels-per-silo",
        "--owners",
        "--min-rows",
        "--seed",
        "--root",
        "--label",
        "--test-share",
    },
    "doctor": {"job", "--address", "--runs-dir", "--tracking-uri", "--json"},
    "schema": set(),
    "certs init": {"folder", "--name", "--host", "--days", "--with-keys", "--force"},
    "certs issue": {
        *("name", "--ca", "--driver", "--host", "--out", "--request", "--with-keys", "--days", "--force"),
    },
    "certs request": {"name", "--driver", "--out", "--force"},
    "certs revoke": {"name", "--ca"},
    "certs show": {"path"},
    "approve": {"job", "--silo", "--revoke", "--list", "--yes"},
    "silo key": {"path"},
    "silo freeze": {"dataset", "--silo", "--check"},
    "silo encrypt": {"source", "target", "--key-file"},
    "ledger show": {"--silo", "--json"},
    "ledger verify": {"--silo"},
    "model": {"run", "--out", "--silo", "--json"},
}

HEAVY = {"ray", "torch", "torchvision", "mlflow", "pyarrow", "pandas", "matplotlib", "sklearn"}

JOB = {
    "name": "j",
    "task": {"name": "tabular", "dataset": "d", "target": "t", "features": ["a"]},
    "silos": ["a"],
    "rounds": {"total": 1},
}


def commands(group: Any = None, before: str = "") -> Iterator[tuple[str, Any]]:
    """All commands by what is typed, those of groups included."""
    for name, command in (group or get_command(app)).commands.items():
        if hasattr(command, "commands"):
            assert command.help, name
            yield from commands(command, f"{before}{name} ")
        else:
            yield before + name, command


def test_commands_and_options() -> None:
    """Adding one is an entry here; changing or removing one breaks somebody's script."""
    found = {name: {each.opts[0] for each in command.params} for name, command in commands()}
    assert found == SURFACE


def test_every_command_and_option_says_what_it_is() -> None:
    for name, command in commands():
        assert command.help, name
        for parameter in command.params:
            assert parameter.help, (name, parameter.name)


def test_exit_codes() -> None:
    assert (failures.DONE, failures.BAD_INPUT, failures.STOPPED, failures.CANNOT_GO_ON) == (0, 2, 3, 4)


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )


LOADED = """
import sys
from orchestrator.cli.main import main
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
print("LOADED", *sorted(name for name in sys.modules if "." not in name), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "command", [["--help"], ["run", "--help"], ["validate", "JOB"], ["schema"], ["list"]]
)
def test_light_commands_bring_in_nothing_heavy(command: list[str], tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(JOB))
    ended = python(LOADED, *[str(job) if each == "JOB" else each for each in command])
    assert ended.returncode == 0, ended.stderr
    loaded = set(ended.stderr.rpartition("LOADED")[2].split())
    assert not loaded & HEAVY
    assert ("numpy" in loaded) <= (command[0] in {"validate", "schema"})


def test_a_wrong_job_is_found_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump({**JOB, "silos": []}))
    code = LOADED.replace("assert not ended.code, ended.code", "assert ended.code == 2")
    ended = python(code, "run", str(job))
    assert ended.returncode == 0, ended.stderr
    assert not set(ended.stderr.rpartition("LOADED")[2].split()) & HEAVY


def test_shell_completion_knows_commands_and_runs(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "heart-1"
    run.mkdir(parents=True)
    (run / "journal.jsonl").touch()
    assert complete("siloray va", tmp_path) == ["validate"]
    assert complete("siloray show he", tmp_path) == ["heart-1"]
    assert complete("siloray partition digits --rule dir", tmp_path) == ["dirichlet"]


def complete(words: str, folder: Path) -> list[str]:
    ended = subprocess.run(
        [sys.executable, "-m", "orchestrator"],
        env={
            "_SILORAY_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return ended.stdout.split()

"""The checks of ``siloray doctor`` on one machine, each on facts made for it."""

import json
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli import checks, doctor
from orchestrator.cli.checks import Check
from orchestrator.cli.main import app
from orchestrator.cli.run_dirs import Folder


def test_versions() -> None:
    assert checks.python((3, 11, 7)).level == "pass"
    assert checks.python((3, 10, 1)).level == "fail"
    assert checks.python((3, 14, 0)).level == "fail"
    assert checks.package("ray").level == "pass"
    missing = checks.package("siloray-of-mars")
    assert (missing.level, missing.found) == ("fail", "not installed")


def test_another_ray_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.metadata, "version", lambda name: "2.6.0")
    assert checks.package("ray").level == "warn"
    assert checks.package("torch").level == "pass"


def test_memory_is_what_the_container_leaves(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 20000000 kB\nMemAvailable: 10000000 kB\n")
    assert checks.available_memory(meminfo, tmp_path) == 10_000_000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000000000\n")
    assert checks.available_memory(meminfo, tmp_path) == 10_000_000 * 1024
    (tmp_path / "memory.max").write_text("3000000000\n")
    assert checks.available_memory(meminfo, tmp_path) == 2_000_000_000
    assert checks.available_memory(tmp_path / "none") is None


@pytest.mark.parametrize(("free", "level"), [(8e9, "pass"), (2e9, "warn"), (5e8, "fail"), (None, "warn")])
def test_memory(free: int | None, level: str) -> None:
    assert checks.memory(free).level == level


def test_cores() -> None:
    assert (checks.cores(1).level, checks.cores(2).level) == ("warn", "pass")


class Usage:
    def __init__(self, total: float, free: float) -> None:
        self.total, self.free = total, free


@pytest.mark.parametrize(("total", "level"), [(64e6, "warn"), (8e9, "pass")])
def test_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, total: float, level: str) -> None:
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: Usage(total, total))
    assert checks.shared_memory(tmp_path).level == level
    assert checks.shared_memory(tmp_path / "none").level == "warn"


@pytest.mark.parametrize(("free", "level"), [(1e8, "fail"), (2e9, "warn"), (1e11, "pass")])
def test_disk_of_a_folder_that_is_not_there_yet(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: float, level: str
) -> None:
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: Usage(1e12, free))
    assert checks.disk(tmp_path / "a" / "b").level == level


def test_where_a_ray_that_starts_here_writes_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    for environ, folder in (
        ({}, "/tmp/ray"),
        ({"RAY_TMPDIR": "/fast"}, "/fast/ray"),
        ({"RAY_TMPDIR": "/fast", "RAY_object_spilling_directory": "/crypt"}, "/crypt"),
    ):
        assert checks.spill_folder(environ) == Path(folder)
    for clear, level in ((True, "warn"), (False, "pass")):
        monkeypatch.setattr(checks, "in_the_clear", lambda _, clear=clear: clear)
        assert checks.spilling(Path("/crypt")).level == level


def test_a_token_is_asked_for_on_a_cluster(tmp_path: Path) -> None:
    def levels(environ: dict[str, str], on_cluster: bool) -> str:
        return checks.authentication(environ, on_cluster, tmp_path).level

    assert levels({}, False) == "pass"
    assert levels({}, True) == "warn"
    assert levels({"RAY_AUTH_MODE": "disabled"}, False) == "warn"
    assert levels({"RAY_AUTH_MODE": "token"}, True) == "fail"
    assert levels({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x"}, True) == "pass"
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").touch()
    assert levels({"RAY_AUTH_MODE": "token"}, True) == "pass"


def test_a_dashboard_is_seen_on_its_port_and_only_loopback_is_well() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        seen = list(checks.listeners(server.getsockname()[1]))
    assert seen == ["0100007F"]
    assert checks.dashboard(seen).level == "pass"
    assert checks.dashboard([]).level == "pass"
    with socket.create_server(("0.0.0.0", 0)) as server:
        assert checks.dashboard(list(checks.listeners(server.getsockname()[1]))).level == "warn"


def test_a_store_that_cannot_be_written_to_fails(tmp_path: Path) -> None:
    """Not the disk that this machine happens to have."""
    (tmp_path / "a file").touch()
    well, wrong = (
        next(checks.runs_here(Folder(f"file://{tmp_path}/{name}"), "databricks"))
        for name in ("runs", "a file/runs")
    )
    assert (well.what, well.level, wrong.what, wrong.level) == ("store", "pass", "store", "fail")
    secret = next(checks.runs_here(Folder("s3://me:secret@bucket/runs"), "databricks"))
    assert secret.level == "fail" and "password" in secret.found and "secret" not in secret.found


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 500)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "TIMEOUT_S", 0.2)
    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{server.server_port}"
    assert checks.tracking(uri).level == "pass"
    assert checks.tracking(f"{uri}/elsewhere").level == "warn"
    server.shutdown()
    server.server_close()
    assert checks.tracking(uri).level == "warn"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert checks.tracking(f"http://127.0.0.1:{silent.getsockname()[1]}").level == "warn"
    assert checks.tracking(f"sqlite:///{tmp_path}/mlflow.db").level == "pass"
    assert checks.tracking(f"sqlite:///{tmp_path}/none/mlflow.db").level == "warn"
    assert checks.tracking("databricks").found == "databricks (not tried)"


def test_doctor_prints_a_line_each_with_a_remedy_and_fails_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Check("pass", "cores", "8"), Check("warn", "memory", "2 GB free", "close something")]
    monkeypatch.setattr(doctor, "_checks", lambda *args: iter(found))
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    assert result.stdout == "pass  cores: 8\nwarn  memory: 2 GB free\n      close something\n"
    found.append(Check("fail", "torch", "not installed", "uv sync"))
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 1
    assert [each["level"] for each in json.loads(result.stdout)] == ["pass", "warn", "fail"]


def test_doctor_looks_at_everything_and_says_what_a_cluster_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "gpu", lambda: Check("pass", "GPU", "not looked at"))
    found = list(checks.this_machine(on_cluster=False))
    assert {"Python", "siloray", "ray", "torch", "mlflow", "cores", "memory", "shared memory"} <= {
        each.what for each in found
    }
    assert {"authentication", "dashboard", "GPU", "trust"} <= {each.what for each in found}
    assert "one Ray cluster is one trust domain" in found[-1].found
    assert os.environ.get("RAY_AUTH_MODE") in {None, "token", "disabled"}

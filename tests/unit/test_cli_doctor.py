"""The checks of ``siloray doctor``, each on facts made for it."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.cli import checks, cluster_checks, doctor, node_checks
from orchestrator.cli.checks import Check
from orchestrator.cli.main import app
from orchestrator.cli.node_facts import Facts
from orchestrator.cli.probe import Report


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


NODE = {"NodeManagerAddress": "10.0.0.1", "Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}, "Labels": {}}


def test_nodes_of_a_cluster() -> None:
    driver = {**NODE, "Labels": {"siloray.role": "driver"}}
    silo = {
        **NODE,
        "NodeManagerAddress": "10.0.0.2",
        "Labels": {"siloray.silo": "va", "siloray.role": "silo"},
    }
    away = {**NODE, "NodeManagerAddress": "10.0.0.3", "Alive": False}
    assert [each.level for each in cluster_checks.nodes([driver, silo])] == ["pass", "pass"]
    assert "va, 8 cores, 1 GPUs" in list(cluster_checks.nodes([driver, silo]))[1].found
    assert [each.level for each in cluster_checks.nodes([driver, silo, away])] == ["pass", "pass", "warn"]
    assert [each.what for each in cluster_checks.nodes([NODE])] == ["node 10.0.0.1", "labels", "labels"]
    doubled = list(cluster_checks.nodes([driver, silo, silo]))
    assert (doubled[-1].level, "'va'" in doubled[-1].found) == ("fail", True)


def test_the_silos_of_a_job_have_a_node_each() -> None:
    def silo(name: str, host: str) -> dict:
        return {**NODE, "NodeManagerAddress": host, "Labels": {"siloray.silo": name}}

    driver = {**NODE, "Labels": {"siloray.role": "driver"}}
    known = [driver, silo("va", "10.0.0.2"), silo("b", "10.0.0.3")]
    assert bad(cluster_checks.nodes(known, ("va", "b"))) == []
    assert bad(cluster_checks.nodes(known, ("va", "c"))) == ["no node of c in the cluster"]
    assert [each.level for each in cluster_checks.nodes(known, ("c",), absent="warn")][-1] == "warn"
    shared = [driver, silo("va", "10.0.0.2"), silo("b", "10.0.0.2")]
    assert bad(cluster_checks.nodes(shared)) == ["b, va share the machine 10.0.0.2"]
    assert bad(cluster_checks.nodes([driver, *known])) == ["2 nodes are labelled for the driver"]


def bad(found: Iterable[Check]) -> list[str]:
    """What is not well; each has a remedy."""
    wrong = [each for each in found if each.level != "pass"]
    assert all(each.remedy for each in wrong)
    return [each.found for each in wrong]


SAME = {"Python": "3.11.7", "ray": "2.60.0", "siloray": "0.1.0", "torch": "2.13.0"}


def facts(**given: Any) -> Facts:
    usual = {"host": "h", "versions": SAME, "disk_free": 50_000_000_000, "shared_memory": 8_000_000_000}
    return Facts(**{**usual, "token": True, "tls": True, **given})


def report(clock_s: float = 0.01, host: str = "10.0.0.2", **given: Any) -> Report:
    return Report({**NODE, "NodeManagerAddress": host}, facts(**given), clock_s=clock_s, about_s=0.02)


@pytest.mark.parametrize(
    ("given", "level", "words"),
    [
        ({}, "pass", "clock +0.01 s"),
        ({"disk_free": 1_000_000_000}, "warn", "1 GB of disk free"),
        ({"disk_free": 1_000}, "fail", "of disk free"),
        ({"shared_memory": 64_000_000}, "warn", "/dev/shm holds 64 MB"),
        ({"clock_s": -7.0}, "warn", "clock -7.00 s"),
        ({"wrong": "/etc/siloray/silo.yaml: no such file"}, "fail", "no such file"),
        ({"data": {"heart": "! heart.csv: no such file"}}, "fail", "data set 'heart': heart.csv"),
        ({"data": {"heart": "85 train, 45 test"}}, "pass", "heart: 85 train, 45 test"),
        ({"gpus": 1}, "pass", "disk"),
        ({"gpus": 0}, "fail", "Ray counts 1 GPUs, torch sees 0"),
        ({"gpus": 2}, "warn", "torch sees 2"),
        ({"gpus": -1}, "fail", "torch cannot be imported"),
        ({"tracking": "http://x: refused"}, "warn", "MLflow: http://x"),
    ],
)
def test_what_a_node_says_of_itself(given: dict[str, Any], level: str, words: str) -> None:
    first = next(iter(node_checks.all_nodes([report(**given)])))
    assert first.level == level and words in first.found
    assert bool(first.remedy) == (level != "pass")


def test_a_node_that_cannot_be_asked_fails() -> None:
    (first,) = node_checks.all_nodes([Report(NODE, None, "No module named 'orchestrator'")])
    assert first.level == "fail" and "No module" in first.found


def test_versions_are_the_same_everywhere() -> None:
    other = {"torch": "2.12.0", "Python": "3.11.9", "ray": "2.60.0", "siloray": "0.2.0"}
    found = {each.what: each for each in node_checks.versions({"a": SAME, "b": other})}
    levels = {name.split()[0]: each.level for name, each in found.items()}
    assert levels == {"Python": "pass", "ray": "pass", "siloray": "fail", "torch": "warn"}
    assert "0.1.0 on a, 0.2.0 on b" in found["siloray on all nodes"].found


def test_token_and_tls_are_asked_for_where_there_is_a_network() -> None:
    def levels(*nodes: Facts) -> list[str]:
        return [each.level for each in node_checks.security(nodes)]

    assert levels(facts(tls=False), facts(tls=False)) == ["pass", "pass"], "one machine"
    assert levels(facts(tls=False), facts(host="other")) == ["pass", "warn"]
    assert levels(facts(), facts(host="other")) == ["pass", "pass"]
    assert levels(facts(token=False)) == ["warn", "pass"]


def test_a_cluster_that_does_not_answer_fails_soon() -> None:
    """In a process of its own: other tests of this one may be connected to Ray already."""
    code = (
        "from orchestrator.cli.cluster_checks import cluster\n"
        "print([(check.level, check.what) for check in cluster('127.0.0.1:9')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[('fail', 'cluster')]", done.stderr


@pytest.mark.parametrize(
    ("url", "level"),
    [("", "pass"), ("127.0.0.1:8265", "pass"), ("0.0.0.0:8265", "warn"), ("10.1.1.1:8265", "warn")],
)
def test_the_clusters_dashboard(url: str, level: str) -> None:
    assert cluster_checks.dashboard(url).level == level


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
    found = list(checks.this_machine(Path("runs"), "sqlite:///mlflow.db", on_cluster=False))
    assert {"Python", "siloray", "ray", "torch", "mlflow", "cores", "memory", "shared memory", "disk"} <= {
        each.what for each in found
    }
    assert {"authentication", "dashboard", "MLflow", "GPU", "trust"} <= {each.what for each in found}
    assert "one Ray cluster is one trust domain" in found[-1].found
    assert os.environ.get("RAY_AUTH_MODE") in {None, "token", "disabled"}

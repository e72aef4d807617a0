"""The checks of ``siloray doctor``, each on facts made for it."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from orchestrator.cli import checks, cluster_checks, doctor, home_checks, node_checks, node_facts
from orchestrator.cli.checks import Check
from orchestrator.cli.main import app
from orchestrator.cli.node_facts import Facts
from orchestrator.cli.probe import Report
from orchestrator.cli.run_dirs import Folder
from orchestrator.job import Job
from silos.configured_site import ConfiguredSite


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


def test_the_drivers_node_says_where_runs_and_their_database_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SILORAY_RUNS", str(tmp_path / "siloray" / "runs"))
    room, database = home_checks.home(None, None)
    assert (room.level, database.level) == ("pass", "pass")
    assert str(tmp_path / "siloray" / "runs") in room.found and "siloray/mlflow.db" in database.found
    _, server = home_checks.home(None, "http://127.0.0.1:9")
    assert server.level == "warn" and "127.0.0.1:9" in server.found
    (tmp_path / "siloray").touch()
    (wrong,) = home_checks.home(None, None)
    assert wrong.level == "fail" and "siloray" in wrong.found


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


def silo(name: str, host: str, **more: Any) -> dict[str, Any]:
    return {**NODE, "NodeID": host, "NodeManagerAddress": host, "Labels": {"siloray.silo": name}, **more}


DRIVER = {**NODE, "NodeID": "head", "Labels": {"siloray.role": "driver"}}


def test_a_node_that_is_back_is_not_away() -> None:
    """Ray lists each of its incarnations. A silo may come back on another machine."""
    gone = {"Alive": False, "Resources": {}}

    def away(*known: dict[str, Any]) -> list[str]:
        return [each.what for each in cluster_checks.nodes(known) if each.found == "away"]

    va, b = silo("va", "10.0.0.2"), silo("b", "10.0.0.3")
    assert away(DRIVER, va | gone, va | gone, va, b) == []
    assert away(DRIVER, va | gone, silo("va", "10.0.0.9"), b) == []
    assert away(DRIVER, va | gone, va | gone, b) == ["node 10.0.0.2 (va)"]
    assert away(DRIVER | gone, DRIVER, NODE | gone) == ["node 10.0.0.1"]


def test_a_run_is_concerned_with_its_own_silos_and_the_drivers_node() -> None:
    va, b = silo("va", "10.0.0.2"), silo("b", "10.0.0.3")
    plain = NODE | {"NodeID": "here"}

    def near(*known: dict[str, Any]) -> list[str]:
        return [str(node["NodeID"]) for node in cluster_checks.concerned(known, ["va"], "here")]

    assert near(DRIVER, plain, va, b) == ["head", "10.0.0.2"]
    assert near(plain, va, b) == ["here", "10.0.0.2"]
    assert near(DRIVER, b) == ["head"]


def test_the_silos_of_a_job_have_a_node_each() -> None:
    known = [DRIVER, silo("va", "10.0.0.2"), silo("b", "10.0.0.3")]
    assert bad(cluster_checks.nodes(known, ("va", "b"))) == []
    assert bad(cluster_checks.nodes(known, ("va", "c"))) == ["no node of c in the cluster"]
    assert [each.level for each in cluster_checks.nodes(known, ("c",), absent="warn")][-1] == "warn"
    shared = [DRIVER, silo("va", "10.0.0.2"), silo("b", "10.0.0.2")]
    assert bad(cluster_checks.nodes(shared)) == ["b, va share the machine 10.0.0.2"]
    assert bad(cluster_checks.nodes([DRIVER, *known])) == ["2 nodes are labelled for the driver"]


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
        ({"gpus": 1, "device": "cuda:0"}, "pass", "disk"),
        ({"refuses": "va does not allow the job 'hearts'"}, "fail", "does not allow"),
        ({"unwritable": "/srv/siloray"}, "fail", "/srv/siloray cannot be written to"),
    ],
)
def test_what_a_node_says_of_itself(given: dict[str, Any], level: str, words: str) -> None:
    first = next(iter(node_checks.all_nodes([report(**given)])))
    assert first.level == level and words in first.found
    assert bool(first.remedy) == (level != "pass")


def test_the_folder_for_objects_that_do_not_fit_in_memory_is_the_raylets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_facts, "_session", lambda: "the session's")
    for given, found in ((tmp_path, str(tmp_path)), (tmp_path / "none", "the session's")):
        command = [sys.executable, "-c", "input()", f"--fallback_directory={given}"]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as raylet:
            monkeypatch.setattr(node_facts.os, "getppid", lambda pid=raylet.pid: pid)
            assert node_facts._spilled() == found
            raylet.communicate(b"\n")


def test_a_silo_says_whether_it_would_take_the_job_and_can_keep_its_record(tmp_path: Path) -> None:
    document = {"name": "va", "datasets": {"heart": {"path": "rows.csv"}}}
    (tmp_path / "silo.yaml").write_text(yaml.safe_dump(document | {"policy": {"allow_jobs": ["nothing-*"]}}))
    task = {"name": "tabular", "dataset": "heart", "target": "y", "features": ["x"]}
    job = Job.model_validate({"name": "hearts", "task": task, "silos": ["va"], "rounds": {"total": 1}})
    site = ConfiguredSite(tmp_path / "silo.yaml")
    assert "does not allow the job 'hearts'" in node_facts._refusal(site, job)
    assert node_facts._unwritable(site.own_folder) == ""
    (tmp_path / "silo.yaml").write_text(yaml.safe_dump(document))
    assert node_facts._refusal(site, job) == ""
    other = job.model_copy(update={"task": job.task.model_copy(update={"dataset": "lung"})})
    assert "no data set 'lung'" in node_facts._refusal(site, other)
    (tmp_path / ".siloray").touch()
    assert node_facts._unwritable(site.own_folder) == str(tmp_path / ".siloray")


def test_a_silo_that_is_to_train_on_a_gpu_has_one() -> None:
    without = Report({**NODE, "Resources": {"CPU": 8.0}}, facts(gpus=0, device="cuda"))
    assert bad(node_checks.all_nodes([without])) == [
        "silo.yaml has it train on 'cuda', and torch sees no GPU"
    ]
    assert not bad(node_checks.all_nodes([replace(without, facts=facts(gpus=0, device="auto"))]))


def test_a_node_that_cannot_be_asked_fails_and_one_that_is_late_may_be_waited_for() -> None:
    wrong = Report(NODE, None, "No module named 'orchestrator'")
    (first,) = node_checks.all_nodes([wrong], late="warn")
    assert first.level == "fail" and "No module" in first.found
    late = Report(NODE, None, "no answer within 10 s", late=True)
    assert [each.level for each in node_checks.all_nodes([late])] == ["fail"]
    assert [each.level for each in node_checks.all_nodes([late], late="warn")] == ["warn"]


def test_versions_are_the_same_everywhere() -> None:
    other = {"torch": "2.12.0", "Python": "3.11.9", "ray": "2.60.0", "siloray": "0.2.0"}
    found = {each.what: each for each in node_checks.versions({"a": SAME, "b": other})}
    levels = {name.split()[0]: each.level for name, each in found.items()}
    assert levels == {"Python": "pass", "ray": "pass", "siloray": "fail", "torch": "warn"}
    assert "0.1.0 on a, 0.2.0 on b" in found["siloray on all nodes"].found


def test_token_and_tls_are_asked_for_where_there_is_a_network() -> None:
    """A machine is its address: cloned ones have the same name."""

    def levels(*nodes: Report) -> list[str]:
        return [each.level for each in node_checks.security(nodes)]

    other = "10.0.0.3"
    assert levels(report(tls=False), report(tls=False)) == ["pass", "pass"], "one machine"
    assert levels(report(tls=False), report(host=other)) == ["pass", "warn"]
    assert levels(report(), report(host=other)) == ["pass", "pass"]
    assert levels(report(token=False)) == ["warn", "pass"]
    assert levels(report(token=False), report(host=other)) == ["fail", "pass"]
    assert levels() == []


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
    found = list(checks.this_machine(on_cluster=False))
    assert {"Python", "siloray", "ray", "torch", "mlflow", "cores", "memory", "shared memory"} <= {
        each.what for each in found
    }
    assert {"authentication", "dashboard", "GPU", "trust"} <= {each.what for each in found}
    assert "one Ray cluster is one trust domain" in found[-1].found
    assert os.environ.get("RAY_AUTH_MODE") in {None, "token", "disabled"}

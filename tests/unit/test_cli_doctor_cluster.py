"""What ``siloray doctor`` and ``run`` make of a cluster's nodes, on facts made for it."""

import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from orchestrator.cli import cluster_checks, home_checks, node_checks, node_facts
from orchestrator.cli.checks import Check
from orchestrator.cli.node_facts import Facts
from orchestrator.cli.probe import Report
from orchestrator.cli.volumes import in_the_clear
from orchestrator.job import Job
from silos.configured_site import ConfiguredSite


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


def test_run_waits_for_what_is_late_and_refuses_what_must_be_mended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = {"name": "tabular", "dataset": "heart", "target": "y", "features": ["x"]}
    job = Job.model_validate(
        {"name": "hearts", "task": task, "silos": ["va", "b", "c"], "rounds": {"total": 1}}
    )
    known = [DRIVER, silo("va", "10.0.0.2"), silo("b", "10.0.0.3"), *[silo("other", "10.0.0.4")] * 2]
    answers = {
        "head": Report(DRIVER, facts()),
        "10.0.0.2": Report(known[1], facts()),
        "10.0.0.3": Report(known[2], None, "no answer within 10 s", late=True),
    }

    def asked(near: list[Any], job: Job, deep: bool) -> list[Report]:
        return [answers[str(node["NodeID"])] for node in near]

    monkeypatch.setattr(cluster_checks, "_known", lambda: known)
    monkeypatch.setattr(cluster_checks, "_here", lambda: "head")
    monkeypatch.setattr(cluster_checks, "_asked", asked)
    cluster_checks.refuse(job)
    assert capsys.readouterr().err.splitlines() == [
        "no node of c in the cluster; the run waits",
        "node 10.0.0.3 (b): no answer within 10 s; the run waits",
    ]
    answers["10.0.0.2"] = Report(known[1], facts(wrong="silo.yaml: no such file"))
    with pytest.raises(typer.Exit) as ended:
        cluster_checks.refuse(job)
    assert ended.value.exit_code == 2
    assert "silo.yaml: no such file" in capsys.readouterr().err.splitlines()[-1]


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
        command = [sys.executable, "-c", "input(print(flush=True))", f"--fallback_directory={given}"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as raylet:
            assert raylet.stdout is not None and raylet.stdout.readline(), "it has begun"
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


def test_spilling_in_the_clear_is_a_warning_with_the_place() -> None:
    said = {
        each.what: each for each in node_checks.all_nodes([report(spills_to="/tmp/ray"), report(host="b")])
    }
    spilled = said["spilled objects"]
    assert spilled.level == "warn" and "/tmp/ray on node 10.0.0.2" in spilled.found
    assert "--object-spilling-directory on an encrypted volume" in spilled.remedy
    assert not [each for each in node_checks.all_nodes([report()]) if each.what == "spilled objects"]


def test_an_encrypted_volume_is_told_from_others(tmp_path: Path) -> None:
    number = f"{os.major(tmp_path.stat().st_dev)}:{os.minor(tmp_path.stat().st_dev)}"
    mounts, block = tmp_path / "mounts", tmp_path / "block"
    mounts.write_text("/dev/x / ext4 rw 0 0\n")
    assert in_the_clear(tmp_path / "not" / "there", block, mounts)
    (block / number / "slaves" / "dm-1" / "dm").mkdir(parents=True)
    assert in_the_clear(tmp_path, block, mounts)
    (block / number / "slaves" / "dm-1" / "dm" / "uuid").write_text("CRYPT-LUKS2-abc\n")
    assert not in_the_clear(tmp_path, block, mounts), "LVM on an encrypted volume"
    (block / number / "slaves" / "sda").mkdir()
    assert in_the_clear(tmp_path, block, mounts), "half of it on another"
    mounts.write_text(f"/dev/x / ext4 rw 0 0\ntmpfs {tmp_path} tmpfs rw 0 0\n")
    assert not in_the_clear(tmp_path, block, mounts)


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

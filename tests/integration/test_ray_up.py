"""``ray up cluster.yaml`` on three machines, a job from submission to MLflow, stopped and gone on with, ``ray down``.

Nothing is simulated but the machines themselves, which are namespaces (`tests/support/hosts.py`). The modules
``test_ray_hosts`` and this one share one room; this one is the later by its name, and takes it down.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support.room import Room

pytest_plugins = ["tests.support.room"]
pytestmark = [pytest.mark.slow, pytest.mark.hosts]

GONE_S = 200
REPOSITORY = Path(__file__).parents[2]


def test_submit_watch_stop_resume_and_metrics(room: "Room", undisturbed: dict[str, Any]) -> None:
    """The whole way of a job. It is stopped on the way, and still ends with the bits of a run that was not."""
    from tests.support.hosts import wait_for
    from tests.support.room import ROUNDS, RUNS, TRACKING, closed

    known = room.run_ids()
    folder = room.job("heart-room", total=ROUNDS)
    job = room.submit(folder, "--token", "stopped", wait=False)
    run = room.new_run(known)
    room.until(run, closed(1))
    room.stop_job(job)
    room.until(run, lambda event: event["type"] == "run_closed")
    stopped = room.summary(run)
    assert stopped["status"] == "stopped" and len(stopped["versions"]) < ROUNDS
    wait_for(lambda: "was stopped" in room.job_status(job), 30, "the job goes on")

    watched = room.siloray("watch", run, "--address", "auto", check=False)
    assert f"siloray resume {run}" in watched.stdout + watched.stderr, "nobody works on it"
    resumed = room.submit(folder, "--token", "stopped", wait=False)
    room.until(run, closed(len(stopped["versions"]) + 1))
    watched = room.exec(line_of_the_guide())
    assert "done: all" in watched.stdout and f"{RUNS}/{run}/summary.json" in watched.stdout, watched.stdout
    wait_for(lambda: "succeeded" in room.job_status(resumed), 60, "the job has no end")

    summary = room.summary(run)
    assert summary["status"] == "done" and summary["resumed"] == 1
    assert [version["version"] for version in summary["versions"]] == list(range(1, ROUNDS + 1))
    assert summary["parameters_digest"] == undisturbed["parameters_digest"]

    def in_mlflow() -> bool:
        found = room.metrics(run, "accuracy")
        return set(found) == {run, "cleveland", "hungarian"} and min(map(len, found.values())) >= ROUNDS

    wait_for(in_mlflow, 60, f"not all of it in {TRACKING}: {room.metrics(run, 'accuracy')}")


def line_of_the_guide() -> str:
    """What docs/deployment.md gives to ``ray exec`` to watch a run."""
    guide = (REPOSITORY / "docs/deployment.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^    ray exec cluster.yaml '(.* siloray watch last .*)'$", guide, re.MULTILINE)
    return str(line)


def test_every_silo_trained_on_its_own_machine(room: "Room", undisturbed: dict[str, Any]) -> None:
    """The driver writes on its machine; a silo's state is on the silo's; no row is anywhere else."""
    from tests.support.room import RUNS, SILO_AT

    assert room.hosts.run("head", f"ls {RUNS}").stdout.split()
    for host, silo in SILO_AT.items():
        assert room.hosts.run(host, "ls /etc/siloray/.siloray").stdout.split() == [silo]
        assert room.hosts.run(host, f"ls {RUNS}", check=False).returncode != 0
        rows = room.hosts.run(host, "ls /srv").stdout.split()
        assert rows == [f"{silo}.parquet"]
    assert undisturbed["machines"] == {silo: host for host, silo in SILO_AT.items()}


def test_the_dashboard_is_on_loopback_only(room: "Room") -> None:
    for host, refused in (("head", False), ("silo-a", True)):
        reach = f"timeout 3 bash -c 'exec 3<>/dev/tcp/{room.hosts.address('head')}/8265'"
        assert room.hosts.run(host, reach, check=False).returncode != 0
        here = "timeout 3 bash -c 'exec 3<>/dev/tcp/127.0.0.1/8265'"
        assert (room.hosts.run(host, here, check=False).returncode != 0) is refused


def test_ray_down_leaves_nothing_running(room: "Room") -> None:
    """Each process of Ray on each machine ends, and of ssh on the operator's; the silos' own within two minutes, when
    they miss the driver's."""
    from tests.support.hosts import wait_for

    room.down()
    left = room.hosts.processes
    wait_for(lambda: not left("head"), 10, lambda: room.hosts.run("head", "ps -eo etimes,args").stdout)
    wait_for(lambda: not room.left_here(), 30, lambda: f"on the operator's machine: {room.left_here()}")
    silos = [host for host in room.hosts.names if host != "head"]
    wait_for(lambda: not any(map(left, silos)), GONE_S, lambda: str({host: left(host) for host in silos}))


def test_systemd_units_keep_a_node_alive(room_down: "Room") -> None:
    """The units' own commands and settings, on the same machines, under a loop that does what ``Restart=always`` does:
    a silo's node that is killed is back under its label, as another node."""
    from tests.support.hosts import wait_for

    room = room_down
    loops = {host: _as_systemd(room, host) for host in ("head", "silo-a")}
    try:
        (first,) = wait_for(lambda: room.nodes().get("cleveland"), 120, "the silo's node does not come")
        room.hosts.run("silo-a", "pkill -KILL -x raylet")
        back = wait_for(lambda: room.nodes().get("cleveland", set()) - {first}, 120, "it does not come back")
        assert len(back) == 1
    finally:
        for host, loop in loops.items():
            loop.kill()
            room.hosts.run(
                host, "kill -KILL $(cat /run/loop.pid); /opt/siloray/.venv/bin/ray stop --force", check=False
            )


def _as_systemd(room: "Room", host: str) -> Any:
    unit = (REPOSITORY / f"deploy/systemd/siloray-{host.split('-')[0]}.service").read_text(encoding="utf-8")
    settings = (REPOSITORY / "deploy/systemd/siloray.env.example").read_text(encoding="utf-8")
    said = dict(
        line.split("=", 1) for line in unit.splitlines() if line.startswith(("ExecStart=", "RestartSec="))
    )
    room.hosts.write(
        host, "/etc/siloray/siloray.env", settings.replace("192.168.1.10", room.hosts.address("head"))
    )
    loop = (
        "echo $BASHPID > /run/loop.pid; mkdir -p /var/lib/siloray/spill; cd /; set -a; . /etc/siloray/siloray.env; "
        "PATH=/opt/siloray/.venv/bin:$PATH; set +a; "
        f"while :; do {said['ExecStart']}; sleep {said['RestartSec']}; done"
    )
    return room.hosts.start(host, loop, log=str(room.folder / f"systemd-{host}.log"))

"""The network between real Ray machines is cut and healed; a machine comes without the token, or with a wrong one."""

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support.room import Room

pytest_plugins = ["tests.support.room"]
pytestmark = [pytest.mark.slow, pytest.mark.hosts]

CUT_SILO, CUT_HOST = "hungarian", "silo-b"


def test_a_cut_of_ten_seconds_costs_nothing(room: "Room", undisturbed: dict[str, Any]) -> None:
    """Within the health check's patience: the call in flight simply ends, no silo is lost, the bits are the same."""
    from tests.support.room import ROUNDS, closed

    known = room.run_ids()
    room.submit(room.job("heart-room", total=ROUNDS), "--new", wait=False)
    run = room.new_run(known)
    room.until(run, closed(2))
    with room.hosts.cut(CUT_HOST, seconds=10):
        pass
    room.until(run, lambda event: event["type"] == "run_closed")
    summary = room.summary(run)
    assert summary["status"] == "done" and summary["lost"] == []
    assert summary["parameters_digest"] == undisturbed["parameters_digest"]
    assert _double_counts(room, run) == []


def test_a_cut_of_two_minutes_is_survived(room: "Room") -> None:
    """The silo is given up and the others go on; its machine is started again from the driver's, and it rejoins."""
    from tests.support.room import closed

    known = room.run_ids()
    folder = room.job("heart-async", total=5_000, mode="async")
    job = room.submit(folder, "--new", "--no-track", wait=False)  # MLflow would lag behind for minutes
    run = room.new_run(known)
    room.until(run, closed(2, CUT_SILO))
    with room.hosts.cut(CUT_HOST, seconds=120):
        before = len(room.journal(run))
    during = room.journal(run)[before:]
    newest = max(event["version"] for event in during if event["type"] == "round_closed")
    assert any(event["type"] == "silo_down" and event["silo"] == CUT_SILO for event in during)
    assert sum(event["type"] == "round_closed" for event in during) >= 20, "the other silo went on"

    room.until(run, closed(newest + 1, CUT_SILO))
    room.stop_job(job)
    room.until(run, lambda event: event["type"] == "run_closed")
    joined = [
        event for event in room.journal(run) if event["type"] == "silo_joined" and event["silo"] == CUT_SILO
    ]
    assert len(joined) >= 2
    assert len({(each["node"], each["fingerprint"], str(each["num_examples"])) for each in joined}) == 1
    assert joined[0]["node"] == CUT_HOST
    assert room.summary(run)["status"] == "stopped"
    assert _double_counts(room, run) == []


def test_without_the_token_nobody_is_let_in(room: "Room") -> None:
    """Neither a driver nor a machine nor whoever asks the jobs' address, with no token or with a wrong one."""
    head, ray = room.hosts.address("head"), "/opt/siloray/.venv/bin"
    driver = f"{ray}/python -c \"import ray; ray.init(address='{head}:6379', log_to_driver=False)\""
    machine = f"{ray}/ray start --address={head}:6379"
    nothing, wrong = "RAY_AUTH_MODE=disabled", f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN={64 * '0'}"
    tries = {
        f"{host}-{number}": (
            host,
            f"env HOME=/nowhere RAY_TMPDIR=/tmp/stranger {token} timeout 300 {command}",
        )
        for host, token in (("silo-a", nothing), ("silo-b", wrong))
        for number, command in enumerate((driver, machine))
    }
    logs = {name: room.folder / f"stranger-{name}.log" for name in tries}
    at_it = {
        name: room.hosts.start(host, command, log=str(logs[name])) for name, (host, command) in tries.items()
    }
    for name, process in at_it.items():
        assert process.wait(330) not in (0, 124), f"{name}: {tries[name]}"
        assert "InvalidAuthToken" in logs[name].read_text(encoding="utf-8")

    for token in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": 64 * "0"}):
        environ = {"RAY_AUTH_TOKEN_PATH": "", "HOME": "/nowhere", **token}
        asked = room.operate("ray", "job", "list", "--address", room.jobs_url(), environ=environ, check=False)
        assert asked.returncode != 0 and "token" in asked.stderr + asked.stdout, asked
    assert room.alive() == {"cleveland", "hungarian"}


def _double_counts(room: "Room", run: str) -> list[tuple[str, int]]:
    from orchestrator.core.events import parse
    from tests.support.federation import double_counts

    return double_counts(parse(room.journal(run)))

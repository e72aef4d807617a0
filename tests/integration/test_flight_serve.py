"""``siloray serve`` and ``siloray agent`` as real processes: killed, hung, refused and watched, to the same bits."""

import asyncio
import datetime as dt
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.core.messages import Ping, Progress, Request
from orchestrator.transport.authority import Authority
from silos.agent import Agent
from silos.workplace import InThread
from tests.support.clusters import Cluster
from tests.support.commands import Command, session
from tests.support.consortium import Consortium, uri_of
from tests.support.flamby import SPEC
from tests.support.served import TOTAL, Served, begun, heard, listening, refused, until

SLOW_S = 0.1
"""Pause per step where a test interferes: a round of 1.2 s."""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A run that nobody disturbs, and what its commands said."""
    made = Served(tmp_path_factory.mktemp("undisturbed"))
    try:
        agents = made.agents("--once")
        ended(made.serve())
        for agent in agents.values():
            ended(agent)
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def digest(undisturbed: Served) -> str:
    return str(undisturbed.summary["parameters_digest"])


def noted(place: Served, **rounds: float) -> Path:
    """A job with slow trainings, and the file that has each one which began."""
    note = place.folder / "begun"
    place.write_job(task="tests.support.served:Noted", pause_s=SLOW_S, options={"note": str(note)}, **rounds)
    return note


def ended(command: Command, code: int = 0) -> None:
    assert command.end() == code, command.told
    assert "Traceback" not in command.told, command.told


def test_a_driver_and_agents_of_their_own_organisations_make_a_model(undisturbed: Served) -> None:
    """The agents came first; with --once they leave when the run has ended."""
    summary = undisturbed.check(undisturbed.summary["parameters_digest"])
    assert summary["lost"] == summary["declined"] == summary["turned_away"] == []
    for silo in undisturbed.silos:
        assert [line["version"] for line in undisturbed.audit(silo, "update")] == list(range(TOTAL))


@pytest.mark.slow
def test_a_killed_driver_is_started_again_and_the_agents_reconnect(place: Served, digest: str) -> None:
    place.write_job(pause_s=SLOW_S)
    agents, first = place.agents("--once"), place.serve()
    first.until("round 2/")
    first.send(signal.SIGKILL)
    for agent in agents.values():
        heard(agent, "lost the line")
    again = place.serve()
    ended(again)
    assert "goes on from version" in again.out
    assert place.check(digest)["resumed"] == 1
    for agent in agents.values():
        ended(agent)
    assert len(place.of("silo_joined")) == 4
    assert len({event["incarnation"] for event in place.of("silo_joined")}) == 2, "the same processes"


@pytest.mark.slow
def test_an_agent_killed_in_mid_training_is_asked_again(place: Served, digest: str) -> None:
    note = noted(place)
    place.agent("cleveland")
    first, driver = place.agent("va"), place.serve()
    until(lambda: ("va", 1) in begun(note))
    first.send(signal.SIGKILL)
    place.agent("va")
    ended(driver)
    place.check(digest)
    (down,) = place.of("silo_down")
    assert down["silo"] == "va" and "started anew" in down["why"]
    assert len({event["fingerprint"] for event in place.of("silo_joined", "va")}) == 1
    assert len({event["incarnation"] for event in place.of("silo_joined", "va")}) == 2


@pytest.mark.slow
def test_a_stopped_agent_is_given_up_after_the_patience(place: Served, digest: str) -> None:
    """SIGSTOP stops the networking, too; woken up, the agent goes on where it was."""
    note = noted(place, patience_s=4)
    place.agent("cleveland")
    stopped, driver = place.agent("va"), place.serve()
    until(lambda: ("va", 1) in begun(note))
    stopped.send(signal.SIGSTOP)
    driver.until("va lost in round 2")
    stopped.send(signal.SIGCONT)
    ended(driver)
    place.check(digest)
    assert [event["silo"] for event in place.of("silo_down")] == ["va"]
    assert place.of("silo_down")[0]["time"] - place.of("round_closed")[0]["time"] < 4 * 4


@pytest.mark.slow
def test_an_agent_whose_training_hangs_replaces_its_own_process(place: Served, digest: str) -> None:
    """The line is there, the training makes no progress: the driver asks for a restart, and for the training again."""
    note = place.folder / "hung"
    hang = {"note": str(note), "silo": "va", "version": 1}
    place.write_job(task="tests.support.served:HangsOnce", options=hang, patience_s=4)
    place.agent("cleveland")
    hung, driver = place.agent("va"), place.serve()
    ended(driver)
    assert note.exists() and hung.process.poll() is None, "the process is the same, what runs in it is not"
    place.check(digest)
    (down,) = place.of("silo_down")
    assert down["silo"] == "va" and "no progress for 4 s" in down["why"]
    assert len({event["incarnation"] for event in place.of("silo_joined", "va")}) == 2
    assert hung.err.count("connected to") == 2, hung.told


def test_a_second_agent_of_a_silo_is_refused(place: Served) -> None:
    first = place.agent("va")
    heard(first, "cannot be reached")
    refused(place.agent("va"), "another process serves silo va already")
    assert first.process.poll() is None


@pytest.mark.slow
def test_an_agent_without_credentials_that_can_serve_is_refused(place: Served) -> None:
    refused(place.agent("va", credentials="cleveland"), "not of the silo 'va'")
    refused(place.agent("va", credentials="nobody"), "no such folder")
    (place.folder / "certs/va/tls.key").chmod(0o644)
    refused(place.agent("va"), "others than its owner may read this private key; run: chmod 600")
    past = dt.datetime.now(dt.UTC) - dt.timedelta(days=3)
    Authority(place.folder / "certs", past).issue_silo("va", days=1, force=True)
    refused(place.agent("va"), "expired on")


@pytest.mark.slow
def test_a_driver_without_credentials_that_can_serve_is_refused(place: Served) -> None:
    refused(place.give("serve", "job.yaml", "--credentials", "certs/va"), "not of the driver")
    place.write_job(silos=("cleveland", "va", "hungarian"))
    refused(place.serve(), "the roster has no hungarian")


@pytest.mark.slow
def test_a_silo_whose_policy_refuses_takes_no_part(place: Served) -> None:
    """The others go on without it, where the job allows that; both sides have it on record."""
    place.write_silo("va", allow_jobs=["other-*"])
    place.write_job(mode="quorum", deadline_s=20, min_updates=1)
    agents, driver = place.agents("--once"), place.serve()
    ended(driver)
    driver.until("va takes no part (policy): va does not allow the job 'served-heart'")
    (declined,) = place.of("silo_declined")
    assert declined["silo"] == "va" and declined["code"] == "policy"
    (line,) = place.audit("va", "refused")
    assert line["code"] == "policy" and line["reason"] == declined["reason"]
    assert "refused" in agents["va"].err and not place.audit("va", "update")
    assert [(each["silo"], each["code"]) for each in place.summary["declined"]] == [("va", "policy")]


@pytest.mark.slow
def test_a_job_waits_for_a_persons_approval(place: Served, digest: str) -> None:
    place.write_silo("va", approval="required")
    place.write_job(task=SPEC)
    place.agents()
    first = place.serve()
    assert first.end() == 4, first.told
    assert "va has not approved the job 'served-heart'" in first.told
    document = ("--silo", str(place.document("va")))
    ended(place.give("approve", "job.yaml", *document, "--yes"))
    ended(place.serve())
    place.check(digest)


@pytest.mark.slow
def test_a_served_run_is_watched_stopped_and_resumed_from_other_shells(place: Served, digest: str) -> None:
    place.write_job(pause_s=SLOW_S)
    place.agents()
    driver = place.serve()
    driver.until("round 1/")
    watching, listing = place.beside("watch"), place.give("list", "--runs-dir", "runs", "--json")
    ended(listing)
    (listed,) = json.loads(listing.out)
    assert listed["status"] == "running" and listed["run_id"] == place.run_dir.name
    watching.until("round ")
    ended(place.beside("stop"))
    ended(driver, 3)
    ended(watching, 3)
    assert place.summary["status"] == "stopped"
    refused(place.beside("stop"), "goes on with it")
    ended(place.beside("resume"))
    assert place.check(digest)["resumed"] == 1


@pytest.mark.slow
def test_an_agents_process_listens_to_nobody_while_it_trains(place: Served) -> None:
    """Nor does any process that it started; the driver listens where it was told to."""
    note = noted(place)
    agents, driver = place.agents(), place.serve()
    until(lambda: {silo for silo, _ in begun(note)} == set(agents))
    for silo, agent in agents.items():
        ports = {pid: listening(pid) for pid in session(agent.pid)}
        assert agent.pid in ports and not any(ports.values()), f"{silo}: {ports}"
    assert listening(driver.pid) == {int(place.listen.rpartition(":")[2])}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_ends_an_agent_in_mid_training(place: Served, number: signal.Signals) -> None:
    place.write_job(pause_s=2.0)
    agents, driver = place.agents(), place.serve()
    until(lambda: len(place.of("silo_joined")) == 2 if driver.lines else False)
    time.sleep(2)
    agents["va"].send(number)
    assert agents["va"].end(10) == 0, agents["va"].told
    assert "Traceback" not in agents["va"].told


@pytest.mark.slow
def test_an_agent_trains_on_its_organisations_own_ray(place: Served, digest: str) -> None:
    with Cluster(place.folder) as cluster:
        place.agent("cleveland", "--once")
        on_ray, driver = place.agent("va", "--once", "--address", cluster.address), place.serve()
        ended(driver)
        ended(on_ray)
    place.check(digest)


@pytest.mark.slow
def test_the_driver_on_a_ray_of_its_own_outlives_the_command(place: Served, digest: str) -> None:
    """The command is killed; its actor goes on listening, and the agents notice nothing."""
    place.write_job(pause_s=SLOW_S)
    with Cluster(place.folder) as cluster:
        agents = place.agents("--once")
        runs = ("--runs-dir", str(place.folder / "runs"))
        first = place.serve("--address", cluster.address, *runs)
        first.until("round 1/")
        first.send(signal.SIGKILL)
        ended(place.give("watch", "last", *runs, "--address", cluster.address))
        for agent in agents.values():
            ended(agent)
            assert "lost the line" not in agent.err, agent.told
    place.check(digest)


@pytest.mark.slow
def test_a_training_that_hangs_on_the_organisations_ray_is_started_anew(place: Served, digest: str) -> None:
    """The agent stays as it is; its actor is started again."""
    note = place.folder / "hung"
    hang = {"note": str(note), "silo": "va", "version": 1}
    place.write_job(task="tests.support.served:HangsOnce", options=hang, patience_s=6)
    with Cluster(place.folder) as cluster:
        place.agent("cleveland", "--once")
        on_ray, driver = place.agent("va", "--once", "--address", cluster.address), place.serve()
        ended(driver)
        ended(on_ray)
    assert note.exists()
    place.check(digest)
    assert len({event["incarnation"] for event in place.of("silo_joined", "va")}) == 2


class Idle:
    """A silo that has nothing to do."""

    def handle(self, request: Request) -> Progress:
        told = {"version": 0, "num_steps": 0, "total_steps": 0}
        return Progress(silo="a", incarnation="i", phase="idle", marks=0, **told)


def test_an_agent_amid_two_questions_hears_that_the_run_has_ended(tmp_path: Path) -> None:
    """The driver ends in the moment in which the agent has got something to do, and does not ask."""
    consortium = Consortium(tmp_path, ("a",))
    with consortium.channel() as channel:
        agent = Agent("a", uri_of(channel), consortium.of("a"), InThread(Idle))
        leaving = threading.Thread(target=agent.run, args=(True,), daemon=True)
        leaving.start()
        until(lambda: channel.connected() == {"a"})

        async def ask_and_end() -> None:
            call = asyncio.create_task(channel.call("a", Ping(run_id="run", epoch=1)))
            await asyncio.sleep(0.002)
            channel.close()
            call.cancel()

        asyncio.run(ask_and_end())
        leaving.join(5)
        agent.close()
    assert not leaving.is_alive()

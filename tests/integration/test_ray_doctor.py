"""`siloray doctor` on a real cluster with a stranger among its nodes, and what `run` makes of him: nothing."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.conftest import write_silos
from tests.support.clusters import Cluster
from tests.support.commands import LIMIT_S, Command

pytestmark = pytest.mark.slow

JOB = {
    "name": "hearts",
    "task": {
        "name": "tabular",
        "dataset": "heart",
        "target": "disease",
        "features": ["age"],
        "model": {"name": "logistic"},
    },
    "silos": ["va"],
    "rounds": {"total": 1},
    "local": {"steps": 2, "optimizer": {"name": "sgd", "lr": 0.03}},
}


class Place:
    """A cluster of the silo ``va``, and of a node whose silo nobody knows: it has no document."""

    def __init__(self, cluster: Cluster, folder: Path, va: Path) -> None:
        self.cluster, self.folder, self.va = cluster, folder, va
        (folder / "job.yaml").write_text(yaml.safe_dump(JOB))

    def give(self, *arguments: str, code: int) -> Command:
        command = Command(*arguments, "--address", self.cluster.address, cwd=self.folder)
        try:
            assert command.end() == code, command.told
        finally:
            command.close()
        return command

    def failures(self, *arguments: str) -> list[str]:
        """What `doctor` has to mend."""
        found = json.loads(self.give("doctor", *arguments, "--json", code=1).out)
        return [f"{each['what']}: {each['found']}" for each in found if each["level"] == "fail"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("cluster")
    va = write_silos(folder / "documents") / "va.yaml"
    with Cluster(folder) as cluster:
        cluster.join("va", va)
        cluster.join("stranger", folder / "none.yaml")
        yield Place(cluster, folder, va)


def test_a_run_goes_past_what_is_wrong_with_a_silo_that_has_no_part_in_it(place: Place) -> None:
    (stranger,) = place.failures()
    assert "(stranger)" in stranger and "none.yaml" in stranger
    done = place.give("run", "job.yaml", "--no-track", code=0)
    assert "stranger" not in done.told and "none.yaml" not in done.told


def test_doctor_asks_the_jobs_silos_whether_they_would_take_it_and_the_drivers_node_where_runs_lie(
    place: Place,
) -> None:
    document = place.va.read_text()
    changed = yaml.safe_load(document)
    changed["policy"]["allow_jobs"] = ["nothing-*"]
    place.va.write_text(yaml.safe_dump(changed))
    try:
        refused, *_ = (line for line in place.failures("job.yaml") if "(va)" in line)
        assert "does not allow the job 'hearts'" in refused
    finally:
        place.va.write_text(document)
    told = place.give("doctor", "job.yaml", code=1).out
    assert f"free for {place.cluster.folder / 'runs'}" in told
    assert f"sqlite:///{place.cluster.folder}/mlflow.db" in told
    (place.folder / "a file").touch()
    elsewhere = place.failures("job.yaml", "--runs-dir", str(place.folder / "a file" / "runs"))
    assert [line for line in elsewhere if line.startswith("runs on the driver's node")], elsewhere


def test_a_job_cannot_name_a_silos_document(place: Place) -> None:
    """Its environment goes to all its processes."""
    from orchestrator.transport.ray_jobs import Jobs
    from tests.integration.test_ray_submit import until

    jobs: Any = Jobs(place.cluster.dashboard)._client
    work = place.folder / "work"
    work.mkdir()
    (work / "job.yaml").write_text(yaml.safe_dump(JOB))
    environment = {"working_dir": str(work), "env_vars": {"SILORAY_SILO": "/etc/other.yaml"}}
    command = f"{sys.executable} -m orchestrator run job.yaml --no-track --new"
    name = jobs.submit_job(entrypoint=command, runtime_env=environment)
    until(lambda: jobs.get_job_status(name).is_terminal(), LIMIT_S)
    assert "take it out of the job's runtime_env" in jobs.get_job_logs(name)
    assert jobs.get_job_info(name).driver_exit_code == 2

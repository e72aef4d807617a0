"""A silo's process on a node of its own, which serves one run after another and may come after a run has begun."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.core.errors import SiloLost
from orchestrator.core.messages import Join, Joined, Leave, Refused, Reply
from orchestrator.job import Job
from tests.support.nodes import Nodes
from tests.support.quadratic import job_of, problems, silo_makers, sites

pytestmark = pytest.mark.slow

JOB = Job.model_validate(
    {
        "name": "hearts",
        "task": {"name": "tabular", "dataset": "heart", "target": "y", "features": ["x"]},
        "silos": ["va"],
        "rounds": {"total": 5},
    }
)


def write(folder: Path, rows: int = 20, **policy: Any) -> Path:
    (folder / "rows.csv").write_text("x,y\n" + "1,0\n2,1\n" * (rows // 2))
    path = folder / "va.yaml"
    path.write_text(
        yaml.safe_dump({"name": "va", "datasets": {"heart": {"path": "rows.csv"}}, "policy": policy})
    )
    return path


def channel() -> Any:
    """As each run has one of its own."""
    from orchestrator.transport.ray_channel import RayChannel

    return RayChannel("a run", ("va",), None)


async def ask(run_id: str) -> Reply:
    """What the silo answers to a new run, which then lets it go."""
    silos = channel()
    reply: Reply = await silos.call(
        "va", Join(run_id=run_id, epoch=1, job=JOB.model_dump_json(), job_digest=JOB.digest)
    )
    await silos.call("va", Leave(run_id=run_id, epoch=1, finished=True))
    return reply


def test_each_run_meets_the_document_and_the_rows_of_its_own_time(ray_here: Any, tmp_path: Path) -> None:
    async def runs() -> None:
        missing = await ask("first")
        assert isinstance(missing, Refused) and "no such file" in missing.reason
        write(tmp_path)
        second = await ask("second")
        write(tmp_path, rows=100)
        third = await ask("third")
        assert isinstance(second, Joined) and isinstance(third, Joined)
        assert second.incarnation == third.incarnation, "the same process"
        assert [sum(each.num_examples.values()) for each in (second, third)] == [20, 100]
        assert second.fingerprint != third.fingerprint
        write(tmp_path, allow_jobs=["nothing-*"])
        refused = await ask("fourth")
        assert isinstance(refused, Refused) and refused.code == "policy"

    with Nodes({"va": tmp_path / "va.yaml"}):
        asyncio.run(runs())
        end()


def test_a_silo_whose_node_comes_late_has_its_gpu(ray_here: Any, tmp_path: Path) -> None:
    import ray

    async def run() -> None:
        silos = channel()
        join = Join(run_id="late", epoch=1, job=JOB.model_dump_json(), job_digest=JOB.digest)
        with pytest.raises(SiloLost, match="no node yet"):
            await silos.call("va", join)
        await silos.restart("va")
        with Nodes({"va": write(tmp_path)}, num_gpus=1):
            assert isinstance(await silos.call("va", join), Joined)
            assert ray.available_resources().get("GPU", 0) == 0 < ray.cluster_resources()["GPU"]
            end()

    asyncio.run(run())


def test_a_silo_that_dies_when_it_has_just_joined_is_lost(ray_here: Any, tmp_path: Path) -> None:
    """And is asked again: a run would wait for it for ever."""
    from orchestrator.transport.ray_channel import RayChannel
    from tests.support.made_actors import made_actor

    class Dying(made_actor(silo_makers(sites(problems(1), tmp_path)))):  # type: ignore[misc]
        def place(self) -> Any:
            os._exit(1)

    job = job_of(["s0"])
    silos = RayChannel("dying", ("s0",), {"s0": ""}, actor=Dying)
    try:
        with pytest.raises(SiloLost):
            asyncio.run(
                silos.call(
                    "s0", Join(run_id="dying", epoch=1, job=job.model_dump_json(), job_digest=job.digest)
                )
            )
    finally:
        silos.close()


def end() -> None:
    """The silo's process would wait for its node to come back."""
    import ray

    ray.kill(ray.get_actor("silo-va", namespace="siloray"))

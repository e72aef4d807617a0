"""A run on quadratic silos in a process of its own, to be killed.

python -m tests.support.quadratic_run FOLDER             with SILORAY_FAULT=point:nth:kill
python -m tests.support.quadratic_run FOLDER point:1 ...  for each: one process that is killed there, and then
                                                         fresh ones until the run is done; one JSON line each
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from orchestrator.at_rest import store_key
from orchestrator.core.faults import arm
from orchestrator.job import Job
from tests.support.federation import Ended, federate
from tests.support.quadratic import job_of, problems, silo_makers, sites

SERVER = {"name": "adam", "lr": 0.5}
JOB = job_of(problems(), total=3, strategy={"name": "scaffold", "server": SERVER})
SEALED = job_of(
    problems(), total=3, strategy={"name": "scaffold", "server": SERVER}, combine={"name": "secure_sum"}
)
"""With faults of its own, ``sum....``: no other job passes them."""


def run(folder: Path, job: Job = JOB) -> Ended:
    """Encrypted at rest, driver and silos, where the environment names a key."""
    made = sites(problems(), folder / "silos")
    for site in made.values():
        site.key = store_key()
    return federate(job, silo_makers(made), folder)


def in_child(folder: Path, fault: str | None, job: Job) -> int:
    """Wait status of a fresh process (forked from this one, which has run nothing) that runs the job."""
    child = os.fork()
    if child == 0:
        try:
            arm(fault)
            (folder / "digest").write_text(run(folder, job).digest)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(folder: Path, fault: str) -> dict[str, Any]:
    folder.mkdir(parents=True)
    job = SEALED if fault.startswith("sum.") else JOB
    killed = in_child(folder, f"{fault}:kill", job)
    again = in_child(folder, None, job)
    return {"fault": fault, "killed": killed, "again": again, "digest": (folder / "digest").read_text()}


if __name__ == "__main__":
    where, *faults = sys.argv[1:]
    if not faults:
        print(run(Path(where)).digest)
    for each in faults:
        print(json.dumps(killed_at(Path(where) / each.replace(":", "-"), each)), flush=True)

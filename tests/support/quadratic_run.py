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

from orchestrator.core.faults import arm
from tests.support.federation import Ended, federate
from tests.support.quadratic import job_of, problems, silo_makers, sites

SERVER = {"name": "adam", "lr": 0.5}
JOB = job_of(problems(), total=3, strategy={"name": "scaffold", "server": SERVER})


def run(folder: Path) -> Ended:
    return federate(JOB, silo_makers(sites(problems(), folder / "silos")), folder)


def in_child(folder: Path, fault: str | None) -> int:
    """Wait status of a fresh process (forked from this one, which has run nothing) that runs the job."""
    child = os.fork()
    if child == 0:
        try:
            arm(fault)
            (folder / "digest").write_text(run(folder).digest)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(folder: Path, fault: str) -> dict[str, Any]:
    folder.mkdir(parents=True)
    killed = in_child(folder, f"{fault}:kill")
    again = in_child(folder, None)
    return {"fault": fault, "killed": killed, "again": again, "digest": (folder / "digest").read_text()}


if __name__ == "__main__":
    where, *faults = sys.argv[1:]
    if not faults:
        print(run(Path(where)).digest)
    for each in faults:
        print(json.dumps(killed_at(Path(where) / each.replace(":", "-"), each)), flush=True)

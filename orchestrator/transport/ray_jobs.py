"""Submitting a job to a Ray cluster over the HTTP of its dashboard: once, however often it is asked.

A submission has a name that is made of the job and a token. Ray takes a name once; what has failed or was stopped is
submitted again under the next number. Of this machine's files, the job document is sent and nothing else.
"""

from orchestrator.transport import ray_settings  # noqa: F401

# isort: split
import asyncio
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
from ray.dashboard.modules import dashboard_sdk
from ray.dashboard.modules.job import sdk
from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from orchestrator.core.errors import BadInput, CannotGoOn

JOB_FILE = "job.yaml"
"""What the job document is called in the folder in which the command is run."""

STOP_WAIT_S = 30
"""After ``ray job stop``, the round in hand has so long to end; Ray's own default is three seconds."""

POLL_S = 0.5
STARTS_S = 120.0
"""Ray unpacks the folder and starts the job within this time."""

TROUBLES = (RayError, RuntimeError, ValueError, OSError, aiohttp.ClientError)
"""What Ray's client raises where a cluster is away, takes no such token, or is something else."""

_ADDRESS = "RAY_API_SERVER_ADDRESS"


@dataclass(frozen=True)
class Submission:
    """One job of Ray's."""

    name: str
    status: str
    """``PENDING``, ``RUNNING``, ``SUCCEEDED``, ``FAILED``, ``STOPPED``."""
    is_new: bool


class Jobs:
    """The jobs of one cluster."""

    def __init__(self, address: str) -> None:
        """Raises `BadInput`."""
        self.address = address if "//" in address else f"http://{address}"
        for logger in (logging.getLogger("ray"), sdk.logger, dashboard_sdk.logger):
            logger.setLevel(logging.WARNING)  # they tell of packages and sockets amid our lines
        try:
            with _only(self.address):
                self._client = JobSubmissionClient(self.address)
        except TROUBLES as error:
            raise BadInput(f"--address {address}: {_why(error)}") from None

    def submit(self, name: str, command: str, job: Path, metadata: Mapping[str, str]) -> Submission:
        """Submit the command, unless that was done before and it runs or has succeeded. It finds the job document
        beside it, as `JOB_FILE`. Raises `BadInput`."""
        found = self._newest(name)
        if found is not None and found.status not in ("FAILED", "STOPPED"):
            return found
        attempt = f"{name}-{_attempt(found.name, name) + 1}" if found else name
        try:
            self._submit(attempt, command, job, metadata)
        except TROUBLES as error:
            if "already exists" not in str(
                error
            ):  # else another command was a moment faster: it is the same job
                raise BadInput(f"{self.address} did not take the job: {_why(error)}") from None
        return Submission(attempt, "PENDING", True)

    def log(self, name: str) -> Iterator[str]:
        """What the job prints, until it ends; some of it twice if the connection was lost meanwhile. Raises
        `CannotGoOn`."""
        self._begin(name)
        with asyncio.Runner() as runner:
            lines = self._client.tail_job_logs(name)
            while True:
                try:
                    yield runner.run(anext(lines))  # type: ignore[arg-type]
                except StopAsyncIteration:
                    return
                except TROUBLES as error:
                    raise self._away(name, error) from None

    def exit_code(self, name: str) -> int:
        """Of a job that has ended: the command's own; 3 for one that was stopped before it had any. Raises
        `CannotGoOn`."""
        until = time.monotonic() + STARTS_S
        while not (info := self._info(name)).status.is_terminal():
            if time.monotonic() > until:
                raise CannotGoOn(f"{name} is {info.status}, and its log has ended")
            time.sleep(POLL_S)
        code: int | None = info.driver_exit_code
        if info.status == JobStatus.STOPPED:
            return 3
        return code if code is not None and code >= 0 else 0 if info.status == JobStatus.SUCCEEDED else 1

    def message(self, name: str) -> str:
        """What Ray says of it. Raises `CannotGoOn`."""
        lines = str(self._info(name).message or "").strip().splitlines()
        return lines[0] if lines else ""

    def _submit(self, attempt: str, command: str, job: Path, metadata: Mapping[str, str]) -> None:
        """From a folder that has the document alone: Ray sends all that is in it to the cluster."""
        with TemporaryDirectory(prefix="siloray-") as folder:
            shutil.copyfile(job, Path(folder, JOB_FILE))
            self._client.submit_job(
                entrypoint=command,
                submission_id=attempt,
                runtime_env=_environment(folder),
                metadata=dict(metadata),
            )

    def _begin(self, name: str) -> None:
        """Its log cannot be followed before it has begun."""
        until = time.monotonic() + STARTS_S
        while self._info(name).status == JobStatus.PENDING and time.monotonic() < until:
            time.sleep(POLL_S)

    def _newest(self, name: str) -> Submission | None:
        found = {str(job.submission_id): str(job.status.value) for job in self._all()}
        mine = [each for each in found if _attempt(each, name)]
        newest = max(mine, key=lambda each: _attempt(each, name), default=None)
        return Submission(newest, found[newest], False) if newest else None

    def _all(self) -> Sequence[Any]:
        try:
            jobs: Sequence[Any] = self._client.list_jobs()
        except TROUBLES as error:
            raise BadInput(f"{self.address}: {_why(error)}") from None
        return jobs

    def _info(self, name: str) -> Any:
        try:
            return self._client.get_job_info(name)
        except TROUBLES as error:
            raise self._away(name, error) from None

    def _away(self, name: str, error: Exception) -> CannotGoOn:
        return CannotGoOn(
            f"{self.address} does not answer any more ({_why(error)}); "
            f"{name} may go on: the same command looks at it again"
        )


@contextmanager
def _only(address: str) -> Iterator[None]:
    """Ray's client puts what the environment names above the address that it is given."""
    before = os.environ.get(_ADDRESS)
    os.environ[_ADDRESS] = address
    try:
        yield
    finally:
        del os.environ[_ADDRESS]
        os.environ.update({_ADDRESS: before} if before is not None else {})


def _attempt(submission: str, name: str) -> int:
    """1 for the first submission of this name, 2 for ``name-2``; 0 for another one's."""
    if submission == name:
        return 1
    number = submission.removeprefix(f"{name}-")
    return int(number) if number != submission and number.isdecimal() else 0


def _environment(folder: str) -> dict[str, Any]:
    return {
        "working_dir": folder,
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), "PYTHONUNBUFFERED": "1"},
    }


def _why(error: Exception) -> str:
    """Ray's own words, without those for developers."""
    text = " ".join(str(error).split())
    if isinstance(error, AuthenticationError):
        return _without_token(text)
    return re.split(r"\. (?=[A-Z])|: Traceback", text)[0][:200] or type(error).__name__


def _without_token(text: str) -> str:
    what = "this machine has no token (RAY_AUTH_MODE=disabled is for a cluster without)"
    if text.startswith("Authentication failed"):
        what = "it does not take this machine's token"
    if text.startswith("Authentication required"):
        what = "it asks for a token"
    return f"{what}; RAY_AUTH_MODE=token, and the cluster's token in ~/.ray/auth_token or RAY_AUTH_TOKEN_PATH"

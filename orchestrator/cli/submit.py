"""``siloray submit``: give a job to a cluster, to be run there whether or not this machine stays."""

import os
import re
import secrets
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.bucket import checked
from orchestrator.cli import options, run_dirs
from orchestrator.core.errors import BadInput

if TYPE_CHECKING:
    from orchestrator.transport.ray_jobs import Jobs, Submission

LEFT = 130
"""As a shell has it for a command that Ctrl-C ended: no word on how the run goes."""


def submit(
    job: options.JobFile,
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard, which takes jobs.")
    ] = "http://127.0.0.1:8265",
    token: Annotated[
        str, typer.Option(help="A word of yours: with another one, the same job is another run.")
    ] = "",
    new: Annotated[bool, typer.Option("--new", help="Start another run, with a word made up.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Show the log until the run ends, and exit as it does.")
    ] = True,
    runs_dir: Annotated[
        str | None,
        typer.Option(
            help="Folder of the driver's node, from the root, or a URI in a store (s3://bucket/runs); default: "
            "SILORAY_RUNS there, else ~/siloray/runs."
        ),
    ] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(help="MLflow to write to, as the driver's node reaches it; default: beside the runs."),
    ] = None,
    no_track: Annotated[bool, typer.Option("--no-track", help="Write nothing to MLflow.")] = False,
    no_checks: options.NoChecks = False,
    python: Annotated[
        str, typer.Option(help="The Python of the cluster's head that has Siloray.")
    ] = "python",
) -> None:
    """Submit a job to a Ray cluster: 'siloray run' there, as 'ray job submit' would start it.

    The job document is sent, and no other file: modules of your own are those that are installed at the silos, and
    SILORAY_STORE_KEY_FILE names a file of the driver's node. The same command again follows the same run, goes on with
    it, or says that it is done. Ctrl-C leaves (exit code 130); the run goes on. Exit codes else as 'siloray run'.
    """
    from orchestrator.cli import jobs

    checked(runs_dir or "")
    checked(tracking_uri or "", run_dirs.TRACKING_PASSWORD)
    for option, text in (("--runs-dir", runs_dir), ("--tracking-uri", tracking_uri)):
        if text is not None:
            run_dirs.check_whole(option, text)
    digest = jobs.read(job).digest
    name = _name(digest, secrets.token_hex(3) if new else _word(token))
    more = _flags(runs_dir, tracking_uri, no_track=no_track, no_checks=no_checks)
    raise typer.Exit(_perform(address, name, job, [python, *more], wait, digest))


def _word(token: str) -> str:
    if token and not re.fullmatch(r"[A-Za-z0-9_.-]{1,40}", token):
        raise BadInput(f"--token {token!r}: up to 40 letters, digits, '_', '.' or '-'")
    return token


def _name(digest: str, word: str) -> str:
    return f"siloray-{digest[:12]}" + (f"-{word}" if word else "")


def _flags(runs_dir: str | None, tracking_uri: str | None, **flags: bool) -> list[str]:
    given = {"--runs-dir": runs_dir, "--tracking-uri": tracking_uri}
    values = [text for name, value in given.items() if value is not None for text in (name, value)]
    return values + [f"--{name.replace('_', '-')}" for name, value in flags.items() if value]


def _perform(address: str, name: str, job: Path, how: list[str], wait: bool, digest: str) -> int:
    from orchestrator.transport.ray_jobs import JOB_FILE, Jobs

    python, *more = how
    command = [*_key_there(), python, "-m", "orchestrator", "run", JOB_FILE, "--submission", name, *more]
    cluster = Jobs(address)
    found = cluster.submit(name, shlex.join(command), job, {"siloray_job_digest": digest})
    if found.status == "SUCCEEDED":
        typer.echo(f"{found.name} was submitted before and is done; --new submits it once more")
        return 0
    verb = "submitted" if found.is_new else "was submitted before"
    typer.echo(f"{found.name} {verb}", err=True)
    if not wait:
        stop = f"ray job stop {found.name} --address {shlex.quote(cluster.address)}"
        typer.echo(f"the same command with --wait follows it; '{stop}' ends it")
        return 0
    return _follow(cluster, found)


def _key_there() -> list[str]:
    """The path of the key for run directories, as this machine's environment has it. In the command, for Ray would give
    its own environment of a job to the silos' processes, too."""
    from orchestrator.at_rest import STORE_KEY, named_key

    given = os.environ.get(STORE_KEY)
    if named_key() is None or given is None:
        return []
    if not Path(given).is_absolute():
        raise BadInput(
            f"{STORE_KEY}={given}: the driver's node has the key's file; give its path there, from the root"
        )
    return ["env", f"{STORE_KEY}={given}"]


def _follow(cluster: "Jobs", found: "Submission") -> int:
    try:
        for text in cluster.log(found.name):
            print(text, end="", flush=True)
        code = cluster.exit_code(found.name)
        if code:
            typer.echo(f"{found.name} ended with exit code {code}: {cluster.message(found.name)}", err=True)
        return code
    except KeyboardInterrupt:
        typer.echo(f"{found.name} goes on; the same command looks at it again", err=True)
        return LEFT

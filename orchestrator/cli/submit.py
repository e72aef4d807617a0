"""``siloray submit``: give a job to a cluster, to be run there whether or not this machine stays."""

import re
import secrets
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.bucket import checked
from orchestrator.cli import options
from orchestrator.core.errors import BadInput

if TYPE_CHECKING:
    from orchestrator.transport.ray_jobs import Jobs, Submission


def submit(
    job: options.JobFile,
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard, which takes jobs.")
    ] = "http://127.0.0.1:8265",
    token: Annotated[
        str, typer.Option(help="A word of yours: with another one, the same job is submitted once more.")
    ] = "",
    new: Annotated[bool, typer.Option("--new", help="Submit it once more, and start another run.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Show the log until the run ends, and exit as it does.")
    ] = True,
    runs_dir: Annotated[
        str | None,
        typer.Option(
            help="Folder of the driver's node, or a URI in a store (s3://bucket/runs); default: SILORAY_RUNS there, "
            "else ~/siloray/runs."
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

    This folder is sent along (the job file and modules; not runs, data, or silo documents). The same command again
    follows the same submission. Ctrl-C leaves; the run goes on. Exit codes as 'siloray run'.
    """
    from orchestrator.cli import jobs

    checked(runs_dir or "")
    digest = jobs.read(job).digest
    file = _inside(job)
    word = secrets.token_hex(3) if new else _word(token)
    more = _flags(runs_dir, tracking_uri, no_track=no_track, new=new, no_checks=no_checks)
    command = shlex.join([python, "-m", "orchestrator", "run", str(file), *more])
    raise typer.Exit(_perform(address, _name(digest, word), command, wait, digest))


def _inside(job: Path) -> Path:
    """The job file as it is called in the folder that is sent."""
    try:
        return job.resolve().relative_to(Path.cwd().resolve())
    except ValueError:
        raise BadInput(f"{job}: not in this folder, which is what is sent to the cluster") from None


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


def _perform(address: str, name: str, command: str, wait: bool, digest: str) -> int:
    from orchestrator.transport.ray_jobs import Jobs

    cluster = Jobs(address)
    found = cluster.submit(name, command, str(Path.cwd()), {"siloray_job_digest": digest})
    if found.status == "SUCCEEDED":
        typer.echo(f"{found.name} was submitted before and is done; --new submits it once more")
        return 0
    verb = "submitted" if found.is_new else "was submitted before"
    typer.echo(f"{found.name} {verb}", err=True)
    if not wait:
        typer.echo(f"the same command with --wait follows it; 'ray job stop {found.name}' ends it")
        return 0
    return _follow(cluster, found)


def _follow(cluster: "Jobs", found: "Submission") -> int:
    try:
        for text in cluster.log(found.name):
            print(text, end="", flush=True)
    except KeyboardInterrupt:
        typer.echo(f"{found.name} goes on; the same command looks at it again", err=True)
        return 0
    code = cluster.exit_code(found.name)
    if code:
        typer.echo(f"{found.name} ended with exit code {code}: {cluster.message(found.name)}", err=True)
    return code

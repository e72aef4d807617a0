"""``siloray approve``: somebody at the silo reads what a job asks for, and lets it run."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options

if TYPE_CHECKING:
    from orchestrator.job import Job
    from silos.approvals import Approvals
    from silos.configured_site import ConfiguredSite


def approve(
    job: Annotated[
        Path | None, typer.Argument(metavar="[JOB]", help="The job document, as the driver will run it.")
    ] = None,
    silo: options.SiloDocument = None,
    revoke: Annotated[bool, typer.Option("--revoke", help="Withdraw the approval.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Say which jobs are approved.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """At a silo: show what a job asks for, and approve exactly this job with the code and the data that are here."""
    from orchestrator.core.errors import BadInput
    from silos.approvals import Approvals, find_code_of
    from silos.configured_site import NODE_FILE, ConfiguredSite

    site = ConfiguredSite(silo or Path(NODE_FILE))
    approvals = Approvals(site.own_folder)
    if list_:
        _list(approvals)
        return
    if job is None:
        raise BadInput("which job? give its job.yaml, or --list")
    from orchestrator.cli.jobs import read

    find_code_of(site.path)
    if revoke:
        _revoke(read(job), approvals, site)
    else:
        _approve(read(job), approvals, site, yes)


def _approve(job: "Job", approvals: "Approvals", site: "ConfiguredSite", yes: bool) -> None:
    from orchestrator.cli.asks import asks
    from orchestrator.cli.frozen import described, whoami
    from orchestrator.core.errors import BadInput
    from silos.approvals import code_digests
    from silos.policy import review

    code = code_digests(job)
    for line in (*asks(job), *(f"code        {name}, SHA-256 {digest}" for name, digest in code.items())):
        typer.echo(line)
    refusal = review(job, site.config)
    if refusal is not None:
        raise BadInput(f"not approved, since the policy refuses it: {refusal}")
    before = approvals.all().get(job.digest)
    data = {dataset: site.manifest(dataset) for dataset in dict.fromkeys(job.datasets)}
    for name, manifest in data.items():
        typer.echo(
            f"data        {described(site, name, manifest, before.data.get(name) if before else None)}"
        )
    if not yes:
        _ask(site.name)
    site.approve(job, whoami(), datetime.now(UTC).isoformat(timespec="seconds"), code, data)
    typer.echo(f"approved for {site.name}: {job.name}, digest {job.digest[:12]}")


def _revoke(job: "Job", approvals: "Approvals", site: "ConfiguredSite") -> None:
    from orchestrator.cli.frozen import whoami
    from orchestrator.core.errors import BadInput

    if not approvals.remove(job):
        raise BadInput(f"{site.name} has not approved this job (digest {job.digest[:12]})")
    site.guard.audit.write("approval revoked", job=job.name, job_digest=job.digest, who=whoami())
    typer.echo(f"no longer approved for {site.name}: {job.name}, digest {job.digest[:12]}")


def _list(approvals: "Approvals") -> None:
    for digest, each in approvals.all().items():
        code = "".join(f", {name} {sha[:12]}" for name, sha in each.code.items())
        typer.echo(f"{each.name}  {digest[:12]}  {each.when} by {each.who}{code}")


def _ask(silo: str) -> None:
    from orchestrator.core.errors import BadInput

    if not sys.stdin.isatty():
        raise BadInput("nobody to ask on this terminal; '--yes' approves without")
    if not typer.confirm(f"Let {silo} take part in this job?"):
        raise typer.Exit(1)

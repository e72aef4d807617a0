"""``siloray ledger``: at a silo, what its data have lost of their privacy, and whether the record of it is whole."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from orchestrator.cli import options

if TYPE_CHECKING:
    from silos.configured_site import ConfiguredSite
    from silos.statement import Statement

app = typer.Typer(
    no_args_is_help=True, help="The silo's privacy ledger: what its data have lost, over all jobs."
)


@app.command("show")
def show(silo: options.SiloDocument = None, as_json: options.AsJson = False) -> None:
    """What each data set has lost to each job, and what is left of its budget. Epsilon by privacy loss distributions,
    Rényi's bound beside it."""
    import json

    from silos.statement import statements

    site = _site(silo)
    found = statements(site.odometer.ledger.entries(), site.accounts())
    if as_json:
        typer.echo(json.dumps([each.model_dump(mode="json") for each in found], indent=2))
        return
    for each in found:
        for line in _lines(each):
            typer.echo(line)
    if not found:
        typer.echo("nothing is entered, and no data set has a budget")


@app.command("verify")
def verify(silo: options.SiloDocument = None) -> None:
    """Whether no line was changed, moved or taken out, and all heads that a driver has signed, or the audit file knows,
    are in the chain. Exit code 2, with the line, where that is not so."""
    from silos.ledger import head_of
    from silos.statement import audited, countersigned

    site = _site(silo)
    ledger = site.odometer.ledger
    entries = ledger.entries()
    signed, known = countersigned(entries, site.name, ledger.path), audited(entries, site.guard.audit)
    head = head_of(entries)
    typer.echo(f"{ledger.path}: whole, {head.length} lines, head {head.hash[:12]}")
    typer.echo(f"known to the audit file up to line {known}; signed by drivers up to line {signed}")
    if entries and not signed:
        typer.echo(
            "nobody outside the silo could tell an older copy of both files from these: no driver has signed"
        )


def _site(silo: Path | None) -> "ConfiguredSite":
    from silos.configured_site import NODE_FILE, ConfiguredSite

    return ConfiguredSite(silo or Path(NODE_FILE))


def _lines(each: "Statement") -> list[str]:
    files = f" (files {each.data[:12]})" if each.data else ""
    lines = [f"{each.dataset}{files}: {_budget(each)}"]
    for total in each.totals:
        lines.append(f"  {total.unit}: epsilon {_epsilon(total)}, {total.lines} queries")
        lines += [
            f"    job {job.job[:12]}, {job.part} rows: epsilon {_epsilon(job)}, {job.steps} steps in {job.lines} "
            f"queries, {job.first[:16]} to {job.last[:16]} UTC"
            for job in total.jobs
        ]
    return lines


def _budget(each: "Statement") -> str:
    if each.budget is None:
        return f"no budget; at delta {each.delta:g} it has lost"
    limit = f"epsilon {each.budget.epsilon:g} at delta {each.delta:g} for each {each.budget.unit}"
    return f"budget {limit}, {each.left:.4g} left"


def _epsilon(found: Any) -> str:
    """By privacy loss distributions, and Rényi's bound."""
    return f"{found.epsilon:.4g} (RDP {found.epsilon_rdp:.4g})"

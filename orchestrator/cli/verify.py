"""``siloray verify``: what a run's directory proves, and whether it does."""

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options, run_dirs
from orchestrator.cli.failures import BAD_INPUT
from orchestrator.core.printable import printable

if TYPE_CHECKING:
    from orchestrator.replaying import Replayed
    from orchestrator.verdict import Outside, Report


def verify(
    run: options.RunName,
    runs_dir: options.SeenRunsDir = None,
    replay: Annotated[
        int | None,
        typer.Option(help="Compute this version anew from kept updates (keep: {updates: N}).", min=1),
    ] = None,
    roster: Annotated[
        Path | None, typer.Option(help="The consortium's roster.yaml: whose keys count.", dir_okay=False)
    ] = None,
    driver_key: Annotated[
        str | None, typer.Option(help="The driver's public key, in base64: no other counts.")
    ] = None,
    audit: Annotated[
        list[Path] | None, typer.Option(help="A silo's own audit.jsonl, to be held against the run.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Check a run offline: its journal, who signed it, the silos' receipts and the models. Exits with 2 unless all of
    it holds."""
    found = run_dirs.locate(run, None, runs_dir)
    from orchestrator.run_key import run_key
    from orchestrator.store import Store
    from orchestrator.verifying import verify as check

    if replay is not None:
        _refuse_in_store(found, replay)
    store = Store(found.run_dir, key=run_key(found.run_dir))
    report, replayed = check(store, _outside(driver_key, roster, audit or [])), None
    if replay is not None and report.fine:
        replayed = asyncio.run(_replay(store, replay))
    if as_json:
        typer.echo(json.dumps(_plain(report, replayed)))
    else:
        _print(report, replayed)
    if not report.fine or (replayed is not None and replayed.wrong):
        raise typer.Exit(BAD_INPUT)


def _refuse_in_store(found: run_dirs.Located, version: int) -> None:
    """What is here of a run in a store has no models and no updates, unless its driver is at work on this machine."""
    if found.folder is None or not found.folder.in_store or found.run_dir.is_symlink():
        return
    from orchestrator.core.errors import BadInput
    from orchestrator.pulled import runs_copy

    there = (
        f"'siloray verify {found.run_dir.name} --runs-dir {runs_copy(found.folder.text)} --replay {version}'"
    )
    raise BadInput(f"--replay: updates stay on the driver's machine and go to no store; run there {there}")


async def _replay(store: object, version: int) -> "Replayed":
    from orchestrator.replaying import replay

    return await replay(store, version)  # type: ignore[arg-type]


def _outside(driver_key: str | None, roster: Path | None, audits: list[Path]) -> "Outside":
    from orchestrator.core.errors import BadInput
    from orchestrator.roster import Roster, decoded, encoded
    from orchestrator.verdict import Outside

    try:
        driver_key = encoded(decoded(driver_key)) if driver_key is not None else None
    except ValueError as error:
        raise BadInput(f"--driver-key: {error}") from None
    if roster is None:
        return Outside(driver_key=driver_key or "", audits=audits)
    members = Roster.load(roster)
    silos = {name: encoded(member.signing_key) for name, member in members.silos.items()}
    driver_key = driver_key or encoded(members.driver.signing_key)
    return Outside(driver_key, silos, audits, frozenset(members.file.revoked))


def _plain(report: "Report", replayed: "Replayed | None") -> dict[str, object]:
    found = {**asdict(report), "fine": report.fine, "verdict": report.verdict}
    return (
        found if replayed is None else {**found, "replay": {**asdict(replayed), "verdict": replayed.verdict}}
    )


def _print(report: "Report", replayed: "Replayed | None") -> None:
    from orchestrator.cli.tables import print_table

    rows = [
        [check.what, *(("ok", check.found) if check.fine else ("WRONG", check.wrong[0]))]
        for check in report.checks
    ]
    print_table(["what", "", "found"], rows, title=report.run_id)
    if report.contributors:
        names = sorted(report.contributors)
        rows = [
            [name, str(report.contributors[name]), str(report.countersigned.get(name, 0))] for name in names
        ]
        print_table(["silo", "updates in the model", "lines of the journal signed"], rows)
    for check in report.checks:
        for wrong in check.wrong:
            typer.echo(printable(f"{check.what}: {wrong}"))
    typer.echo(printable(report.verdict))
    if replayed is not None:
        typer.echo(printable(replayed.verdict))

"""``siloray silo``: what an organisation does with its own data, on its own machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options

if TYPE_CHECKING:
    from silos.configured_site import ConfiguredSite

app = typer.Typer(
    no_args_is_help=True, help="At a silo: keys, encrypted tables, and the data that jobs may use."
)


@app.command("key")
def key(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="New file for the key.", dir_okay=False)],
) -> None:
    """Make a key (256 random bits) in a file that only its owner can read. It is never printed."""
    from orchestrator.at_rest import make_key

    made = make_key(path)
    typer.echo(f"{path}: key {made.id}; what it encrypts is lost without it, so keep a copy elsewhere")


@app.command("encrypt")
def encrypt(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A table, or a folder of tables.")],
    target: Annotated[Path, typer.Argument(metavar="DEST", help="New Parquet file, or new folder.")],
    key_file: Annotated[Path, typer.Option(help="The key, as 'siloray silo key' makes it.", dir_okay=False)],
) -> None:
    """Make an encrypted copy of CSV, Arrow or Parquet tables, and compare it with them. SRC stays as it is."""
    from orchestrator.at_rest import key_in
    from silos.encrypted_copy import encrypted_copy

    secret = key_in(key_file)
    for each, copy in _pairs(source, target):
        copy.parent.mkdir(parents=True, exist_ok=True)
        num_rows = encrypted_copy(each, copy, secret)
        typer.echo(
            f"{copy}: {num_rows:,} rows, equal to those of {each}; every column and the footer encrypted"
        )
    where = f"{{file: {key_file.absolute()}}}" if key_file.is_file() else "..."
    typer.echo(f"in silo.yaml: encryption: {{key: {where}}}; SRC is still in the clear", err=True)


@app.command("freeze")
def freeze(
    dataset: Annotated[
        list[str] | None, typer.Argument(metavar="[DATASET]...", help="Data sets of silo.yaml; default: all.")
    ] = None,
    silo: options.SiloDocument = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Only say whether the data is what was frozen; exits with 1 if not."),
    ] = False,
) -> None:
    """At a silo: jobs may use the data as it is now, and no other (policy.freeze: required)."""
    from silos.configured_site import NODE_FILE, ConfiguredSite

    site = ConfiguredSite(silo or Path(NODE_FILE))
    same = [_freeze(site, name, check) for name in _chosen(site, dataset)]
    if check and not all(same):
        raise typer.Exit(1)


def _chosen(site: "ConfiguredSite", given: list[str] | None) -> list[str]:
    from orchestrator.core.errors import BadInput

    known = site.config.datasets
    for name in given or ():
        if name not in known:
            raise BadInput(f"{site.path}: no data set '{name}'; there are: {', '.join(sorted(known))}")
    return given or sorted(known)


def _freeze(site: "ConfiguredSite", name: str, check: bool) -> bool:
    """Whether it was this already."""
    from datetime import UTC, datetime

    from orchestrator.cli.frozen import described, whoami

    manifest, frozen = site.manifest(name), site.manifests.frozen().get(name)
    same = frozen is not None and frozen.digest == manifest.digest
    line = described(site, name, manifest, frozen.digest if frozen else None)
    typer.echo(line + ("; not frozen" if check and frozen is None else ""))
    if not check and not same:
        who = whoami()
        site.guard.audit.write("frozen", dataset=name, manifest=manifest.digest, who=who)
        site.manifests.freeze(name, manifest, who, datetime.now(UTC).isoformat(timespec="seconds"))
    return same


def _pairs(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """Each table and its copy, in the same folders."""
    from orchestrator.core.errors import BadInput
    from silos.files import TABLES, tables_in

    if not source.exists():
        raise BadInput(f"{source}: no such file or folder")
    if source.is_file():
        return [(source, target)]
    found = sorted(tables_in(source.rglob("*")))
    if not found:
        raise BadInput(f"{source}: no table in this folder; expected files ending in {', '.join(TABLES)}")
    copies = [target / each.relative_to(source).with_suffix(".parquet") for each in found]
    if len(set(copies)) < len(copies):
        raise BadInput(f"{source}: two tables differ only in their endings; their copies would be one file")
    return list(zip(found, copies, strict=True))

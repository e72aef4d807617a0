"""``siloray model``: at a silo, the models that it keeps of its runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli import options

if TYPE_CHECKING:
    from silos.configured_site import ConfiguredSite


def model(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="The run's id; default: list all.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the run's model to this file (safetensors).", dir_okay=False)
    ] = None,
    silo: options.SiloDocument = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """At a silo: the models that it made its own at the end of its runs, and a copy of one for its owner."""
    from orchestrator.core.errors import BadInput
    from silos.configured_site import NODE_FILE, ConfiguredSite

    site = ConfiguredSite(silo or Path(NODE_FILE))
    models = site.models
    if run is None and out is not None:
        raise BadInput("which run's model? give its id; without one 'siloray model' lists them")
    if run is None:
        _show(models.cards(), as_json)
        return
    _, card = models.find(run)
    if out is not None:
        _export(site, run, card, out)
    _show({run: card}, as_json)


def _export(site: "ConfiguredSite", run: str, card: Mapping[str, Any], out: Path) -> None:
    """A copy in the clear outside the silo's own folder, once that is on record."""
    from orchestrator.core.errors import BadInput

    if out.exists():
        raise BadInput(f"{out}: there is such a file already")
    model = site.models.plain(run)
    site.guard.audit.write("model exported", run=run, sha256=card["sha256"], file=str(out.absolute()))
    try:
        out.write_bytes(model)
    except OSError as error:
        raise BadInput(f"{out}: {error.strerror}") from None


def _show(cards: Mapping[str, Mapping[str, Any]], as_json: bool) -> None:
    import json

    if as_json:
        typer.echo(json.dumps(cards, indent=2))
        return
    for run, card in cards.items():
        typer.echo(_line(run, card))
    if not cards:
        typer.echo("no models are kept here")


def _line(run: str, card: Mapping[str, Any]) -> str:
    """What the model is, and how it does on the silo's test rows."""
    figures = card.get("metrics", {})
    shown = "; ".join(
        f"{model} {', '.join(f'{name} {value:.4g}' for name, value in each.items())}"
        for model, each in figures.items()
    )
    return f"{run}  {card['model']} model of version {card['version']}, {card['kept_at']}  {shown}"

"""``siloray card``: the model card of a run."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import options, run_dirs
from orchestrator.core.errors import BadInput


def card(
    run: options.RunName,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write it into this file instead of printing it.")
    ] = None,
    runs_dir: options.SeenRunsDir = None,
) -> None:
    """Write the model card of a run: who is in the model, what protects them, what attacks found, how to check it."""
    run_dir = run_dirs.locate(run, None, runs_dir).run_dir
    from orchestrator.card import card as text_of
    from orchestrator.card_facts import facts_of
    from tracking.weights import digest_of

    facts = facts_of(run_dir)
    text = text_of(facts, digest_of(run_dir, facts.version))
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"--output {output}: {error.strerror}") from None
    typer.echo(f"wrote {output}")

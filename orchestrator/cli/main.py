"""The ``siloray`` command: what commands there are, and how each of them ends.

Every command is a file of its own that imports Ray, torch and the like only when it runs.
"""

import os
import sys
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from orchestrator.cli import (
    agent,
    approve,
    card,
    certs,
    doctor,
    ledger,
    list_runs,
    model,
    partition,
    resume,
    run,
    schema,
    serve,
    show,
    silo,
    silos,
    simulate,
    stop,
    submit,
    ui,
    validate,
    verify,
    watch,
)
from orchestrator.cli.failures import close_quietly, exit_code, say, sentence, unexpected


class Commands(TyperGroup):
    """Ends a command that failed with one line and the code for the kind of failure."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            code = exit_code(error)
            if code is None:
                raise
            say(sentence(error))
            raise typer.Exit(code) from None


app = typer.Typer(
    name="siloray",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        print(f"siloray {metadata.version('siloray')}")
        raise typer.Exit()


@app.callback()
def siloray(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Organisations that may not share data train one model together."""


app.command("run")(run.run)
app.command("submit")(submit.submit)
app.command("serve")(serve.serve)
app.command("agent")(agent.agent)
app.command("validate")(validate.validate)
app.command("simulate")(simulate.simulate)
app.command("silos")(silos.silos)
app.command("watch")(watch.watch)
app.command("stop")(stop.stop)
app.command("resume")(resume.resume)
app.command("list")(list_runs.list_runs)
app.command("show")(show.show)
app.command("verify")(verify.verify)
app.command("ui")(ui.ui)
app.command("partition")(partition.partition)
app.command("doctor")(doctor.doctor)
app.command("schema")(schema.schema)
app.command("approve")(approve.approve)
app.command("model")(model.model)
app.command("card")(card.card)
app.add_typer(ledger.app, name="ledger")
app.add_typer(certs.app, name="certs")
app.add_typer(silo.app, name="silo")


def main() -> None:
    """Entry point of ``siloray`` and of ``python -m orchestrator``."""
    try:
        app(prog_name="siloray")
    except SystemExit as end:
        _leave_at_once_without_ray(end.code)
        raise
    except Exception as error:
        sys.exit(unexpected(error))
    finally:
        close_quietly()


def _leave_at_once_without_ray(code: Any) -> None:
    """A Ray that is gone keeps the interpreter from ending."""
    if getattr(sys.modules.get("orchestrator.transport.ray_connection"), "abandoned", False):
        close_quietly()
        os._exit(code if isinstance(code, int) else 0)

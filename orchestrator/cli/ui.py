"""``siloray ui``: the MLflow pages of the runs, on this machine."""

import os
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options, run_dirs
from orchestrator.core.errors import BadInput, CannotGoOn

if TYPE_CHECKING:
    from subprocess import Popen

HOST = "127.0.0.1"
END_S = 5.0


def ui(
    runs_dir: options.RunsDir = options.RUNS_DIR,
    tracking_uri: Annotated[
        str | None,
        typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow to show; default: the last run's."),
    ] = None,
    port: Annotated[int, typer.Option(help="On this machine only.", min=1, max=65535)] = 5000,
) -> None:
    """Serve the MLflow pages on this machine, and print the page of the last run. Ctrl-C ends it."""
    known = run_dirs.ids(runs_dir)
    last = runs_dir / known[-1] if known else None
    uri = _uri(tracking_uri, last)
    if uri.startswith("http"):
        _tell(uri, last)
    else:
        _check(uri, port)
        _serve(uri, port, last)


def _uri(given: str | None, last: Path | None) -> str:
    from tracking.server import absolute

    noted = None
    if last is not None:
        with suppress(BadInput):
            noted = run_dirs.read_command(last)["tracking_uri"]
    return absolute(given or noted or "sqlite:///mlflow.db")


def _check(uri: str, port: int) -> None:
    database = Path(uri.partition(":///")[2])
    if uri.startswith("sqlite") and not database.is_file():
        raise BadInput(f"{database}: no such file; 'siloray run' makes one, --tracking-uri names another")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise BadInput(f"port {port}: {error.strerror}; choose another with --port") from None


def _serve(uri: str, port: int, last: Path | None) -> None:
    from tracking.ui import serve, wait_until_up

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = serve(uri, port)
    try:
        base = f"http://{HOST}:{port}"
        if not wait_until_up(base) or server.poll() is not None:
            raise CannotGoOn("MLflow's server did not come up; its own words are above")
        _tell(base, last)
        server.wait()
    except KeyboardInterrupt:
        pass
    finally:
        _end(server)


def _tell(base: str, last: Path | None) -> None:
    from tracking.ui import charts_of, page_of

    typer.echo(f"MLflow   {base}")
    if last is None:
        return
    for what, page in (("run", page_of(last, base)), ("charts", charts_of(last, base))):
        typer.echo(f"{what:<8} {page or f'{last.name} is not in MLflow yet'}")


def _end(server: "Popen[bytes]") -> None:
    """The server has a session of its own, so that Ctrl-C reaches it through here."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    with suppress(Exception):
        server.wait(END_S)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)

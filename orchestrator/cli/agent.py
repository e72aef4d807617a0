"""``siloray agent``: a silo that dials out to the driver and serves it, under its own policy."""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.failures import say
from orchestrator.core.endpoint import endpoint
from orchestrator.core.errors import BadInput

if TYPE_CHECKING:
    from orchestrator.transport.certs import Credentials
    from silos.agent import Agent
    from silos.workplace import Workplace


def agent(
    silo: Annotated[Path, typer.Argument(metavar="SILO", help="This organisation's silo.yaml.")],
    driver: Annotated[
        str | None, typer.Option(help="HOST:PORT of the driver; default: silo.yaml's connection.")
    ] = None,
    credentials: Annotated[
        Path | None, typer.Option(help="Folder of this silo's certificate and keys.", file_okay=False)
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="This organisation's own Ray cluster, on which the silo then trains.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Leave when the run has ended.")] = False,
) -> None:
    """Serve a driver as the silo that SILO describes. Opens no port; dials again whenever the line breaks.

    Ctrl-C or SIGTERM leaves. What was trained and not yet sent is trained again when the command is given again.
    """
    from silos.config import load_silo

    config = load_silo(silo)
    uri, folder = _driver(config.connection, driver), _credentials(config.connection, credentials, silo)
    from silos.exclusive import only_one

    with only_one(silo.absolute().parent / ".siloray" / config.name / "agent.lock", f"silo {config.name}"):
        _serve(silo, config.name, f"grpc+tls://{uri}", _checked(folder, config.name), address, once)


def _driver(connection: Any, given: str | None) -> str:
    uri = given or (connection.driver if connection else None)
    if uri is None:
        raise BadInput("which driver? Say so in silo.yaml ('connection'), or with --driver HOST:PORT")
    try:
        endpoint(uri)
    except ValueError as error:
        raise BadInput(f"--driver {uri}: {error}") from None
    return str(uri)


def _credentials(connection: Any, given: Path | None, silo: Path) -> Path:
    from silos.bounds import inside

    if given is None and connection is None:
        raise BadInput("which certificate? Say so in silo.yaml ('connection'), or with --credentials DIR")
    return given or inside(connection.credentials, silo.absolute().parent)


def _checked(folder: Path, name: str) -> "Credentials":
    """Before torch is imported: these are this silo's own."""
    from orchestrator.transport.certs import Credentials

    found = Credentials.load(folder)
    member = found.roster.current().silo_of(found.identity)
    if member is None or member.name != name:
        raise BadInput(f"{folder}: credentials of {found.identity}, not of the silo '{name}'")
    return found


def _serve(
    silo: Path, name: str, uri: str, credentials: "Credentials", address: str | None, once: bool
) -> None:
    from silos.agent import Agent
    from silos.approvals import find_code_of

    find_code_of(silo)
    serving = Agent(
        name,
        uri,
        credentials,
        _workplace(silo, name, credentials.folder, address),
        lambda text: say(f"{name}: {text}"),
    )
    _attend(serving, once)
    sys.stdout.flush()
    os._exit(0)  # a training in hand would be waited for; the driver asks for it again


def _attend(serving: "Agent", once: bool) -> None:
    """The agent in a thread: a signal is heard by the main one, and only while it is not amid a call."""
    left = threading.Event()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            serving.run(once)
        except BaseException as error:
            failed.append(error)
        left.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: left.set())
    threading.Thread(target=run, name="agent", daemon=True).start()
    left.wait()
    if failed:
        raise failed[0]


def _workplace(silo: Path, name: str, credentials: Path, address: str | None) -> "Workplace":
    if address is not None:
        from silos.actor_workplace import OnRay

        return OnRay(name, silo.absolute(), address)
    from silos.configured_site import ConfiguredSite
    from silos.silo import Silo
    from silos.workplace import InProcess

    return InProcess(lambda: Silo(ConfiguredSite(silo, True, credentials)))

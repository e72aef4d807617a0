"""``siloray certs``: keys and certificates of driver and silos, for those who have no CA of their own."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Certificates, signing keys and the roster of who takes part.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The silo, as its silo.yaml names it.")]
CaDir = Annotated[Path, typer.Option(help="Folder of the CA, made by 'certs init'.", file_okay=False)]
Hosts = Annotated[
    list[str] | None,
    typer.Option(help="Name or address by which silos reach the driver (repeatable); default: this machine."),
]
Days = Annotated[int, typer.Option(help="How long the certificate is valid.", min=1, max=36500)]
Force = Annotated[bool, typer.Option("--force", help="Replace keys and certificates that are there.")]
Out = Annotated[Path | None, typer.Option(help="Folder to write; default: DIR/NAME.", file_okay=False)]


@app.command("init")
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder for the CA.", file_okay=False)],
    name: Annotated[str, typer.Option(help="Name of the consortium, for people.")] = "siloray",
    host: Hosts = None,
    days: Annotated[int, typer.Option(help="How long the CA is valid.", min=1, max=36500)] = 3650,
    force: Force = False,
) -> None:
    """Make a CA and the driver's credentials (DIR/driver). Whoever holds DIR/ca.key decides who takes part."""
    from orchestrator.transport.authority import HOSTS, Authority

    Authority.create(folder, name, days, host or HOSTS, force)
    typer.echo(f"{folder / 'ca.key'}: the CA's private key; keep it off the driver and the silos")
    typer.echo(f"{folder / 'driver'}: the driver's credentials")


@app.command("issue")
def issue(
    ca: CaDir,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="The silo, as its silo.yaml names it.")
    ] = None,
    driver: Annotated[bool, typer.Option("--driver", help="New credentials for the driver.")] = False,
    host: Hosts = None,
    out: Out = None,
    request: Annotated[
        Path | None,
        typer.Option(help="A request made at the silo with 'certs request': no key is sent.", dir_okay=False),
    ] = None,
    days: Days = 825,
    force: Force = False,
) -> None:
    """Make a silo's credentials folder, or sign its request, and enter it in the roster."""
    from orchestrator.core.errors import BadInput
    from orchestrator.transport.authority import HOSTS, Authority

    if (name is None) != driver or (driver and (out or request)) or (host and not driver):
        raise BadInput("give a silo's NAME (with --out, --request), or --driver (with --host)")
    authority = Authority(ca)
    if name is None:
        made, keys = authority.issue_driver(host or HOSTS, days, force), True
    elif request is None:
        made, keys = authority.issue_silo(name, out, days, force), True
    else:
        made, keys = authority.answer(name, request, out, days, force), False
    _say_issued(name or "driver", ca, made, keys)


def _say_issued(name: str, ca: Path, made: Path, keys: bool) -> None:
    from orchestrator.transport.roster import ROSTER, Roster, encoded

    roster = Roster.load(ca / ROSTER)
    member = roster.silos.get(name, roster.driver)
    what = "holds private keys: hand it over by a safe way" if keys else "send its files to the silo"
    typer.echo(f"{made}: credentials of {name}; {what}")
    typer.echo(f"signing key {encoded(member.signing_key)}")
    typer.echo(f"{ca / ROSTER}: changed; give driver and silos their copy")


@app.command("request")
def request(
    name: Name,
    out: Annotated[Path, typer.Option(help="Folder for the silo's keys and its request.", file_okay=False)],
    force: Force = False,
) -> None:
    """Make a silo's keys here, and a request for a certificate. Only the request leaves."""
    from orchestrator.transport.request import Request, make_request
    from orchestrator.transport.roster import encoded

    path = make_request(name, out, force)
    typer.echo(f"{path}: send this file to the CA, and put its answer into {out}")
    typer.echo(f"signing key {encoded(Request.load(path).signing_key)}: compare it with what the CA shows")


@app.command("revoke")
def revoke(name: Name, ca: CaDir) -> None:
    """Take a silo out of the roster: its keys count no longer."""
    from orchestrator.transport.authority import Authority
    from orchestrator.transport.roster import ROSTER

    Authority(ca).revoke(name)
    typer.echo(f"{name}: revoked; give driver and silos their copy of {ca / ROSTER}")


@app.command("show")
def show(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A credentials folder, a certificate or a roster.")
    ],
) -> None:
    """Say whose it is, how long it is valid and what stands in the roster; never a private key."""
    from orchestrator.transport.certs_shown import shown

    lines, fine = shown(path)
    for line in lines:
        typer.echo(line)
    raise typer.Exit(0 if fine else 1)

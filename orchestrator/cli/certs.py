"""``siloray certs``: keys and certificates of driver and silos, for those who have no CA of their own."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Certificates, signing keys and the roster of who takes part.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The silo, as its silo.yaml names it.")]
SomeName = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help="The silo, as its silo.yaml names it; or --driver.")
]
CaDir = Annotated[Path, typer.Option(help="Folder of the CA, made by 'certs init'.", file_okay=False)]
Hosts = Annotated[
    list[str] | None,
    typer.Option(help="Name or address by which silos reach the driver (repeatable); default: this machine."),
]
Days = Annotated[int, typer.Option(help="How long the certificate is valid.", min=1, max=36500)]
Force = Annotated[bool, typer.Option("--force", help="Replace keys and certificates that are there.")]
WithKeys = Annotated[
    bool,
    typer.Option(
        "--with-keys", help="Make the private keys here, too. They then have to be carried, by a safe way."
    ),
]
Out = Annotated[Path | None, typer.Option(help="Folder to write; default: DIR/NAME.", file_okay=False)]


@app.command("init")
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder for the CA.", file_okay=False)],
    name: Annotated[str, typer.Option(help="Name of the consortium, for people.")] = "siloray",
    host: Hosts = None,
    days: Annotated[int, typer.Option(help="How long the CA is valid.", min=1, max=36500)] = 3650,
    with_keys: WithKeys = False,
    force: Force = False,
) -> None:
    """Make a CA. Whoever holds DIR/ca.key decides who takes part. With --with-keys, also the driver's credentials
    (DIR/driver), for its --host."""
    from orchestrator.core.errors import BadInput
    from orchestrator.transport.authority import HOSTS, Authority

    if host and not with_keys:
        raise BadInput(
            "--host is for the driver's certificate: give it to 'certs issue --driver', or --with-keys"
        )
    if with_keys:
        Authority.create(folder, name, days, host or HOSTS, force)
    else:
        Authority.found(folder, name, days, force)
    typer.echo(f"{folder / 'ca.key'}: the CA's private key; keep it off the driver and the silos")
    if with_keys:
        typer.echo(f"{folder / 'driver'}: the driver's credentials; {_CARRY}")
    else:
        typer.echo(
            "next: 'siloray certs request --driver' on the driver's machine; then 'issue --driver' here"
        )


_CARRY = "holds private keys: hand it over by a safe way"


@app.command("issue")
def issue(
    ca: CaDir,
    name: SomeName = None,
    driver: Annotated[bool, typer.Option("--driver", help="For the driver.")] = False,
    host: Hosts = None,
    out: Out = None,
    request: Annotated[
        Path | None,
        typer.Option(help="What 'certs request' made, on the machine that the keys are for.", dir_okay=False),
    ] = None,
    with_keys: WithKeys = False,
    days: Days = 825,
    force: Force = False,
) -> None:
    """Sign the request of a silo or of the driver, and enter it in the roster."""
    from orchestrator.core.errors import BadInput
    from orchestrator.transport.authority import HOSTS, Authority

    member = _member(name, driver)
    if host and not driver:
        raise BadInput("--host is for the certificate of the driver")
    if (request is None) != with_keys:
        raise BadInput(
            f"give --request, made with 'siloray certs request {name or '--driver'}'; or --with-keys"
        )
    authority, hosts = Authority(ca), host or HOSTS
    if request is not None:
        made = authority.answer(member, request, out, days, force, hosts)
    elif driver:
        made = authority.issue_driver(hosts, days, force, out)
    else:
        made = authority.issue_silo(member, out, days, force)
    _say_issued(member, ca, made, with_keys)


def _member(name: str | None, driver: bool) -> str:
    from orchestrator.core.errors import BadInput
    from orchestrator.roster import DRIVER_NAME, check_name

    if (name is None) != driver:
        raise BadInput("give a silo's NAME, or --driver")
    if name is None:
        return DRIVER_NAME
    check_name(name)
    return name


def _say_issued(name: str, ca: Path, made: Path, keys: bool) -> None:
    from orchestrator.roster import ROSTER, Roster, encoded

    roster = Roster.load(ca / ROSTER)
    member = roster.silos.get(name, roster.driver)
    what = _CARRY if keys else "send its files to where the request came from"
    typer.echo(f"{made}: credentials of {name}; {what}")
    typer.echo(f"signing key {encoded(member.signing_key)}")
    typer.echo(f"{ca / ROSTER}: changed; give driver and silos their copy")


@app.command("request")
def request(
    out: Annotated[Path, typer.Option(help="Folder for the keys and the request.", file_okay=False)],
    name: SomeName = None,
    driver: Annotated[bool, typer.Option("--driver", help="For the driver.")] = False,
    force: Force = False,
) -> None:
    """Make the keys of a silo, or of the driver, here, and a request for a certificate. Only the request leaves."""
    from orchestrator.roster import encoded
    from orchestrator.transport.request import Request, make_request

    path = make_request(_member(name, driver), out, force)
    typer.echo(f"{path}: send this file to the CA, and put its answer into {out}")
    typer.echo(f"signing key {encoded(Request.load(path).signing_key)}: compare it with what the CA shows")


@app.command("revoke")
def revoke(name: Name, ca: CaDir) -> None:
    """Take a silo out of the roster: its keys count no longer."""
    from orchestrator.roster import ROSTER
    from orchestrator.transport.authority import Authority

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

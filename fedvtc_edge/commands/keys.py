"""``fedvtc-edge keys``: identities that sign and seal, and trust lists."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedvtc_edge.errors import UsageError

from . import _common as common

if TYPE_CHECKING:
    from fedvtc_edge.sealing import Entry, TrustList

_PORT = 8000  # in the commands that `trial` prints


@click.group(invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """Make, show and trust the keys that sign bundles and seal uploads."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--suite",
    type=click.Choice(["hybrid", "x25519"]),
    default="hybrid",
    show_default=True,
    help="What seals to it: ML-KEM-768 with X25519, or X25519 alone.",
)
@common.json_option
def new(file: Path, suite: str, as_json: bool) -> None:
    """Write a new private identity to FILE and its public half to FILE.pub.

    It signs (Ed25519) and opens what is sealed to it. With FEDVTC_PASSPHRASE set, the
    private file is encrypted with it.
    """
    from fedvtc_edge.sealing import Identity, signing

    identity = Identity.generate(suite)
    public_path = identity.save(file, passphrase=os.environ.get(signing.PASSPHRASE))
    public = identity.public
    shown = signing.fingerprint(public.key)
    if as_json:
        common.emit_json(
            {
                "schema": 1,
                "private": str(file),
                "public": str(public_path),
                "fingerprint": shown,
                "identity": public.fingerprint,
                "suite": public.suite,
            }
        )
    else:
        click.echo(f"private key: {file}  (signs and unseals; keep it to yourself)")
        click.echo(f"public key: {public_path}  (verifies and seals; goes to the others)")
        _show(shown, public.fingerprint, public.suite)


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@common.json_option
def show(file: Path, as_json: bool) -> None:
    """Print the fingerprints of the public keys in FILE.

    The first is of the signing key, as `verify` prints it; the second of the whole
    identity, as `keys trust` prints it. A key that only signs has no second one.
    """
    from fedvtc_edge.sealing import PublicIdentity, signing

    key = signing.load_public(file)
    shown = signing.fingerprint(key)
    identity = suite = None
    if signing.read(file).count(b"-----BEGIN") > 1:
        public = PublicIdentity.load(file)
        identity, suite = public.fingerprint, public.suite
    if as_json:
        common.emit_json(
            {
                "schema": 1,
                "public": str(file),
                "fingerprint": shown,
                "identity": identity,
                "suite": suite,
            }
        )
    else:
        _show(shown, identity, suite)


@command.command()
@click.argument("list_", metavar="LIST", type=click.Path(path_type=Path))
@click.argument("client", metavar="[CLIENT-ID", required=False)
@click.argument("file", metavar="FILE.pub]", required=False, type=click.Path(path_type=Path))
@click.option("--revoke", is_flag=True, help="Trust CLIENT-ID no more, for good.")
@common.json_option
def trust(list_: Path, client: str | None, file: Path | None, revoke: bool, as_json: bool) -> None:
    """Add the identity in FILE.pub to the trust list LIST as CLIENT-ID, or show LIST.

    Compare the printed fingerprint with what its owner sees in `keys show`, over another
    channel than the one that brought the file.
    """
    from fedvtc_edge.sealing import PublicIdentity, TrustList

    if (client is None) != (file is None and not revoke) or (file is not None and revoke):
        raise UsageError(
            "a list; a list, a client and its FILE.pub; or a list, a client and --revoke",
            hint="fedvtc-edge keys trust --help",
        )
    adding = file is not None and not os.path.lexists(list_)
    known = TrustList() if adding else TrustList.load(list_)
    if client is None:
        _list(list_, known, known.entries, as_json)
        return
    entry = known.revoke(client) if file is None else known.add(client, PublicIdentity.load(file))
    known.save(list_)
    _list(list_, known, (entry,), as_json)


@command.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--clients", type=int, default=3, show_default=True, help="How many.")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="Name or address by which clients reach the server; repeatable. Beside these "
    "the certificate is for this machine itself.",
)
@click.option("--days", type=int, default=30, show_default=True, help="Life of certificates.")
@common.json_option
def trial(folder: Path, clients: int, hosts: tuple[str, ...], days: int, as_json: bool) -> None:
    """Make all keys of a server and its clients in the new folder DIR, to try `serve` and `join`.

    Server and clients have a folder each in DIR, which goes to its machine. With
    FEDVTC_PASSPHRASE set, private identities are encrypted with it.
    """
    from fedvtc_edge.flower.access import keys as kit
    from fedvtc_edge.sealing import PublicIdentity, signing

    names = kit.make_test_keys(
        folder, clients, hosts, days, passphrase=os.environ.get(signing.PASSPHRASE)
    )
    owners = [
        {
            "id": name,
            "folder": str(folder / name),
            "identity": PublicIdentity.load(folder / name / "identity.key.pub").fingerprint,
        }
        for name in ("server", *names)
    ]
    serve, *joins = _next([owner["folder"] for owner in owners], hosts)
    if as_json:
        common.emit_json(
            {
                "schema": 1,
                "folder": str(folder),
                "authority": str(folder / "authority"),
                "days": days,
                "hosts": list(dict.fromkeys([*hosts, *kit.LOCAL_HOSTS])),
                "server": owners[0],
                "clients": owners[1:],
                "next": {"serve": serve, "join": joins},
            }
        )
        return
    header = ("party", "its folder", "identity")
    common.emit_table(header, [tuple(owner.values()) for owner in owners], left=3)
    click.echo(
        f"authority: {folder / 'authority'}  (signs certificates for {days} days; "
        "goes to no other machine)\n\n"
        f"on the server, with clients.count = {len(names)} in CONFIG.toml:\n  {serve}\n"
        "on each client:"
    )
    for join in joins:
        click.echo(f"  {join}")
    click.echo(
        "\nfor a trial only: whoever made this folder has had all private keys. In earnest each "
        "is made where it is used: `keys new` for identities, ssh-keygen for node keys, and "
        "certificates by your own authority."
    )


def _next(folders: list[str], hosts: tuple[str, ...]) -> list[str]:
    """What the server and then each client types with its keys."""
    reached = hosts[0] if hosts else "localhost"
    everywhere, at = ("::", f"[{reached}]") if ":" in reached else ("0.0.0.0", reached)  # noqa: S104
    listening = everywhere if hosts else "127.0.0.1"
    server, *clients = (f"--keys {shlex.quote(folder)}" for folder in folders)
    return [
        f"fedvtc-edge serve CONFIG.toml {server} --host {listening} --port {_PORT}",
        # Settings of a trial have no privacy mode unless somebody sets one.
        *(f"fedvtc-edge join {at}:{_PORT} {client} --no-privacy" for client in clients),
    ]


def _list(path: Path, known: TrustList, entries: tuple[Entry, ...], as_json: bool) -> None:
    rows = [
        {
            "id": entry.client,
            "status": entry.status,
            "suite": entry.identity.suite,
            "fingerprint": entry.identity.fingerprint,
        }
        for entry in entries
    ]
    if as_json:
        common.emit_json(
            {"schema": 1, "list": str(path), "total": len(known.entries), "clients": rows}
        )
    else:
        header = ("client", "status", "suite", "identity")
        common.emit_table(header, [tuple(row.values()) for row in rows], left=4)


def _show(fingerprint: str, identity: str | None, suite: str | None) -> None:
    click.echo(f"fingerprint: {fingerprint}")
    if identity:
        click.echo(f"identity: {identity}")
        click.echo(f"suite: {suite}")

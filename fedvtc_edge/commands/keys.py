"""``fedvtc-edge keys``: the keys that sign what goes to a device."""

from __future__ import annotations

import os
from pathlib import Path

import click

from . import _common as common


@click.group(invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """Make and show the Ed25519 keys that sign bundles."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@common.json_option
def new(file: Path, as_json: bool) -> None:
    """Write a new private key to FILE and its public key to FILE.pub.

    With FEDVTC_PASSPHRASE set, the private key is encrypted with it.
    """
    from fedvtc_edge import signing

    key = signing.generate()
    public_path = signing.save(key, file, passphrase=os.environ.get(signing.PASSPHRASE))
    shown = signing.fingerprint(key.public_key())
    if as_json:
        common.emit_json(
            {"schema": 1, "private": str(file), "public": str(public_path), "fingerprint": shown}
        )
    else:
        click.echo(f"private key: {file}  (signs; keep it to yourself)")
        click.echo(f"public key: {public_path}  (verifies; goes to the devices)")
        click.echo(f"fingerprint: {shown}")


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@common.json_option
def show(file: Path, as_json: bool) -> None:
    """Print the fingerprint of the public key in FILE."""
    from fedvtc_edge import signing

    shown = signing.fingerprint(signing.load_public(file))
    if as_json:
        common.emit_json({"schema": 1, "public": str(file), "fingerprint": shown})
    else:
        click.echo(f"fingerprint: {shown}")

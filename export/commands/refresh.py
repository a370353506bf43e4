"""``fedvtc-edge refresh``: newer statistics into a bundle, without a new export."""

from __future__ import annotations

import os
from pathlib import Path

import click

from fedvtc_edge.commands import _common as common

from . import _options as options


@click.command()
@options.bundle_argument
@click.argument("statistics", type=click.Path(path_type=Path))
@options.sign_option
@options.key_option
@click.option("--trust-unsigned", is_flag=True, help="Sign a bundle that has no signature yet.")
@common.json_option
def command(
    bundle: Path,
    statistics: Path,
    sign: Path | None,
    key: Path | None,
    trust_unsigned: bool,
    as_json: bool,
) -> None:
    """Put a newer statistics.safetensors, as a server published it, into BUNDLE.

    A signed bundle is checked first, with --key or else with the public part of
    --sign, and is signed again.
    """
    from fedvtc_edge.sealing import signing

    from ..refreshing import refresh

    private = None
    if sign is not None:
        private = signing.load_private(sign, passphrase=os.environ.get(signing.PASSPHRASE))
    manifest = refresh(
        bundle, statistics, signing_key=private, public_key=key, trust_unsigned=trust_unsigned
    )
    if as_json:
        common.emit_json(
            {
                "schema": 1,
                "bundle": str(bundle),
                "revision": manifest.revision,
                "signed": private is not None,
            }
        )
    else:
        signed = "signed" if private is not None else "not signed"
        click.echo(f"{bundle}: {manifest.client} is at revision {manifest.revision}, {signed}")

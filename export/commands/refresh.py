"""``fedvtc-edge refresh``: newer statistics into a bundle, without a new export."""

from __future__ import annotations

from pathlib import Path

import click

from fedvtc_edge.commands import _common as common


@click.command()
@common.bundle_argument
@click.argument("statistics", type=click.Path(path_type=Path))
@common.sign_option
@common.key_option
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
    from ..refreshing import refresh

    private = common.signing_key(sign)
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

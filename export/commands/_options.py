"""Options that the bundle commands share."""

from __future__ import annotations

from pathlib import Path

import click

bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))
key_option = click.option(
    "--key",
    metavar="PUB",
    type=click.Path(path_type=Path),
    help="Public key of whoever exported the bundle; without it only hashes are checked.",
)
variant_option = click.option(
    "--variant",
    type=click.Choice(["auto", "fp32", "int8"]),
    default="auto",
    show_default=True,
    help="auto measures on this machine.",
)
sign_option = click.option(
    "--sign",
    metavar="KEY",
    type=click.Path(path_type=Path),
    help="Sign with this private key (fedvtc-edge keys new FILE).",
)

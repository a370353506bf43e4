"""``fedvtc-edge join``: one client of a federation, with its own data, on its own machine."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedvtc_edge import plugins

from . import _common as common

if TYPE_CHECKING:
    from fedvtc_edge.flower.joining import JoinSettings

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("address", metavar="HOST:PORT")
@click.option("--keys", metavar="DIR", type=_FILE, help="Folder of `keys trial` with all keys.")
@click.option(
    "--authority", metavar="FILE", type=_FILE, help="Who signed the server's certificate."
)
@click.option("--node-key", metavar="FILE", type=_FILE, help="Key by which the server knows us.")
@click.option("--identity", metavar="FILE", type=_FILE, help="Private identity: signs uploads.")
@click.option("--server", metavar="FILE", type=_FILE, help="The server's public identity.")
@click.option("--trust", metavar="FILE", type=_FILE, help="Trust list of all clients.")
@click.option(
    "--data",
    metavar="PATH",
    type=_FILE,
    help="Our images: an .npz file, an image folder, or a .zip of one. Without it: our share "
    "of the built-in data that the server names, for trials.",
)
@click.option("--home", metavar="DIR", type=_FILE, help="Our folder [default: homes/CLIENT-ID].")
@click.option("--architecture", metavar="NAME", help="Of our network [default: as configured].")
@click.option(
    "--extractor",
    metavar="FILE",
    type=_FILE,
    help="Our own file of the run's extractor: FILE.onnx, or FILE.safetensors with the weights "
    "of a torchvision: or timm: network. What the server names is never opened or fetched.",
)
@click.option(
    "--config", "settings", metavar="FILE", type=_FILE, help="Take part under these settings only."
)
@click.option(
    "--tell/--no-tell",
    "telling",
    default=None,
    help="Tell the server how accurate our networks are and how many examples of which class "
    "we have [default: only without privacy mode and masking].",
)
@click.option(
    "--require-privacy",
    "private",
    is_flag=True,
    help="Take part only if what leaves us carries its noise already: no server is trusted.",
)
@click.option(
    "--at-most-epsilon",
    "most_epsilon",
    metavar="E",
    type=click.FloatRange(0, min_open=True),
    help="Take part only if the whole run spends no more than this epsilon.",
)
@click.option(
    "--no-privacy",
    "exact",
    is_flag=True,
    help="Take part without a privacy mode too: exact statistics leave us.",
)
@click.option(
    "--spend-again",
    is_flag=True,
    help="Release data under a privacy mode that were released in another run before.",
)
@click.option(
    "--wait",
    "wait_s",
    metavar="SECONDS",
    type=click.FloatRange(0, 86_400),
    default=0.0,
    help="Wait so long for a server that is not there yet.",
)
@common.json_option
@common.quiet_option
def command(
    address: str,
    keys: Path | None,
    data: Path | None,
    home: Path | None,
    architecture: str | None,
    extractor: Path | None,
    settings: Path | None,
    telling: bool | None,
    private: bool,
    most_epsilon: float | None,
    exact: bool,
    spend_again: bool,
    wait_s: float,
    as_json: bool,
    quiet: bool,
    **parts: Path | None,
) -> None:
    """Join the run of the server at HOST:PORT, until its last round.

    Everything of this client stays in its home: networks, ledger, and what it needs to go
    on after it was stopped, which is done by the same command.
    """
    host, port = _address(address)
    if exact and (private or most_epsilon is not None):
        raise click.UsageError(
            "--no-privacy takes part without a privacy mode, --require-privacy and "
            "--at-most-epsilon under one only: expected one of them"
        )
    place = home or Path("homes")
    try:
        with common.needing_extras(), common.reporting(quiet) as progress:
            from fedvtc_edge.flower.joining import join

            membership = replace(
                _membership(keys, parts, data, architecture, settings, telling, extractor),
                exact=exact,
                private=private,
                most_epsilon=most_epsilon,
                spend_again=spend_again,
            )
            place = home or Path("homes") / _client(membership)
            client = join(membership, place, host, port, progress, wait_s=wait_s)
    except KeyboardInterrupt:
        hint = f"give the same command to go on; {shlex.quote(str(place))} has everything"
        raise common.Interrupted(hint) from None
    if as_json:
        common.emit_json({"schema": 1, "client": client, "home": str(place)})
    else:
        click.echo(f"{client}: the run is done; its networks lie in {place}")
        words = f"{shlex.quote(str(place))} --out bundles{plugins.options()}"
        click.echo(f"a bundle of them: fedvtc-edge export {words}")


def _membership(
    folder: Path | None,
    parts: dict[str, Path | None],
    data: Path | None,
    architecture: str | None,
    settings: Path | None,
    telling: bool | None,
    extractor: Path | None,
) -> JoinSettings:
    from fedvtc_edge.config import load_config
    from fedvtc_edge.errors import ConfigError, DataError
    from fedvtc_edge.flower.access.keys import ClientKeyBundle
    from fedvtc_edge.flower.joining import JoinSettings
    from fedvtc_edge.models import find

    kit = common.kit_of(ClientKeyBundle, folder, parts)
    if architecture is not None:
        find(architecture)
    if settings is not None:
        load_config(settings)
    if data is not None and not data.exists():
        raise DataError(f"no images at {data}", hint="an .npz file, a .zip file or a folder")
    if extractor is not None and not (
        extractor.is_file() and extractor.suffix in (".onnx", ".safetensors")
    ):
        raise ConfigError(
            f"--extractor {extractor}: no such file of weights",
            hint="give the path of an .onnx or .safetensors file",
        )
    return JoinSettings(
        authority=str(kit.authority.resolve()),
        node_key=str(kit.node_key.resolve()),
        identity=str(kit.identity.resolve()),
        server=str(kit.server.resolve()),
        trust=str(kit.trust.resolve()),
        data=str(data.resolve()) if data else "",
        architecture=architecture or "",
        settings=str(settings.resolve()) if settings else "",
        telling=telling,
        extractor=str(extractor.resolve()) if extractor else "",
    )


def _client(membership: JoinSettings) -> str:
    from fedvtc_edge.sealing import signing

    return membership.kit.open(os.environ.get(signing.PASSPHRASE)).client


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise click.UsageError(f"{text!r} is no address; expected HOST:PORT, as localhost:8000")
    return host, int(port)

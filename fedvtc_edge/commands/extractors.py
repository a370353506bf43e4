"""``fedvtc-edge extractors``: frozen public feature extractors, and what they cost here."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import _common as common

if TYPE_CHECKING:
    from fedvtc_edge.devices.extractor_costs import ExtractorCosts


@click.command()
@click.argument("name", required=False)
@click.option(
    "--weights",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Weights of a torchvision: or timm: network, as .safetensors.",
)
@click.option(
    "--size",
    type=click.IntRange(8, 1024),
    default=32,
    show_default=True,
    help="Pixels of a side of the images.",
)
@click.option(
    "--channels",
    type=click.Choice(["1", "3"]),
    default="3",
    show_default=True,
    help="1 for grey images, 3 for colour.",
)
@common.json_option
def command(
    name: str | None, weights: Path | None, size: int, channels: str, as_json: bool
) -> None:
    """List extractors with bytes, multiplications, time here and licence; or measure NAME.

    NAME is one of the list, torchvision:NAME, timm:NAME or PATH.onnx. A torchvision: or timm:
    network that is named is fetched if it is not here; the list fetches nothing.
    """
    if weights is not None and name is None:
        raise click.UsageError("--weights without NAME: whose are they?")
    from fedvtc_edge.errors import FedVTCError

    with common.needing_extras():
        from fedvtc_edge.devices.extractor_costs import costs_of, names
        from fedvtc_edge.models import ImageShape

        shape = ImageShape(size, int(channels))
        found: list[ExtractorCosts] = []
        missing: dict[str, str] = {}
        if name is not None:
            found.append(costs_of(name, shape, str(weights or "")))
        else:
            for listed in names():
                try:
                    found.append(costs_of(listed, shape))
                except FedVTCError as error:
                    missing[listed] = f"{error} ({error.hint})"
    if as_json:
        common.emit_json(
            {
                "schema": 1,
                "size": size,
                "channels": int(channels),
                "extractors": [asdict(costs) for costs in found],
                "unavailable": missing,
            }
        )
        return
    _print(found)
    for listed, why in missing.items():
        click.echo(f"{listed}: {why}")


def _print(found: list[ExtractorCosts]) -> None:
    header = ("extractor", "kB", "million MACs", "ms an image", "features", "px")
    rows = [
        (
            costs.name,
            common.kilobytes(costs.weights_bytes),
            "-" if costs.macs is None else f"{costs.macs / 1e6:.1f}",
            f"{costs.ms:.2f}",
            str(costs.features),
            str(costs.resolution),
        )
        for costs in found
    ]
    common.emit_table(header, rows)
    click.echo()
    for costs in found:
        click.echo(f"{costs.name}: {costs.licence}; from {costs.origin}")
        click.echo(f"  sha256 {costs.sha256 or '-'}")

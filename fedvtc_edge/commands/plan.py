"""``fedvtc-edge plan``: what fits the memory of a device, before anything runs on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import _common as common

if TYPE_CHECKING:
    from fedvtc_edge.devices.planner import DevicePlan, PlanRow


@click.command()
@common.config_argument
@common.set_option
@click.option(
    "--device", required=True, metavar="NAME", help="A shipped profile, or the path of your own."
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=int,
    metavar="N",
    help="Batch to try; repeatable [default: a quarter, once and four times training.batch].",
)
@common.json_option
def command(
    config_file: Path | None,
    overrides: tuple[str, ...],
    device: str,
    batches: tuple[int, ...],
    as_json: bool,
) -> None:
    """Say which architecture, batch and mode fit a device's memory.

    Every figure is modelled, and none is of the machine that this runs on.
    """
    from fedvtc_edge.config import load_config
    from fedvtc_edge.devices import DeviceProfile

    config = load_config(config_file, overrides=overrides)
    profile = DeviceProfile.load(device)
    with common.needing_extras():
        from fedvtc_edge.devices.planner import plan

        made = plan(config, profile, batches=batches)
    if as_json:
        common.emit_json(made.document())
    else:
        _print(made)


def _print(made: DevicePlan) -> None:
    assumed = "~" if made.memory.kind == "assumed" else ""
    click.echo(
        f"{made.device}: {assumed}{made.memory.value:g} MB; images {made.shape.size}x"
        f"{made.shape.size}x{made.shape.channels}, {made.classes} classes, "
        f"{made.samples} samples at most"
    )
    click.echo()
    header = ("architecture", "batch", "what", "mode", "weights", "gradients", "optimiser")
    rest = ("activations", "data", "baseline", "total MB", "fits")
    common.emit_table((*header, *rest), [_cells(row) for row in made.rows])
    click.echo()
    for line in made.lines:
        click.echo(line)


def _cells(row: PlanRow) -> tuple[str, ...]:
    needs = row.needs
    parts = (
        needs.weights,
        needs.gradients,
        needs.optimiser,
        needs.activations,
        needs.data,
        needs.baseline,
        needs.total,
    )
    figures = [f"{size / 2**20:.1f}" if size else "-" for size in parts]
    fits = "yes" if row.fits else "no"
    return (row.architecture, str(row.batch), row.what, row.mode or "-", *figures, fits)

"""``fedvtc-edge bench``: memory and latency of bundles, here and on devices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedvtc_edge.commands import _common as common
from fedvtc_edge.errors import RunError

if TYPE_CHECKING:
    from ..bench.limits import Method

_MOST_REMARKS = 6


def _batches(_: click.Context, __: click.Parameter, text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        batches = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r}, expected numbers such as 1,8,32") from None
    if not all(1 <= batch <= 1 << 20 for batch in batches):
        raise click.BadParameter(f"{text!r}, expected each from 1 to {1 << 20}")
    return batches


@click.command()
@click.argument(
    "bundles", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "--device",
    "devices",
    metavar="NAME|all",
    multiple=True,
    help="Profile, your own .toml file, or all that are shipped; repeatable.",
)
@click.option(
    "--preset",
    type=click.Choice(["quick", "mlperf"]),
    default="quick",
    show_default=True,
    help="Seconds per row, or 1,024 samples and a minute at least.",
)
@click.option("--batch", "batches", callback=_batches, metavar="N,N", help="1,32 if quick.")
@click.option(
    "--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Of an inference."
)
@click.option(
    "--graph",
    "graphs",
    multiple=True,
    type=click.Choice(["classifier", "synthesizer", "anchor"]),
    help="Only this one; repeatable.",
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    type=click.Choice(["fp32", "int8"]),
    help="Only this one; repeatable.",
)
@common.extractor_option
@common.key_option
@click.option(
    "--enforce",
    type=click.Choice(["auto", "cgroup", "rlimit"]),
    default="auto",
    show_default=True,
    help="How to limit memory.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the inputs.")
@common.out_option("Folder for bench.json and report.html.")
@common.json_option
@common.quiet_option
def command(
    bundles: tuple[Path, ...],
    devices: tuple[str, ...],
    preset: str,
    batches: tuple[int, ...],
    threads: int,
    graphs: tuple[str, ...],
    variants: tuple[str, ...],
    extractor: Path | None,
    key: Path | None,
    enforce: Method,
    seed: int,
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure each graph of each BUNDLE: latency, memory, and whether it fits.

    Rows are measured (this host), enforced (this host under a device's limits) or
    modelled (time on the device, good to a factor of two).
    """
    from fedvtc_edge.devices import DeviceProfile, profile_names

    from ..bench.measuring import bench

    names = [name for one in devices for name in (profile_names() if one == "all" else [one])]
    profiles = [DeviceProfile.load(name) for name in dict.fromkeys(names)]
    if out is not None:  # what is missing must not be found out after an hour
        _prepare(out)
    with common.needing_extras(), common.reporting(quiet) as progress:
        document = bench(
            bundles,
            profiles,
            preset=preset,
            batches=batches,
            threads=threads,
            graphs=graphs,
            variants=variants,
            extractor=extractor,
            key=key,
            enforce=enforce,
            seed=seed,
            progress=progress,
        )
    page = None
    if out is not None:
        from ..bench.page import save

        page = save(document, out)
    if as_json:
        common.emit_json(document)
        return
    _print(document)
    if page is not None:
        click.echo(f"report: {page}")


def _prepare(out: Path) -> None:
    import fedvtc_edge.report  # noqa: F401  (says what to install where that is missing)

    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise RunError(f"{out} is not a folder", hint="give another --out") from None


def _print(document: dict[str, Any]) -> None:
    from ..bench import wording as say

    click.echo(f"measured on this host, no limit ({say.host(document)})")
    header = ["client", "graph", "variant", "batch", "p50 ms", "p90", "p99", "CPU ms", "load ms"]
    header += ["first ms", "peak MB", "least MB", "kB", "rel. error", "agrees %", "verdict"]
    rows = [
        [
            *_identity(row),
            *(say.milliseconds(row[f"wall_ms_{level}"]) for level in ("p50", "p90", "p99")),
            *(say.milliseconds(row[key]) for key in ("cpu_ms", "load_ms", "first_ms")),
            *(say.megabytes(row[key]) for key in ("peak_mb", "min_memory_mb")),
            common.kilobytes(row["size_bytes"]),
            say.small(row["parity_max_rel"]),
            common.percent(row["argmax_agreement"]),
            row["verdict"],
        ]
        for row in say.measured_rows(document)
    ]
    common.emit_table(header, rows, left=3)
    for device in document["devices"]:
        click.echo()
        _print_device(document, device)
    click.echo()
    for line in (
        "peak MB: VmHWM; least MB: smallest limit that works here; MB of 2^20 bytes",
        say.enforcement(document),
        say.model_check(document["model_check"]),
        *([say.NOISE] if any(row["verdict"] == "noisy" for row in document["rows"]) else []),
    ):
        click.echo(line)


def _print_device(document: dict[str, Any], device: dict[str, Any]) -> None:
    from ..bench import wording as say

    click.echo(f"{device['name']}: {say.device(device, document)}")
    if device["runtime"] == "none":
        return
    pairs = say.device_rows(document, device["name"])
    header = ["client", "graph", "variant", "batch", "fits", "peak MB", "least MB"]
    header += ["this host's p50 ms", "modelled ms (band)", "verdict"]
    rows = [
        [
            *_identity(row),
            say.yes(row["fits"]),
            say.megabytes(row["peak_mb"]),
            say.megabytes(row["min_memory_mb"]),
            say.milliseconds(row["wall_ms_p50"]),
            say.modelled(modelled),
            row["verdict"],
        ]
        for row, modelled in pairs
    ]
    common.emit_table(header, rows, left=3)
    for remark in say.remarks([row for pair in pairs for row in pair if row])[:_MOST_REMARKS]:
        click.echo(f"  {remark}")


def _identity(row: Mapping[str, Any]) -> list[str]:
    return [row["client"], row["model"], row["variant"], str(row["batch"])]

"""``fedvtc-edge devices``: the profiles, and where each number comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from . import _common as common

if TYPE_CHECKING:
    from fedvtc_edge.devices import DeviceProfile, Figure


@click.command()
@click.argument("name", required=False)
@common.json_option
def command(name: str | None, as_json: bool) -> None:
    """List the device profiles, or show one with its provenance.

    NAME is a shipped profile or the path of your own .toml file.
    """
    from fedvtc_edge.devices import DeviceProfile, profile_names

    if name is not None:
        profile = DeviceProfile.load(name)
        if as_json:
            common.emit_json({"schema": 1, **profile.model_dump(mode="json")})
        else:
            _print_one(profile)
        return
    profiles = [DeviceProfile.load(shipped) for shipped in profile_names()]
    if as_json:
        listed = [profile.model_dump(mode="json") for profile in profiles]
        common.emit_json({"schema": 1, "devices": listed})
    else:
        _print_all(profiles)


def _print_all(profiles: list[DeviceProfile]) -> None:
    rows = [
        (
            profile.name,
            profile.arch,
            profile.runtime,
            _number(profile.cores),
            _number(profile.memory_total_mb),
            _number(profile.memory_usable_mb),
            _number(profile.fp32_gflops),
            _number(profile.memory_gbps),
        )
        for profile in profiles
    ]
    header = ("device", "arch", "runtime", "cores", "MB", "usable MB", "GFLOP/s", "GB/s")
    common.emit_table(header, rows, left=3)
    click.echo()
    click.echo("~ is an assumption; fedvtc-edge devices NAME shows where each number comes from")


def _print_one(profile: DeviceProfile) -> None:
    click.echo(f"{profile.name}: {profile.title}")
    click.echo(f"arch {profile.arch}, runtime {profile.runtime}")
    if profile.note:
        click.echo(profile.note)
    click.echo()
    rows = [
        (key, f"{figure.value:g}", figure.kind, figure.source)
        for key, figure in profile.figures.items()
    ]
    common.emit_table(("figure", "value", "kind", "source"), rows, left=4)
    if profile.anchors:
        click.echo()
        timed = [
            (
                anchor.model,
                anchor.runtime,
                "-" if anchor.threads is None else str(anchor.threads),
                f"{anchor.ms:g}",
                anchor.kind,
                anchor.source,
            )
            for anchor in profile.anchors
        ]
        header = ("anchor", "runtime", "threads", "ms", "kind", "source")
        common.emit_table(header, timed, left=6)


def _number(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    return f"{'~' if figure.kind == 'assumed' else ''}{figure.value:g}"

"""``fedvtc-edge devices``: device profiles with the source of each number, and calibration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedvtc_edge.errors import ConfigError
from fedvtc_edge.storage.atomic import write_atomic

from . import _common as common

if TYPE_CHECKING:
    from fedvtc_edge.devices import DeviceProfile, Figure


class _Devices(click.Group):
    """A group whose commands are ``calibrate`` and, without a word for it, ``show``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take anything but a sub-command for the name of a profile."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["show", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Devices, subcommand_metavar="[NAME] | calibrate [OPTIONS]")
def command() -> None:
    """List the device profiles, show one, or measure this machine.

    Without anything: one line for each shipped profile. NAME is a shipped profile or
    the path of your own .toml file, shown with the source of every number; --json
    prints the same as JSON.
    """


@command.command(hidden=True)
@click.argument("name", required=False)
@common.json_option
def show(name: str | None, as_json: bool) -> None:
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


@command.command()
@click.option(
    "--out",
    metavar="FILE.toml",
    type=click.Path(path_type=Path),
    help="Write the profile here; without it, it is printed.",
)
@click.option("--name", default="this-machine", show_default=True, help="Name of the profile.")
@common.json_option
@common.quiet_option
def calibrate(out: Path | None, name: str, as_json: bool, quiet: bool) -> None:
    """Measure this machine in onnxruntime and write its profile, in about ten seconds.

    The network, availability, dropout and deadline are left out: add what you know.
    """
    from fedvtc_edge.devices.calibration import calibrate as measure

    if out is not None:
        _check_free(out)
    profile = measure(name, report=_silent if quiet else _report)
    if out is not None:
        _check_free(out)
        write_atomic(out, profile.to_toml().encode())
    if as_json:
        written = None if out is None else str(out)
        common.emit_json({"schema": 1, "file": written, **profile.model_dump(mode="json")})
    elif out is None:
        click.echo(profile.to_toml(), nl=False)
    else:
        _print_one(profile)
        click.echo()
        click.echo(f"written: {out}")
    if not quiet:
        _report("not measured: network, availability, dropout, deadline; see docs/devices.md")


def _report(text: str) -> None:
    click.echo(text, err=True)


def _silent(_: str) -> None:
    pass


def _check_free(out: Path) -> None:
    """Refuse what could not be read again or would be lost, before the time is spent.

    Raises:
        ConfigError: Another ending, a file that exists, a folder that does not.
    """
    if out.suffix != ".toml":
        raise ConfigError(f"--out {out}: expected a name ending in .toml", hint=f"{out}.toml")
    if os.path.lexists(out):
        raise ConfigError(
            f"{out} exists and is not overwritten", hint="remove it, or give another --out"
        )
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{out.parent} is no folder that can be written to", hint="make it, or give another"
        )


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

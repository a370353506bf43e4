"""``fedvtc-edge run``: one federation, new or resumed."""

from __future__ import annotations

import re
import shlex
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedvtc_edge import plugins

from . import _common as common

if TYPE_CHECKING:
    from fedvtc_edge.config import Config
    from fedvtc_edge.report.crowd import Crowd


@click.command()
@common.config_argument
@common.set_option
@common.out_option("Where the run goes [default: runs/DATA-METHOD-TIME].")
@click.option(
    "--resume",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Go on with a run that was cut off.",
)
@click.option(
    "--engine", type=click.Choice(["local", "flower"]), help="The same as --set engine.name=…"
)
@common.json_option
@common.quiet_option
def command(
    config_file: Path | None,
    overrides: tuple[str, ...],
    out: Path | None,
    resume: Path | None,
    engine: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train one federation of unequal clients.

    Without arguments: the built-in digits on six clients, done within two minutes.
    """
    if resume is not None and (config_file or overrides or out or engine):
        raise click.UsageError(
            "--resume takes its settings and its folder from the run: "
            "expected no CONFIG.toml, --set, --out or --engine"
        )
    from fedvtc_edge.config import load_config

    if engine is not None:
        overrides = (*overrides, f"engine.name={engine}")
    config = None if resume is not None else load_config(config_file, overrides=overrides)
    directory = resume or out or new_directory(config)

    try:
        with common.needing_extras(), common.reporting(quiet) as progress:
            from fedvtc_edge.privacy.spending import Spending
            from fedvtc_edge.workflows.run import resume as resume_run
            from fedvtc_edge.workflows.run import run

            if config is None:
                result = resume_run(directory, progress=progress)
            else:
                result = run(config, out=directory, progress=progress, spending=Spending())
    except KeyboardInterrupt:
        raise common.Interrupted(how_to_go_on("run", directory)) from None

    if as_json:
        common.emit_json(result.summary)
    else:
        print_summary(result.summary)
    if result.directory is not None:
        report = report_of(result.directory)
        if not as_json:
            click.echo(f"run: {result.directory}")
            click.echo(f"report: {report}")


def new_directory(config: Config | None) -> Path:
    """A folder for a run that was given none, named by what it is and when."""
    assert config is not None  # only a resumed run has none, and it has a directory
    # A data set may be a path: its last part is enough to recognise it by.
    data = re.sub(r"[^A-Za-z0-9._]+", "-", Path(config.data.name).stem).strip("-.") or "data"
    return Path("runs") / f"{data}-{config.method.name}-{time.strftime('%Y%m%d-%H%M%S')}"


def how_to_go_on(command: str, directory: Path, rest: str = "") -> str:
    """A hint after Ctrl-C, by what the run has written."""
    if not (directory / "config.toml").is_file():
        return "nothing was written yet: give the same command to start again"
    words = f"{command} --resume {shlex.quote(str(directory))}{plugins.options()}"
    return f"go on with: fedvtc-edge {words}{rest}"


def report_of(directory: Path) -> Path:
    """A run's report, drawn if it was not."""
    existing = directory / "report.html"
    if existing.is_file():
        return existing
    with common.needing_extras():
        from fedvtc_edge.report import render

        return render(directory)


_CLIENT_HEADER = (
    *("client", "architecture", "device", "samples", "classes", "local only %"),
    *("own model %", "unseen classes %", "combined %", "kB up"),
)


def print_summary(summary: dict[str, Any]) -> None:
    """A finished run in words; what clients do not tell is a dash."""
    from fedvtc_edge.report.crowd import crowd_of
    from fedvtc_edge.runs.records import LABELS, OPERATING_POINTS, Summary

    crowd = crowd_of(Summary.model_validate(summary), ())
    if crowd is None:
        common.emit_table(_CLIENT_HEADER, list(map(_client_row, summary["clients"])), left=3)
    else:
        _print_crowd(crowd, summary["clients"])
    click.echo()
    points = [
        (point, *(common.percent(summary[key]) for key in keys))
        for point, keys in OPERATING_POINTS.items()
        if point == "global" or any(summary[key] is not None for key in keys)
    ]
    common.emit_table(("mean accuracy %", *LABELS.values()), points)
    click.echo()
    click.echo(
        f"{summary['data']}, {summary['method']}, {summary['rounds']} rounds, "
        f"seed {summary['seed']}: {summary['seconds']:.1f} s, "
        f"{common.kilobytes(summary['upload_bytes_total'])} kB up"
    )
    for line in _clock(summary):
        click.echo(line)
    if summary.get("extractor_choice"):
        told = summary["extractor_choice"]
        each = ", ".join(f"{name} {common.percent(value)} %" for name, value in told.items())
        click.echo(
            f"extractor chosen on held-out training images: {max(told, key=told.get)} ({each})"
        )
    click.echo(f"privacy: {_privacy(summary)}")


def _client_row(client: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(client["id"]),
        client["architecture"],
        client["device"] or "-",
        common.known(client["samples"]),
        common.known(client["classes_present"]),
        common.percent(client["accuracy_local_only"]),
        common.percent(client["accuracy"]),
        common.percent(client["accuracy_absent_classes"]),
        common.percent(client["accuracy_calibrated"]),
        common.kilobytes(client["upload_bytes"]),
    )


def _print_crowd(crowd: Crowd, clients: list[dict[str, Any]]) -> None:
    """More clients than anybody reads: how they spread, and the ends of the ranking."""
    from fedvtc_edge.report.crowd import LEVELS

    ends = {0: "least", 50: "median", 100: "most"}
    header = ("figure", "clients", *(ends.get(level, f"{level} %") for level in LEVELS))
    # Thin spaces are for pages: not every terminal has them.
    rows = [
        (spread.name, str(spread.clients), *(one.replace("\u202f", "") for one in spread.levels))
        for spread in crowd.spreads
    ]
    common.emit_table(header, rows)
    known = {client["id"]: client for client in clients}
    for name, records in (("weakest", crowd.weakest), ("strongest", crowd.strongest)):
        if records:
            click.echo(f"\nthe {name}, by their own models; all are in summary.json and the report")
            ends_rows = [_client_row(known[record.id]) for record in records]
            common.emit_table(_CLIENT_HEADER, ends_rows, left=3)


def _clock(summary: dict[str, Any]) -> list[str]:
    """What the devices made of the run; nothing where the settings name none."""
    if summary["seconds_virtual"] is None:
        return []
    missed = Counter[str]()
    for client in summary["clients"]:
        missed.update(client["rounds_missed"] or {})
    told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(missed.items()))
    simulated = f"simulated time on the devices, modelled: {summary['seconds_virtual']:.1f} s"
    return [*summary["notes"], f"{simulated}; turns missed: {told or 'none'}"]


def _privacy(summary: dict[str, Any]) -> str:
    if summary["epsilon"] is None:
        return "none claimed (Not differentially private)"
    return (
        f"epsilon {summary['epsilon']:.3g} at delta {summary['delta']:.3g}, "
        f"per {summary['privacy_unit']}; it covers {summary['privacy_covers']} "
        f"({summary['privacy_mechanism']})"
    )

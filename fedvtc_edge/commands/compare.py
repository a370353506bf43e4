"""``fedvtc-edge compare``: methods on the same data, split and budget."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedvtc_edge import plugins

from . import _common as common

if TYPE_CHECKING:
    from fedvtc_edge.config import Config
    from fedvtc_edge.runs.comparisons import MethodRecord, TableRecord

PRESETS = Path(__file__).with_name("presets")
"""Folder of the settings that ``--preset`` names, to be read and copied."""


@click.command()
@common.config_argument
@click.option("--methods", metavar="A,B", help="Rows of the table [default: every method].")
@click.option("--seeds", metavar="0,1", help="Repetitions [default: 0,1,2].")
@click.option(
    "--preset",
    type=click.Choice(["quick", "full"]),
    help="Settings that come with the package: quick is for a CPU, full for a GPU.",
)
@click.option("--tune", is_flag=True, help="Choose each method's main number on validation data.")
@click.option("--ablations", is_flag=True, help="Rows for FedVTC without its parts, too.")
@click.option("--audit", is_flag=True, help="Audit one seed of each row.")
@common.set_option
@common.out_option("Folder of the results; the same command goes on there [default: nowhere].")
@click.option(
    "--resume",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Go on with a comparison that was cut off.",
)
@common.json_option
@common.quiet_option
def command(
    config_file: Path | None,
    methods: str | None,
    seeds: str | None,
    preset: str | None,
    tune: bool,
    ablations: bool,
    audit: bool,
    overrides: tuple[str, ...],
    out: Path | None,
    resume: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compare methods on the same data split and budget.

    Rows, seeds, splits and data sets may also stand in the table [compare] of CONFIG.toml.
    """
    asked = {"tune": tune, "ablations": ablations, "audit": audit}
    changes = {key: True for key, wanted in asked.items() if wanted}
    if resume is not None and (config_file or methods or seeds or preset or changes or overrides):
        raise click.UsageError(
            "--resume takes its settings from the comparison: expected no CONFIG.toml and no "
            "option that changes them"
        )
    if resume is not None and out is not None:
        raise click.UsageError("--resume DIR goes on in DIR: expected no --out")
    if preset is not None:
        if config_file is not None:
            raise click.UsageError(
                f"--preset {preset} is a file of its own: expected no CONFIG.toml beside it"
            )
        config_file = PRESETS / f"{preset}.toml"
    wanted = None if methods is None else _distinct("--methods", methods)
    numbers = None if seeds is None else [_seed(word) for word in _distinct("--seeds", seeds)]
    folder = resume or out
    config = None if resume is not None else _load(config_file, overrides, changes)
    try:
        with common.needing_extras(), common.reporting(quiet) as progress:
            from fedvtc_edge.workflows.compare import compare

            if config is None:
                config = _settings_of(resume)
            document = compare(config, wanted, numbers, out=folder, progress=progress)
    except KeyboardInterrupt:
        raise common.Interrupted(_how_to_go_on(folder)) from None

    if as_json:
        common.emit_json(document)
    else:
        _print_comparison(document)
    if folder is not None:
        with common.needing_extras():
            from fedvtc_edge.report import render_comparison

            report = render_comparison(folder)
        if not as_json:
            click.echo(f"report: {report}")


def _load(file: Path | None, overrides: tuple[str, ...], changes: dict[str, bool]) -> Config:
    from fedvtc_edge.config import load_config

    config = load_config(file, overrides=overrides)
    return config.replace(compare=changes) if changes else config


def _settings_of(folder: Path | None) -> Config:
    from fedvtc_edge.workflows.compare import settings_of

    assert folder is not None  # --resume was given
    return settings_of(folder)


def _how_to_go_on(folder: Path | None) -> str:
    """A hint after Ctrl-C, by what has been kept."""
    if folder is None:
        return "start the comparison again; with --out DIR what is done is kept"
    if not (folder / "comparison.toml").is_file():
        return "nothing was written yet: give the same command to start again"
    words = f"--resume {shlex.quote(str(folder))}{plugins.options()}"
    return f"what is done is kept; go on with: fedvtc-edge compare {words}"


def _distinct(option: str, text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise click.UsageError(f"{option} {text!r}: expected names between commas")
    if len(set(words)) != len(words):
        raise click.UsageError(f"{option} {text!r}: expected each only once")
    return words


def _seed(word: str) -> int:
    # isascii: int() would also read digits of other scripts; 2^63 is the bound of `seed`.
    if not (word.isascii() and word.isdigit() and len(word) < 20 and int(word) < 2**63):
        raise click.UsageError(f"--seeds: {word!r} is not a whole number from 0 to 2^63 - 1")
    return int(word)


def _print_comparison(document: dict[str, Any]) -> None:
    """Every table in two parts, narrow enough for a terminal: accuracies, and costs."""
    from fedvtc_edge.runs.comparisons import Comparison

    comparison = Comparison.model_validate(document)
    for table in comparison.each:
        rows = {name: row for name, row in table.methods.items() if row.refused is None}
        common.emit_table(_ACCURACIES, [_accuracies(name, row) for name, row in rows.items()])
        click.echo()
        common.emit_table(_COSTS, [_costs(name, row) for name, row in rows.items()])
        for name, row in table.methods.items():
            if row.refused is not None:
                click.echo(f"{name} cannot run here: {row.refused}")
        click.echo(_title(table))
        click.echo()
    for label, reason in comparison.left_out.items():
        click.echo(f"{label} was left out: {reason}")


def _title(table: TableRecord) -> str:
    alpha = "" if table.alpha is None else f", alpha {table.alpha:g}"
    samples = "" if table.samples is None else f", {table.samples} training images"
    return f"{table.data}{alpha}{samples}, seeds {', '.join(map(str, table.seeds))}"


_ACCURACIES = (
    *("method", "own model %", "combined", "statistics"),
    *("own distr.", "home", "unseen", "worst"),
)
_COSTS = ("method", "kB up per client", "seconds", "peak MB", "rounds", "knob", "leakage")


def _accuracies(name: str, row: MethodRecord) -> tuple[str, ...]:
    return (
        name,
        _mean(row.accuracy_mean, row.accuracy_std),
        common.percent(row.accuracy_calibrated),
        common.percent(row.accuracy_control),
        common.percent(row.accuracy_own_distribution),
        common.percent(row.accuracy_home),
        common.percent(row.accuracy_absent_classes),
        common.percent(row.accuracy_worst),
    )


def _costs(name: str, row: MethodRecord) -> tuple[str, ...]:
    return (
        name,
        common.kilobytes(row.upload_bytes_per_client),
        "-" if row.seconds is None else f"{row.seconds:.1f}",
        "-" if row.peak_memory_mb is None else f"{row.peak_memory_mb:.0f}",
        common.known(row.rounds),
        "-" if row.knob is None else f"{row.knob:g}",
        row.leakage or "not audited",
    )


def _mean(mean: float | None, std: float | None) -> str:
    return common.percent(mean) if std is None else f"{common.percent(mean)} ± {100 * std:.1f}"

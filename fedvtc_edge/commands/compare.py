"""``fedvtc-edge compare``: methods on the same data, split and budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import _common as common

DEFAULT_METHODS = "local,local-matched,fedproto,fedvtc,centralised"


@click.command()
@common.config_argument
@click.option(
    "--methods", default=DEFAULT_METHODS, show_default=True, metavar="A,B", help="What to run."
)
@click.option("--seeds", default="0,1,2", show_default=True, metavar="0,1", help="Repetitions.")
@common.set_option
@common.out_option("Where comparison.json and the plot go [default: nowhere].")
@common.json_option
@common.quiet_option
def command(
    config_file: Path | None,
    methods: str,
    seeds: str,
    overrides: tuple[str, ...],
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compare methods on the same data split and budget."""
    wanted = _distinct("--methods", methods)
    numbers = [_seed(word) for word in _distinct("--seeds", seeds)]
    from fedvtc_edge.config import load_config

    config = load_config(config_file, overrides=overrides)
    try:
        with common.needing_extras(), common.reporting(quiet) as progress:
            from fedvtc_edge.workflows.compare import compare

            document = compare(config, wanted, numbers, out=out, progress=progress)
    except KeyboardInterrupt:
        raise common.Interrupted(
            "start the comparison again; fewer --methods or --seeds make it shorter"
        ) from None

    if as_json:
        common.emit_json(document)
    else:
        _print_comparison(document)
    if out is not None:
        with common.needing_extras():
            from fedvtc_edge.report import render_comparison

            report = render_comparison(out)
        if not as_json:
            click.echo(f"report: {report}")


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
    header = ("method", "mean ± std %", "worst %", "unseen classes %", "combined %")
    home = ("home: own model %", "combined %", "statistics only %")
    rows = [
        (
            name,
            _mean(entry["accuracy_mean"], entry["accuracy_std"]),
            common.percent(entry["accuracy_worst"]),
            common.percent(entry["accuracy_absent_classes"]),
            common.percent(entry["accuracy_calibrated"]),
            common.percent(entry["accuracy_control"]),
            common.percent(entry["accuracy_home"]),
            common.percent(entry["accuracy_home_calibrated"]),
            common.percent(entry["accuracy_home_control"]),
            common.kilobytes(entry["upload_bytes_total"]),
            "-" if entry["seconds"] is None else f"{entry['seconds']:.1f}",
        )
        for name, entry in document["methods"].items()
    ]
    common.emit_table((*header, "statistics only %", *home, "kB up", "seconds"), rows)
    seeds = ", ".join(map(str, document["seeds"]))
    click.echo()
    click.echo(f"{document['data']}, alpha {document['alpha']}, seeds {seeds}")


def _mean(mean: float | None, std: float | None) -> str:
    return common.percent(mean) if std is None else f"{common.percent(mean)} ± {100 * std:.1f}"

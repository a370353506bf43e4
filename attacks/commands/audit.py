"""``fedvtc-edge audit``: leakage of a run, and an attempt to refute its privacy claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from fedvtc_edge.commands import _common as common

_HEADLINES = ("identification", "tpr_at_1_percent_fpr", "recovered_exactly")


def _names(_: click.Context, __: click.Parameter, text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--attacks", callback=_names, metavar="A,B", help="Only these; all if not given.")
@click.option("--view", "views", callback=_names, metavar="A,B", help="Only these adversaries.")
@click.option("--trials", type=click.IntRange(20, 100_000), help="Per group; 300, or 60 if quick.")
@click.option("--quick", is_flag=True, help="Fewer trials and settings.")
@click.option(
    "--replay", is_flag=True, help="Play the release path on neighbouring data, noise frozen."
)
@click.option(
    "--claim",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="TOML with what is claimed; the run's own claim if not given.",
)
@click.option(
    "--config",
    metavar="CONFIG.toml",
    type=click.Path(path_type=Path),
    help="Settings of the run that a statistics file is of.",
)
@click.option(
    "--run",
    "exported_from",
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="Of a bundle: the run that it was exported from, whose images are looked for in it.",
)
@click.option(
    "--data",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Of a bundle: the client's own images, where the run is not at hand.",
)
@click.option("--seed", type=click.IntRange(0), default=0, help="Of all but privacy noise.")
@common.out_option("Folder of the report; RUN/audit if not given, or beside a bundle or file.")
@common.json_option
@common.quiet_option
@click.pass_context
def command(
    context: click.Context,
    run: Path,
    attacks: list[str] | None,
    views: list[str] | None,
    trials: int | None,
    quick: bool,
    replay: bool,
    claim: Path | None,
    config: Path | None,
    exported_from: Path | None,
    data: Path | None,
    seed: int,
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Attack RUN as its adversaries could: a run, a bundle, or published statistics.

    Exit codes: 0 pass, 1 leak, 3 inconclusive, 4 claim invalid.
    """
    with common.needing_extras(), common.reporting(quiet) as progress:
        from fedvtc_edge.config import load_config

        from ..auditing import audit

        result = audit(
            run,
            attacks=attacks,
            views=views,
            trials=trials,
            quick=quick,
            replay=replay,
            claim=claim,
            config=None if config is None else load_config(config),
            exported_from=exported_from,
            data=data,
            seed=seed,
            out=out or _beside(run),
            progress=progress,
        )
    document = result.document
    if as_json:
        common.emit_json(document)
    else:
        _print(document, result.directory)
    context.exit(document["exit_code"])


def _beside(subject: Path) -> Path:
    """Folder in a run; beside a bundle, to which nothing may be added, and beside a file."""
    if (subject / "config.toml").is_file():
        return subject / "audit"
    return subject.parent / f"{subject.stem}-audit"


def _print(document: Mapping[str, Any], directory: Path | None) -> None:
    rows = [_row(finding) for finding in document["findings"] if finding["metric"] in _HEADLINES]
    if rows:
        header = ["attack", "by", "records", "measure", "%", "interval", "null", "class mean"]
        common.emit_table([*header, "allowed", ""], rows, left=4)
        click.echo()
    for advice in document["recommendations"]:
        click.echo(f"set {advice['setting']}: {advice['why']}")
    click.echo()
    click.echo(f"verdict: {document['verdict']}")
    _list(document["reasons"])
    subject = document["subject"] or {}
    if (subject.get("attacked") or 0) < (subject.get("clients") or 0):
        click.echo(f"{subject['attacked']} of {subject['clients']} clients were drawn and attacked")
    for one in document["beyond"]:
        click.echo(f"not covered by the claim, {one['view']}: {one['verdict']}")
        _list(one["reasons"], most=1)
    if directory is not None:
        click.echo(f"report: {directory / 'report.html'}")


def _list(reasons: Sequence[str], most: int = 5) -> None:
    for reason in reasons[:most]:
        click.echo(f"  {reason}")
    if len(reasons) > most:
        click.echo(f"  and {len(reasons) - most} more, see the report")


def _row(finding: Mapping[str, Any]) -> list[str]:
    said = {True: "pass", False: "LEAK", None: ""}[finding["passed"]]
    if finding["required"] and not said:
        said = "undecided"
    interval = ""
    if finding["low"] is not None and finding["high"] is not None:
        interval = f"{common.percent(finding['low'])}–{common.percent(finding['high'])}"
    return [
        finding["attack"],
        finding["view"],
        finding["group"],
        finding["metric"].replace("_", " "),
        common.percent(finding["value"]),
        interval,
        common.percent(finding["null"]),
        common.percent(finding["baseline"]),
        common.percent(finding["threshold"]),
        said,
    ]

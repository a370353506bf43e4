"""``fedvtc-edge export``: one bundle per client."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedvtc_edge.commands import _common as common

if TYPE_CHECKING:
    from ..exporting import Held


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="New or empty folder; an export that was cut off is completed.",
)
@click.option("--client", "clients", multiple=True, metavar="ID", help="Only this one; repeatable.")
@click.option(
    "--extractor",
    type=click.Choice(["embedded", "by-reference"]),
    default="embedded",
    show_default=True,
    help="by-reference: its graph is one file for all bundles, which name it by its hash.",
)
@click.option("--int8", is_flag=True, help="Add int8 variants, calibrated with synthesised images.")
@click.option(
    "--with-prior",
    is_flag=True,
    help="Add how often the client has each class, which is personal: for classify --prior own.",
)
@common.sign_option
@common.json_option
@common.quiet_option
def command(
    run: Path,
    out: Path,
    clients: tuple[str, ...],
    extractor: Held,
    int8: bool,
    with_prior: bool,
    sign: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write one bundle per client of RUN: classifier and synthesiser as ONNX.

    RUN is a run's folder, or the folder in which a client joined one (`join --home`):
    networks of a served run stay with its clients.

    A bundle is written only if onnxruntime computes what torch computes.
    """
    key = common.signing_key(sign)
    try:
        with common.needing_extras(), common.reporting(quiet) as progress:
            from ..exporting import export

            document = export(
                run,
                out,
                clients=clients,
                int8=int8,
                with_prior=with_prior,
                extractor=extractor,
                signing_key=key,
                progress=progress,
            )
    except KeyboardInterrupt:
        raise common.Interrupted(
            "finished bundles are whole; the same command makes the others"
        ) from None
    _warn(document["privacy"])
    if as_json:
        common.emit_json(document)
    else:
        _print(document)


def _warn(privacy: dict[str, Any]) -> None:
    """Say once, on stderr, what the run's claim leaves out of the bundles."""
    if privacy["epsilon"] is None or privacy["covers_models"]:
        return
    click.echo(
        f"fedvtc-edge: warning: epsilon {privacy['epsilon']:g} covers {privacy['covers']}; "
        "classifier and decoder were trained without noise: treat bundles as the clients' data",
        err=True,
    )


def _print(document: dict[str, Any]) -> None:
    bundles = document["bundles"]
    header = ["client", "architecture", "run %", "ONNX %", "combined %", "rel. error", "pixels"]
    header += ["classifier kB", "synthesiser kB"]
    common.emit_table(header, [_row(entry) for entry in bundles], left=2)
    if any(entry["int8"] for entry in bundles):
        click.echo()
        header = ["client", "fp32 %", "int8 %", "agrees %", "fp32 kB", "int8 kB"]
        header += ["synthesiser fp32 kB", "int8 kB", "PSNR dB"]
        common.emit_table(header, [_int8_row(entry) for entry in bundles])
    click.echo()
    signed = document["signed_by"]
    on = document["evaluated_on"]
    measured = f"accuracy on the run's {on} images" if on else "no test set here, so no accuracy"
    click.echo(f"{measured}; kB of 1,000 bytes")
    click.echo(f"signed by {signed}" if signed else "NOT signed: --sign KEY signs the manifests")
    click.echo(f"bundles: {document['out']}")
    if document["extractor"]:
        click.echo(f"extractor, for --extractor on the device: {document['extractor']}")


def _row(entry: dict[str, Any]) -> list[str]:
    accuracy, parity, size = entry["accuracy"], entry["parity"], entry["size_bytes"]
    errors = [report["max_relative_error"] for report in parity["classifier"].values()]
    pixels = parity.get("synthesizer")
    return [
        entry["client"],
        entry["architecture"],
        common.percent(accuracy["classifier_run"]),
        common.percent(accuracy["classifier"]),
        common.percent(accuracy.get("calibrated")),
        f"{max(errors):.1e}",
        "-" if pixels is None else _pixels(pixels),
        common.kilobytes(size["classifier"]),
        common.kilobytes(size.get("synthesizer")),
    ]


def _int8_row(entry: dict[str, Any]) -> list[str]:
    accuracy, size, int8 = entry["accuracy"], entry["size_bytes"], entry["int8"]
    psnr = int8["synthesizer"]["psnr_db"]
    return [
        entry["client"],
        common.percent(accuracy["classifier"]),
        common.percent(accuracy["classifier_int8"]),
        common.percent(int8["classifier"]["agreement"]),
        common.kilobytes(size["classifier"]),
        common.kilobytes(size["classifier.int8"]),
        common.kilobytes(size["synthesizer"]),
        common.kilobytes(size["synthesizer.int8"]),
        "equal" if psnr is None else f"{psnr:.1f}",
    ]


def _pixels(report: dict[str, int]) -> str:
    ties = report["rounding_ties"]
    return "equal" if not ties else f"equal but {ties} ties"

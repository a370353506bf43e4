"""``fedvtc-edge classify``: the classes of images, on a device without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedvtc_edge.commands import _common as common

if TYPE_CHECKING:
    from ..bundle import Choice, Prior


@click.command()
@common.bundle_argument
@click.argument(
    "images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "--top", type=click.IntRange(1), default=3, show_default=True, help="Classes to print."
)
@click.option(
    "--calibrated",
    is_flag=True,
    help="The combined prediction: own model and published statistics; more accurate.",
)
@click.option(
    "--prior",
    type=click.Choice(["uniform", "own"]),
    default="uniform",
    show_default=True,
    help="own: classes come as often as in the client's data; needs export --with-prior.",
)
@common.variant_option
@common.extractor_option
@common.key_option
@common.json_option
def command(
    bundle: Path,
    images: tuple[Path, ...],
    top: int,
    calibrated: bool,
    prior: Prior,
    variant: Choice,
    extractor: Path | None,
    key: Path | None,
    as_json: bool,
) -> None:
    """Classify image files with BUNDLE, resized and scaled as in training."""
    import numpy as np

    from .. import Bundle
    from ..codes import log_softmax
    from ..pictures import read

    opened = Bundle.open(bundle, key, variant=variant, extractor=extractor)
    results: list[dict[str, Any]] = []
    for path in images:  # one at a time: a thousand photographs must not lie in memory
        pixels = read(path, opened.manifest.image)[None]
        scores = opened.classify(pixels, calibrated=calibrated, prior=prior)
        shares = np.exp(log_softmax(scores.astype(np.float64)))[0]
        best = np.argsort(-shares, kind="stable")[:top]
        results.append(
            {
                "image": str(path),
                "top": [
                    {
                        "label": int(label),
                        "class": opened.classes[label],
                        "probability": float(shares[label]),
                    }
                    for label in best
                ],
            }
        )
    if as_json:
        common.emit_json(
            {
                "schema": 1,
                "variant": opened.classifier_variant,
                "calibrated": calibrated,
                "prior": prior,
                "signed_by": opened.signer,
                "results": results,
            }
        )
        return
    rows = [
        (
            result["image"],
            *(f"{entry['class']} {100 * entry['probability']:.1f} %" for entry in result["top"]),
        )
        for result in results
    ]
    header = ("image", *(f"top {rank}" for rank in range(1, len(rows[0]))))
    common.emit_table(header, rows)

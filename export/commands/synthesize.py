"""``fedvtc-edge synthesize``: images from statistics, on a device without torch."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedvtc_edge.commands import _common as common
from fedvtc_edge.errors import BundleError

if TYPE_CHECKING:
    from ..bundle import Bundle, Choice

MAX_IMAGES = 100_000


@click.command()
@common.bundle_argument
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="N",
    help="Class to synthesise, by number or name; repeatable [default: every known class].",
)
@click.option(
    "--count", type=click.IntRange(1, MAX_IMAGES), default=8, show_default=True, help="Per class."
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option(
    "--out",
    required=True,
    metavar="FILE.png|.npz",
    type=click.Path(path_type=Path),
    help="A picture with the labels, or an archive of images and labels.",
)
@common.variant_option
@common.key_option
@common.json_option
def command(
    bundle: Path,
    labels: tuple[str, ...],
    count: int,
    seed: int,
    out: Path,
    variant: Choice,
    key: Path | None,
    as_json: bool,
) -> None:
    """Synthesise images from the statistics in BUNDLE."""
    suffix = out.suffix.lower()
    if suffix not in (".png", ".npz"):
        raise click.UsageError(f"--out {out}: expected a name that ends in .png or .npz")
    if not out.parent.is_dir():
        raise BundleError(f"--out {out}: no such folder", hint=f"make it: mkdir -p {out.parent}")
    if out.is_dir():
        raise BundleError(f"--out {out}: a folder", hint="choose another name")
    import numpy as np

    from fedvtc_edge.storage.atomic import write_atomic

    from .. import Bundle

    opened = Bundle.open(bundle, key, variant=variant)
    wanted = [_class(opened, label) for label in labels] or _known(opened)
    if count * len(wanted) > MAX_IMAGES:
        raise BundleError(
            f"{count * len(wanted)} images, expected at most {MAX_IMAGES}", hint="lower --count"
        )
    numbers = np.repeat(np.array(wanted, np.int64), count)
    images = opened.synthesize(numbers, seed)
    if suffix == ".png":
        from ..pictures import grid

        data = grid(images, [opened.classes[label] for label in wanted])
    else:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, images=images, labels=numbers)
        data = buffer.getvalue()
    write_atomic(out, data)
    if as_json:
        common.emit_json(
            {
                "schema": 1,
                "out": str(out),
                "images": len(images),
                "labels": wanted,
                "seed": seed,
                "signed_by": opened.signer,
            }
        )
    else:
        names = ", ".join(opened.classes[label] for label in wanted)
        click.echo(f"{len(images)} images of {names}, seed {seed}: {out}")


def _class(bundle: Bundle, text: str) -> int:
    """A class's number from its number or its name; numbers win."""
    if text.isascii() and text.removeprefix("-").isdigit() and len(text) < 10:
        return int(text)  # Bundle says which numbers there are
    if text in bundle.classes:
        return bundle.classes.index(text)
    import difflib

    near = difflib.get_close_matches(text, bundle.classes, n=1)
    hint = f"did you mean {near[0]}?" if near else f"classes: {', '.join(bundle.classes[:20])}"
    raise BundleError(f"--label {text!r} is no class of this bundle", hint=hint)


def _known(bundle: Bundle) -> list[int]:
    return [label for label, known in enumerate(bundle.codes.known) if known]

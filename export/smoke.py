"""``python -m fedvtc_edge.export.smoke BUNDLE``: use all of a bundle, as a device would.

Run by the exporter in a process of its own, before a bundle gets its name.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from fedvtc_edge.errors import ParityError

from .bundle import Bundle, Choice


def use(path: Path) -> None:
    """Classify and paint with every variant; raises where something does not work."""
    first = Bundle.open(path)
    form = first.manifest.image
    shape = (2, form.size, form.size, form.channels)
    images = np.arange(np.prod(shape)).astype(np.uint8).reshape(shape)
    variants: list[Choice] = ["fp32", "int8"]
    for variant in variants[: len(first.manifest.graphs["classifier"].variants)]:
        bundle = Bundle.open(path, variant=variant)
        _must(np.isfinite(bundle.classify(images)).all(), f"{variant}: scores are not finite")
        if "anchor" in bundle.manifest.graphs:
            scores = bundle.classify(images, calibrated=True)
            _must(np.isfinite(scores).all(), f"{variant}: calibrated scores are not finite")
        if "synthesizer" in bundle.manifest.graphs:
            labels = np.flatnonzero(bundle.codes.known)
            painted = bundle.synthesize(labels, 0)
            _must(painted.shape == (len(labels), *shape[1:]), f"{variant}: {painted.shape} painted")
    heavy = {"torch", "onnx"} & set(sys.modules)
    _must(not heavy, f"{', '.join(sorted(heavy))} imported")


def _must(holds: bool | np.bool_, problem: str) -> None:
    if not holds:  # not assert: PYTHONOPTIMIZE would take the gate away
        raise ParityError(problem, hint="report this")


if __name__ == "__main__":
    use(Path(sys.argv[1]))

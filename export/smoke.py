"""``python -m fedvtc_edge.export.smoke BUNDLE``: use all of a bundle, as a device would.

Run by the exporter in a process of its own, before a bundle gets its name.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

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
        assert np.isfinite(bundle.classify(images)).all()
        if "anchor" in bundle.manifest.graphs:
            assert np.isfinite(bundle.classify(images, calibrated=True)).all()
        if "synthesizer" in bundle.manifest.graphs:
            labels = np.flatnonzero(bundle.codes.known)
            assert len(bundle.synthesize(labels, 0)) == len(labels)
    heavy = {"torch", "onnx"} & set(sys.modules)
    assert not heavy, f"{heavy} were imported"


if __name__ == "__main__":
    use(Path(sys.argv[1]))

"""A manifest's keys and texts: those that export writes, and no other.

Whoever writes a manifest can put into it what he likes, for readers leave unknown keys alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from fedvtc_edge.documents import parse_json
from fedvtc_edge.export.exporting import TOOLS
from fedvtc_edge.export.manifest import KIND, Manifest
from fedvtc_edge.models.registry import ON_EXTRACTOR
from fedvtc_edge.plugins import ARCHITECTURES, METHODS
from fedvtc_edge.privacy.claim import NEIGHBOURS, UNITS
from fedvtc_edge.privacy.mechanism import coverages

from .reading import MANIFEST
from .reference import Reference
from .structure import Difference

_LATER = {"privacy.relation", "privacy.covers", "privacy.covers_models"}
"""Keys that bundles of older versions lack."""


def strange_in(data: bytes, manifest: Manifest, reference: Reference) -> Iterator[Difference]:
    """Differences of a manifest from what export writes.

    Args:
        data: Its bytes, as they were read.
        manifest: What they say.
    """
    if manifest.to_bytes() != data:
        yield Difference(MANIFEST, "", "not the bytes that its content is written as")
    document = parse_json(data)
    if MANIFEST in reference.files:
        yield from _compared(document, parse_json(reference.files[MANIFEST]), manifest)
        return
    patterns = [(re.compile(where), re.compile(text)) for where, text in _written().items()]
    for where, value in _leaves(document, ""):
        texts = [text for pattern, text in patterns if pattern.fullmatch(where)]
        if not texts:
            yield Difference(MANIFEST, where, "a key that export does not write")
        elif isinstance(value, str) and not any(text.fullmatch(value) for text in texts):
            yield Difference(MANIFEST, where, f"a text that export does not write: {value!r:.60}")
        elif isinstance(value, str) and where in ("extractor.licence", "extractor.origin"):
            what = "a text about the extractor, which the run alone knows"
            yield Difference(MANIFEST, where, what, kind="unknown")


def _written() -> dict[str, str]:
    """Keys of all values that export writes, and the texts that they may be; as patterns."""
    graph, port = r"graphs\.(classifier|synthesizer|anchor)", r"\.(inputs|outputs)\.[a-z]+\."
    file = r"(classifier|synthesizer|anchor)(\.int8)?\.onnx(\.data)?"
    compared = r"parity\.(classifier|anchor)\.(random|evaluation|painted)\."
    pixels = "samples|pixels|equal_pixels|rounding_ties"
    figures = "calibration_images|agreement_images|agreement|psnr_db|largest_difference"
    numbers = "(?!)"
    names = {*ARCHITECTURES.names(), *ON_EXTRACTOR}
    return {
        "schema|revision|latent|anchor|extractor|noise": numbers,
        "source|accuracy|parity|int8": numbers,  # empty ones
        "kind": KIND,
        "client|classes\\.\\d+": ".*",  # compared with the data
        "architecture": _one_of(names),
        "device": "[a-z0-9][a-z0-9-]{0,62}",
        "run|source\\.(classifier|decoder|statistics)\\.safetensors": "[0-9a-f]{64}",
        "method": _one_of(METHODS.names()),
        "share": "anchored|features|features[+]decoder|nothing|data",
        r"extractor\.name": "[A-Za-z0-9_.:@-]{1,80}",
        r"extractor\.(licence|origin)": ".{0,500}",
        r"extractor\.(sha256|file|file\.sha256|file\.size)": "[0-9a-f]{64}",
        # Held by the types of the manifest, which are of one value each.
        r"image\.(size|channels|colour|resize|dtype|layout|scale)": ".*",
        r"noise\.(algorithm|golden\.(seed|count|sha256))": ".*",
        rf"files\.({file}|statistics\.safetensors)\.(sha256|size)": "[0-9a-f]{64}",
        rf"{graph}\.variants\.(fp32|int8)": file,
        rf"{graph}\.(opset|ir)": numbers,
        rf"{graph}{port}(dtype|range|shape\.\d+)": ".*",
        r"privacy\.(epsilon|delta|covers_models)": numbers,
        r"privacy\.mode": "none|anchored|example|client",
        r"privacy\.unit": _one_of(UNITS.values()),
        r"privacy\.relation": _one_of(NEIGHBOURS),
        r"privacy\.covers": "|".join(coverages()),
        r"prior\.\d+": numbers,
        r"accuracy\.(images|(classifier|calibrated)(_home)?(_run)?|classifier_int8)": numbers,
        rf"{compared}(samples|max_relative_error|argmax_agreement|ties)": numbers,
        rf"parity\.synthesizer\.({pixels})": numbers,
        rf"int8\.(classifier|synthesizer)\.({figures})": numbers,
        rf"tools\.(fedvtc-edge|{'|'.join(TOOLS)})": "[0-9A-Za-z.+!-]{1,40}",
    }


def _one_of(texts: Any) -> str:
    return "|".join(re.escape(text) for text in texts)


def _compared(found: Any, expected: Any, manifest: Manifest) -> Iterator[Difference]:
    """Differences from the manifest that export writes of the run, key by key."""
    own, other = dict(_leaves(found, "")), dict(_leaves(expected, ""))
    for where in sorted({*own, *other}):
        if where in own and where in other and own[where] == other[where]:
            continue
        first = where.partition(".")[0]
        if first == "tools" or (first == "revision" and manifest.revision):
            continue  # a refresh raises the revision
        if first == "files" and where in own and where in other:
            continue  # hashes of files that are compared themselves
        if first in ("parity", "accuracy") and _near(own.get(where), other.get(where)):
            continue  # another processor rounds elsewhere
        if where not in other:
            yield Difference(MANIFEST, where, "a key that export does not write")
        elif where not in own and where in _LATER:
            continue
        elif where not in own:
            yield Difference(MANIFEST, where, "a key that export writes is missing")
        else:
            what = f"{own[where]!r:.60}, the run says {other[where]!r:.60}"
            yield Difference(MANIFEST, where, what)


def _leaves(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Values that are no objects or lists, or empty ones, by their keys joined with dots."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list) and value:
        for place, inner in enumerate(value):
            yield from _leaves(inner, f"{where}.{place}")
    else:
        yield where, value


def _near(found: Any, expected: Any) -> bool:
    numbers = all(isinstance(one, int | float) for one in (found, expected))
    return numbers and abs(found - expected) <= 0.01 + 0.01 * abs(expected)

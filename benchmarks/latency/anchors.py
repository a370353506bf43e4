"""How far the shipped profiles are off, on what others measured on the devices.

``python -m fedvtc_edge.benchmarks.latency.anchors`` models two networks at 224 × 224
pixels with each profile's figures and holds the times against the profile's anchors.
The networks are counted from their published layers, BatchNorm folded into the
convolutions and activations fused, as every runtime does.

Where a profile's efficiency was taken from an anchor, that anchor proves nothing; the
efficiency's own source says so. The anchors were timed in ncnn, which is not the
runtime that the model describes: it computes 3 × 3 convolutions by Winograd's algorithm,
so that ResNet-18 takes less time than its FLOP need at a core's peak.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

from fedvtc_edge.devices import DeviceProfile, profile_names

from .costs import NodeCost
from .model import BAND, LatencyModel

_FLOAT = 4


def networks() -> dict[str, tuple[NodeCost, ...]]:
    """The anchors' networks by the names that profiles give them, one image each."""
    return {"mobilenet_v2_224": tuple(_mobilenet_v2()), "resnet18_224": tuple(_resnet18())}


def _mobilenet_v2() -> Iterator[NodeCost]:
    """Sandler et al. 2018, table 2: 3.5 million weights, 0.3 billion multiply-adds."""
    yield _conv(3, 32, 3, 112, 2)
    side, wide = 112, 32
    blocks = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
    for factor, out, count, first in (*blocks, (6, 160, 3, 2), (6, 320, 1, 1)):
        for number in range(count):
            stride = first if number == 0 else 1
            inner = factor * wide
            if factor > 1:
                yield _conv(wide, inner, 1, side)
            side //= stride
            yield _conv(inner, inner, 3, side, stride, groups=inner)
            yield _conv(inner, out, 1, side)
            if number:
                yield _add(out, side)
            wide = out
    yield _conv(wide, 1280, 1, side)
    yield NodeCost("GlobalAveragePool", 1280.0 * side**2, _FLOAT * 1280.0 * (side**2 + 1))
    yield _product(1280, 1000)


def _resnet18() -> Iterator[NodeCost]:
    """He et al. 2016, table 1: 11.7 million weights, 1.8 billion multiply-adds."""
    yield _conv(3, 64, 7, 112, 2)
    yield NodeCost("MaxPool", 9.0 * 64 * 56**2, _FLOAT * 64.0 * (112**2 + 56**2))
    side, wide = 56, 64
    for out in (64, 128, 256, 512):
        for stride in (2 if out > wide else 1, 1):
            side //= stride
            yield _conv(wide, out, 3, side, stride)
            yield _conv(out, out, 3, side)
            if stride > 1:
                yield _conv(wide, out, 1, side, stride)
            yield _add(out, side)
            wide = out
    yield NodeCost("GlobalAveragePool", 512.0 * side**2, _FLOAT * 512.0 * (side**2 + 1))
    yield _product(512, 1000)


def _conv(
    narrow: int, wide: int, kernel: int, side: int, stride: int = 1, *, groups: int = 1
) -> NodeCost:
    """Of ``side`` × ``side`` pixels that come out."""
    weights = wide * narrow // groups * kernel**2
    values = narrow * (side * stride) ** 2 + weights + wide * side**2
    return NodeCost("Conv", 2.0 * weights * side**2, float(_FLOAT * values))


def _add(wide: int, side: int) -> NodeCost:
    return NodeCost("Add", float(wide * side**2), float(3 * _FLOAT * wide * side**2))


def _product(narrow: int, wide: int) -> NodeCost:
    return NodeCost("Gemm", 2.0 * narrow * wide, float(_FLOAT * (narrow * wide + narrow + wide)))


def compare() -> list[dict[str, Any]]:
    """Each anchor with a number of threads, and what its profile predicts."""
    rows, counted = [], networks()
    for name in profile_names():
        profile = DeviceProfile.load(name)
        for anchor in profile.anchors:
            if anchor.threads is None or anchor.model not in counted:
                continue
            threads = min(anchor.threads, int(profile.cores.value))  # more gain nothing
            modelled = LatencyModel.of(profile, threads).milliseconds(counted[anchor.model])
            ratio = modelled / anchor.ms
            rows.append(
                {
                    "device": name,
                    "model": anchor.model,
                    "threads": anchor.threads,
                    "anchor_ms": anchor.ms,
                    "modelled_ms": modelled,
                    "ratio": ratio,
                    "within": 1 / BAND <= ratio <= BAND,
                }
            )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m fedvtc_edge.benchmarks.latency.anchors``."""
    parser = argparse.ArgumentParser(
        prog="fedvtc_edge.benchmarks.latency.anchors", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_args(arguments)
    rows = compare()
    within = sum(row["within"] for row in rows)
    if given.json:
        print(json.dumps({"schema": 1, "band": BAND, "anchors": rows, "within": within}))
        return
    print(
        f"{'device':<18}{'network':<18}{'threads':>8}{'anchor ms':>11}{'modelled':>10}{'ratio':>7}"
    )
    for row in rows:
        print(
            f"{row['device']:<18}{row['model']:<18}{row['threads']:8}{row['anchor_ms']:11.1f}"
            f"{row['modelled_ms']:10.1f}{row['ratio']:7.2f}"
        )
    print(f"milliseconds; {within} of {len(rows)} within a factor of {BAND:g}")


if __name__ == "__main__":
    main()

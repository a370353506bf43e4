"""What sealing costs: milliseconds and bytes of each suite, beside bare AES-256-GCM.

``python -m fedvtc_edge.benchmarks.studies.sealing --sizes 10000,100000,1000000 --json``

For every suite and payload: ``seal`` and ``unseal`` with all their checks, and AES-256-GCM
alone on the same payload, with a key that is there. They take turns in one process, and
figures are medians of the thread's CPU time, so that a busy machine spoils neither side.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import cryptography
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedvtc_edge.errors import FedVTCError
from fedvtc_edge.sealing import SUITES, Identity, TrustList, seal, unseal
from fedvtc_edge.wire.context import Context

from ..arguments import positive

_WARM_UP = 5


def measure(sizes: Sequence[int], repeats: int) -> dict[str, Any]:
    """Measure every suite with every size of payload.

    Args:
        sizes: Of payloads, in bytes.
        repeats: Of each measurement, 1 or more.

    Returns:
        ``{"schema", "unit", "repeats", "cryptography", "rows": [{"suite", "payload",
        "overhead", "seal_ms", "unseal_ms", "aes_ms", "ratio"}]}``; ``overhead`` in bytes,
        ``ratio`` of ``seal_ms`` to ``aes_ms``.

    Raises:
        EnvelopeError: A payload that no envelope holds.
        KeyFileError: The installation lacks a suite.
    """
    return {
        "schema": 1,
        "unit": "milliseconds of thread CPU time, median",
        "repeats": repeats,
        "cryptography": cryptography.__version__,
        "rows": [_row(suite, size, repeats) for suite in SUITES for size in sizes],
    }


def _row(suite: str, size: int, repeats: int) -> dict[str, Any]:
    payload = os.urandom(size)
    server, client = Identity.generate(suite), Identity.generate(suite)
    context = Context("0" * 32, 0, "client-00", "features")
    trusted = TrustList()
    trusted.add(context.sender, client.public)
    cipher, nonce = AESGCM(AESGCM.generate_key(256)), bytes(12)  # measured, never sent

    def close() -> bytes:
        return seal(payload, recipient=server.public, sender=client, context=context)

    envelope = close()
    steps: dict[str, Callable[[], object]] = {
        "seal_ms": close,
        "unseal_ms": lambda: unseal(envelope, recipient=server, trusted=trusted, context=context),
        "aes_ms": lambda: cipher.encrypt(nonce, payload, None),
    }
    times: dict[str, list[int]] = {name: [] for name in steps}
    for _ in range(_WARM_UP + repeats):
        for name, step in steps.items():
            begin = time.thread_time_ns()
            step()
            times[name].append(time.thread_time_ns() - begin)
    medians = {name: statistics.median(spent[_WARM_UP:]) / 1e6 for name, spent in times.items()}
    return {
        "suite": suite,
        "payload": size,
        "overhead": len(envelope) - size,
        **{name: round(value, 4) for name, value in medians.items()},
        "ratio": round(medians["seal_ms"] / max(medians["aes_ms"], 1e-6), 1),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m fedvtc_edge.benchmarks.studies.sealing``."""
    parser = argparse.ArgumentParser(
        prog="fedvtc_edge.benchmarks.studies.sealing", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--sizes", type=_sizes, default=[10_000, 100_000, 1_000_000], metavar="BYTES,…"
    )
    parser.add_argument("--repeats", type=positive, default=200)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_args(arguments)
    try:
        document = measure(given.sizes, given.repeats)
    except FedVTCError as error:
        parser.exit(error.exit_code, f"error: {error}\nhint: {error.hint}\n")
    if given.json:
        print(json.dumps(document, indent=2))
        return
    for row in document["rows"]:
        print(
            f"{row['suite']:>6} {row['payload']:>9} bytes: +{row['overhead']} bytes, "
            f"seal {row['seal_ms']:.3f} ms, unseal {row['unseal_ms']:.3f} ms, "
            f"{row['ratio']:.1f} times AES-256-GCM ({row['aes_ms']:.3f} ms)"
        )


def _sizes(text: str) -> list[int]:
    return [positive(word) for word in text.split(",")]


if __name__ == "__main__":
    main()

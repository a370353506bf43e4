"""Study of secure aggregation: CPU of everybody together, beside bare mask expansion.

``python -m fedvtc_edge.benchmarks.studies masking --json``

K clients add one vector of the upload of 10 classes × 64 features: 1,290 numbers (counts,
sums and squares per class) of 64 bits. Each repeat plays the whole protocol,
every message made, checked and read, and compares the sum with the plain one. Four
figures, medians of the process's CPU time, user and system:

* **one process**: :func:`run_masked_sum`, as a simulation has it. It checks each
  signature once, not once per client, and runs X25519 once per pair, not at both ends:
  one process has no use for doing the same thing again.
* **dropouts**: the same, ⌊K/3⌋ clients silent from step 2 on, so that their keys are
  rebuilt and their masks taken off.
* **devices**: nothing remembered between clients: what K devices and a server would
  spend together. Per client it is one K-th of that, and little is the server's.
* **floor**: the masks' key streams alone, one ChaCha20 expansion per client and pair at
  each end and per self-mask at the server's, and their additions: K (K - 1) + 2K of
  them. No keys, no shares, no messages.

Bytes are counted on the messages themselves: what one client sends and receives in a
round without dropouts, transport and envelopes left out. ``ratio_sum`` is that of one
process to ``sum_cpu_s``, the sum modulo 2^64 of vectors that the server may see.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from fedvtc_edge.errors import GateError
from fedvtc_edge.masking import (
    MaskingClient,
    MaskingPlan,
    MaskingServer,
    MaskingStep,
    run_masked_sum,
    threshold_of,
)
from fedvtc_edge.masking import keys as masking_keys
from fedvtc_edge.sealing.signing import generate
from fedvtc_edge.wire.context import Context

from .runner import Document, Study, medians, positive, table

CLASSES, WIDTH = 10, 64
SIZE = CLASSES + 2 * CLASSES * WIDTH
CONTEXT = Context("0" * 32, 1, "benchmark", "anchor")

Vectors = Mapping[str, NDArray[np.int64]]
Identities = Mapping[str, Ed25519PrivateKey]


def measure(clients: int, repeats: int, size: int = SIZE) -> Document:
    """Measure one number of clients, after one short untimed round.

    Args:
        clients: K, 3 to 1000.
        repeats: Of each figure, taken in turn.
        size: Numbers in a vector.

    Returns:
        Median CPU seconds of everybody, ratios to the floor, and bytes of one client.

    Raises:
        GateError: A masked sum was not the plain sum.
    """
    identities = {f"client-{index:03d}": generate() for index in range(clients)}
    rng = np.random.default_rng(0)
    inputs = {name: rng.integers(-(2**48), 2**48, size) for name in identities}
    dropping = dict.fromkeys(list(identities)[: clients - threshold_of(clients)], MaskingStep.MASK)
    traffic: list[tuple[int, int]] = []

    def on_devices() -> float:
        seconds, both_ways = apart(inputs, identities)
        traffic[:] = [both_ways]
        return seconds

    simulated(inputs, identities, {})
    figures = medians(
        {
            "floor_cpu_s": lambda: floor_seconds(clients, size),
            "cpu_s": lambda: simulated(inputs, identities, {}),
            "cpu_s_dropouts": lambda: simulated(inputs, identities, dropping),
            "cpu_s_devices": on_devices,
            "sum_cpu_s": lambda: plain_seconds(inputs),
        },
        repeats,
    )
    floor, plain = figures["floor_cpu_s"], figures["sum_cpu_s"]
    ratios = {
        name.replace("cpu_s", "ratio"): round(value / floor, 3)
        for name, value in figures.items()
        if name.startswith("cpu_s")
    }
    return {
        "clients": clients,
        "numbers": size,
        "dropouts": len(dropping),
        **{name: round(value, 6) for name, value in figures.items()},
        **ratios,
        "ratio_sum": round(figures["cpu_s"] / plain, 3),
        "bytes_up": traffic[0][0],
        "bytes_down": traffic[0][1],
        "repeats": repeats,
    }


def simulated(inputs: Vectors, identities: Identities, drop: Mapping[str, int]) -> float:
    """CPU seconds of one sum in one process.

    Raises:
        GateError: It was not the plain sum.
    """
    trusted = {name: key.public_key() for name, key in identities.items()}
    masking_keys.forget_signatures()
    begin = time.process_time()
    result = run_masked_sum(inputs, identities, trusted, CONTEXT, drop)
    seconds = time.process_time() - begin
    _check(inputs, result.total, result.survivors)
    return seconds


def apart(inputs: Vectors, identities: Identities) -> tuple[float, tuple[int, int]]:
    """CPU seconds of one sum where nobody profits from another's work; bytes up and down.

    Raises:
        GateError: It was not the plain sum.
    """
    trusted = {name: key.public_key() for name, key in identities.items()}
    size = len(next(iter(inputs.values())))
    up, down = 0, 0
    begin = time.process_time()
    plan = MaskingPlan(CONTEXT, trusted, size)
    server = MaskingServer(plan)
    clients = {name: MaskingClient(plan, name, key) for name, key in identities.items()}
    inboxes = dict.fromkeys(clients, b"")
    for step in MaskingStep:
        for name, inbox in inboxes.items():
            masking_keys.forget_signatures()
            client = clients[name]
            if step is MaskingStep.MASK:
                message = client.mask(inbox, inputs[name])
            elif step is MaskingStep.ADVERTISE:
                message = client.advertise()
            else:
                respond = {MaskingStep.SHARE: client.share, MaskingStep.CONFIRM: client.confirm}
                message = respond.get(step, client.unmask)(inbox)
            up, down = up + len(message), down + len(inbox)
            server.receive(message, sender=name)
        if step < MaskingStep.UNMASK:
            inboxes = server.advance()
    result = server.finish()
    seconds = time.process_time() - begin
    _check(inputs, result.total, result.survivors)
    return seconds, (up // len(clients), down // len(clients))


def floor_seconds(clients: int, size: int) -> float:
    """CPU seconds of the key streams and their additions alone."""
    key, zeros = bytes(32), bytes(8 * size)
    total = np.zeros(size, np.uint64)
    begin = time.process_time()
    for _ in range(clients * (clients - 1) + 2 * clients):
        stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
        total += np.frombuffer(stream.update(zeros), np.uint64)
    return time.process_time() - begin


def plain_seconds(inputs: Vectors) -> float:
    """CPU seconds of the sum itself."""
    rows = np.stack(list(inputs.values())).view(np.uint64)
    begin = time.process_time()
    np.sum(rows, axis=0)
    return time.process_time() - begin


def _check(inputs: Vectors, total: NDArray[np.int64], survivors: Sequence[str]) -> None:
    if not np.array_equal(total, np.sum([inputs[name] for name in survivors], axis=0)):
        raise GateError("a masked sum is not the plain sum", hint="report this with the versions")


def _measure(clients: Sequence[int], repeats: int) -> Document:
    return {"rows": [measure(count, repeats) for count in clients]}


def _lines(document: Document) -> Iterator[str]:
    rows = document["rows"]
    yield (
        f"one sum of {SIZE} numbers, CPU ms of everybody together (ratio to the floor), "
        f"median of {rows[0]['repeats']}"
    )
    header = ("clients", "floor", "one process", "dropouts", "devices", "bytes up", "bytes down")
    yield from table(header, map(_row, rows), left=0)


def _row(row: Document) -> list[str]:
    cells = [
        f"{1e3 * row['cpu_s' + end]:.1f} ({row['ratio' + end]:.1f})"
        for end in ("", "_dropouts", "_devices")
    ]
    floor = f"{1e3 * row['floor_cpu_s']:.2f}"
    return [str(row["clients"]), floor, *cells, f"{row['bytes_up']:,}", f"{row['bytes_down']:,}"]


def _options(parser: argparse.ArgumentParser) -> None:
    counts = [3, 10, 100]
    parser.add_argument(
        "--clients", type=positive, nargs="+", default=counts, help="default: 3 10 100"
    )


STUDY = Study("masking", __doc__, _options, _measure, _lines, repeats=5)


if __name__ == "__main__":
    STUDY.main()

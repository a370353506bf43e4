"""Study of growth: does any cost grow faster than the clients, or the rounds, that make it?

``python -m fedvtc_edge.benchmarks.studies exponents --json``

Each cost is taken at three sizes, 100, 1,000 and 10,000 clients or releases where that takes
seconds, fewer where it takes longer; the table says which. Figures are CPU seconds of this
process, user and system, the least of a few repeats: they do not grow when the machine is busy.
What is slow by itself is one wait for the disk; that there is one per batch is counted in the
tests.

The *exponent* is the slope between the two largest sizes on logarithmic scales: what a constant
or a cache adds at small sizes does not hide what comes. 1 is linear, 2 doubles fourfold. Above
1.15 the study fails, exit code 1, and names the cost.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedvtc_edge import wire
from fedvtc_edge.config import Config, load_config
from fedvtc_edge.data import Dataset
from fedvtc_edge.data.partition import partition
from fedvtc_edge.errors import GateError
from fedvtc_edge.federation.cross_check import contradicting
from fedvtc_edge.federation.exchange import Exact
from fedvtc_edge.federation.methods import method_of
from fedvtc_edge.federation.server import Server
from fedvtc_edge.masking import in_groups
from fedvtc_edge.privacy.ledger import Ledger, Release
from fedvtc_edge.privacy.mechanism import mechanism_of
from fedvtc_edge.privacy.release_store import ReleaseStore
from fedvtc_edge.progress import SilentProgress
from fedvtc_edge.report import render
from fedvtc_edge.runs.directory import RunDirectory
from fedvtc_edge.sealing import Inbox
from fedvtc_edge.statistics.class_statistics import ClassStatistics
from fedvtc_edge.transport.channel import INBOX, Delivery, Plain, Sealed
from fedvtc_edge.transport.keyring import KeyRing
from fedvtc_edge.transport.masked_sum import MaskedSums
from fedvtc_edge.wire.context import Context
from fedvtc_edge.workflows.run import resume, run

from .runner import Document, Study, listed, table

MOST = 1.15
"""Largest exponent that passes: linear, and what logarithms and caches add to it."""

SIZES = (100, 1_000, 10_000)
RUN = "0" * 32
UPLOAD = 38_520
"""Bytes of an upload of ten classes and 128 pooled features."""

Step = Callable[[], object]
Prepare = Callable[[int, Path], Step]
"""Makes what a step needs, for a size and in a new folder; the step alone is measured."""


@dataclass(frozen=True)
class Cost:
    """One thing that is done once per client, release or round.

    Args:
        of: What the sizes count.
        sizes: Three, the largest at least three times the one before.
        repeats: Times that each but the largest is done.
    """

    name: str
    prepare: Prepare
    of: str = "clients"
    sizes: tuple[int, ...] = SIZES
    repeats: int = 2


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Slope between the two largest sizes, on logarithmic scales."""
    (n, t), (m, s) = sorted(zip(sizes, seconds, strict=True))[-2:]
    return math.log(s / t) / math.log(m / n)


def cpu_seconds(step: Step) -> float:
    """CPU seconds of this process, without those of a collection of garbage in between."""
    gc.collect()
    gc.disable()
    begin = time.process_time()
    try:
        step()
    finally:
        gc.enable()
    return time.process_time() - begin


def measure_cost(cost: Cost, factor: float = 1.0) -> dict[str, Any]:
    """The cost at its sizes, and its exponent.

    Args:
        factor: What the sizes are multiplied by.
    """
    sizes = [max(1, round(size * factor)) for size in cost.sizes]
    seconds = []
    for size in sizes:
        found = []
        for _ in range(cost.repeats if size < sizes[-1] else 1):  # the largest are the steadiest
            with tempfile.TemporaryDirectory() as folder:
                found.append(cpu_seconds(cost.prepare(size, Path(folder))))
        seconds.append(min(found))
    return {
        "cost": cost.name,
        "of": cost.of,
        "sizes": sizes,
        "cpu_s": [round(value, 4) for value in seconds],
        "each_us": round(1e6 * seconds[-1] / sizes[-1], 1),
        "exponent": round(exponent(sizes, seconds), 3),
    }


def names_of(number: int) -> list[str]:
    """Ids of so many clients."""
    return [f"client-{index:05d}" for index in range(number)]


def contexts(number: int) -> Iterator[Context]:
    """Contexts of the uploads of the opening, one per client."""
    return (Context(RUN, 0, name, "anchor") for name in names_of(number))


# ---------------------------------------------------------------- privacy


def _claimed() -> Config:
    return load_config({"privacy": {"mode": "anchored"}, "clients": {"count": 10_000}})


def enter_releases(number: int, folder: Path) -> Step:
    """Entries of a ledger under a claim, ten a round."""
    ledger = Ledger(folder / "ledger.json", mechanism_of(_claimed()))
    ledger.begin()
    releases = [Release(0, name, "anchor", name.encode()) for name in names_of(number)]

    def step() -> None:
        for begin in range(0, number, 10):
            ledger.enter(releases[begin : begin + 10])

    return step


def reopen_ledger(number: int, folder: Path) -> Step:
    """All entries read and checked again."""
    enter_releases(number, folder)()
    return Ledger(folder / "ledger.json", mechanism_of(_claimed())).reopen


def keep_releases(number: int, folder: Path) -> Step:
    """Noised bytes of each client kept before they leave."""

    def step() -> None:
        store = ReleaseStore(folder)
        for name in names_of(number):
            store.once(name, "anchor", lambda: bytes(UPLOAD))
        store.sync()

    return step


# ---------------------------------------------------------------- the server


def _statistics(width: int, *, pooled: bool, seed: int = 0) -> ClassStatistics:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((60, width))
    features *= (width / np.square(features).sum(1, keepdims=True)) ** 0.5
    return ClassStatistics.of(features, rng.integers(0, 10, 60), classes=10, pooled=pooled)


def _add_uploads(number: int, width: int, *, pooled: bool) -> Step:
    part = _statistics(width, pooled=pooled)
    upload = wire.encode(part)
    head, rest = upload[:28], upload[128:]
    exchange = Exact("features", lambda _: part, 10, width, pooled)

    def arriving() -> Iterator[tuple[Context, Delivery]]:
        for context in (replace(one, kind="features") for one in contexts(number)):
            yield context, Delivery(head + context.to_bytes() + rest, len(upload), None)

    about = Context(RUN, 0, "server", "features")
    return lambda: Server().aggregate(exchange, about, arriving(), number=number, quorum=number)


def add_diagonal(number: int, folder: Path) -> Step:
    """Uploads of 10 × 64 checked and added."""
    return _add_uploads(number, 64, pooled=False)


def add_covariance(number: int, folder: Path) -> Step:
    """Uploads of 128 pooled features checked and added."""
    return _add_uploads(number, 128, pooled=True)


def compare_uploads(number: int, folder: Path) -> Step:
    """Clients' class means compared, of statistics that agree."""
    parts = [_statistics(64, pooled=True, seed=seed) for seed in range(number)]
    return lambda: contradicting(parts)


def record_uploads(number: int, folder: Path) -> Step:
    """Copies of uploads for the audit, one per client."""
    directory = RunDirectory.create(folder / "run", load_config({}))
    data = bytes(UPLOAD)

    def step() -> None:
        for name in names_of(number):
            directory.record_upload(0, name, "anchor", data)

    return step


def _sealed(names: Sequence[str], folder: Path) -> Sealed:
    return Sealed(KeyRing(names, folder / "parties"), RUN, folder / "parties")


def seal_uploads(number: int, folder: Path) -> Step:
    """Keys made, envelopes sealed, received, journalled and opened, a hundred at a time."""
    transport, payload = _sealed(names_of(number), folder), bytes(UPLOAD)
    uploads = [(context, payload) for context in contexts(number)]

    def step() -> None:
        for begin in range(0, number, 100):
            transport.carry_all(uploads[begin : begin + 100])

    return step


def reopen_inbox(number: int, folder: Path) -> Step:
    """An inbox opened again by a server that was killed, and all of it read."""
    seal_uploads(number, folder)()
    ring = KeyRing(names_of(number), folder / "parties")

    def step() -> None:
        inbox = Inbox(
            folder / "parties" / INBOX, run=RUN, recipient=ring.server, trusted=ring.trusted
        )
        for context in contexts(number):
            if inbox.find(context) is None:
                raise GateError("an envelope is lost", hint="this is a fault")

    return step


def mask_groups(number: int, folder: Path) -> Step:
    """Masked sums of 1,290 numbers in groups of thirty."""
    names, rng = names_of(number), np.random.default_rng(0)
    ring = KeyRing(names, None)
    sums = MaskedSums(ring, Plain(), lambda *_: None)
    vectors = {name: rng.integers(-(2**40), 2**40, 1290) for name in names}
    context = Context(RUN, 0, "server", "anchor")

    def step() -> None:
        for group in in_groups(names, max(1, number // 30)):
            sums.add({name: vectors[name] for name in group}, context)

    return step


# ---------------------------------------------------------------- whole runs

_IMAGES = 60_000


def _data() -> Dataset:
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 256, (size, 8, 8, 1), np.uint8) for size in (_IMAGES, 200))
    labels = [rng.integers(0, 10, len(images)) for images in (train, test)]
    return Dataset("noise", train, labels[0], test, labels[1], tuple("0123456789"))


def _settings(number: int, rounds: int, **tables: Mapping[str, Any]) -> Config:
    cohort = min(1.0, 10 / number)
    document: dict[str, Any] = {
        "data": {"partition": "iid", "min_samples": 1},
        "clients": {"count": number, "cohort": cohort, "architectures": ["mlp"]},
        "method": {"name": "local", "rounds": rounds},
        "training": {"epochs": 1},
    }
    return load_config({**document, **tables})


def deal(number: int, folder: Path) -> Step:
    """Sixty thousand labels dealt to so many clients."""
    config = load_config({"data": {"min_samples": 1}})
    labels = np.random.default_rng(0).integers(0, 10, _IMAGES)
    return lambda: partition(
        labels, clients=number, classes=10, settings=config.data, seed=config.seed
    )


def run_clients(number: int, folder: Path) -> Step:
    """A run of so many clients, ten of them in its one round."""
    data = _data()
    return lambda: run(_settings(number, 1), data=data, out=folder / "run")


def run_statistics(number: int, folder: Path) -> Step:
    """A run in which each of so many clients uploads once and none trains."""
    data = _data()
    config = _settings(number, 1, method={"name": "statistics"})
    if not method_of(config).trains:
        return lambda: run(config, data=data, out=folder / "run")
    raise GateError("the method trains", hint="this is a fault")


def run_rounds(number: int, folder: Path) -> Step:
    """Rounds of twenty clients, ten in each."""
    data = _data()
    return lambda: run(_settings(20, number), data=data, out=folder / "run")


class _Killed(Exception):  # noqa: N818  (what it stands for is no error)
    """Stands for the end of a process."""


class _KilledAfterOne(SilentProgress):
    def advance(self, note: str = "") -> None:
        raise _Killed


def resume_run(number: int, folder: Path) -> Step:
    """A run of so many clients taken up again for its second round."""
    with suppress(_Killed):
        run(_settings(number, 2), data=_data(), out=folder / "run", progress=_KilledAfterOne())
    return lambda: resume(folder / "run")


def draw_report(number: int, folder: Path) -> Step:
    """The page of a finished run of so many clients."""
    run_clients(number, folder)()
    return lambda: render(folder / "run")


COSTS = [
    Cost("ledger under a claim", enter_releases, "releases"),
    Cost("ledger read again", reopen_ledger, "releases"),
    Cost("noised releases kept", keep_releases),
    Cost("uploads, diagonal", add_diagonal),
    Cost("uploads, covariance", add_covariance),
    Cost("uploads compared", compare_uploads, sizes=(100, 300, 1_000)),
    Cost("uploads kept for the audit", record_uploads),
    Cost("keys, envelopes, inbox", seal_uploads),
    Cost("inbox read again", reopen_inbox),
    Cost("masked sums in groups", mask_groups, sizes=(60, 180, 540)),
    Cost("partition", deal),
    Cost("run of many clients", run_clients, sizes=SIZES, repeats=1),
    Cost("statistics of many clients", run_statistics, repeats=1),
    Cost("rounds", run_rounds, "rounds", (20, 60, 240), repeats=1),
    Cost("resume", resume_run, repeats=1),
    Cost("report", draw_report, repeats=1),
]


def measure(only: Sequence[str] = (), factor: float = 1.0) -> Document:
    """All costs, or those of which the name has one of the given words in it.

    Args:
        only: Words; none is all.
        factor: What sizes are multiplied by.
    """
    chosen = [cost for cost in COSTS if not only or any(word in cost.name for word in only)]
    rows = []
    for cost in chosen:
        rows.append(measure_cost(cost, factor))
        print(_line(rows[-1]), file=sys.stderr, flush=True)
    return {"most": MOST, "factor": factor, "costs": rows}


def above(document: Document) -> list[str]:
    """The costs that grow too fast, in words."""
    return [
        f"{row['cost']} grows with an exponent of {row['exponent']:.2f}, above {document['most']}"
        for row in document["costs"]
        if not row["exponent"] <= document["most"]
    ]


def _line(row: Mapping[str, Any]) -> str:
    return f"{row['cost']}: exponent {row['exponent']:.2f}"


def options(parser: argparse.ArgumentParser) -> None:
    """Add the study's own options to a parser."""
    words = listed(str)
    parser.add_argument("--only", type=words, default=[], help="words in the names, with commas")
    parser.add_argument("--factor", type=float, default=1.0, help="what sizes are multiplied by")


def lines(document: Document) -> Iterator[str]:
    """The table, and how many fail."""
    yield from table(
        ["cost", "of", "sizes", "CPU s", "µs each", "exponent"],
        (
            [
                row["cost"],
                row["of"],
                " ".join(f"{size:,}" for size in row["sizes"]),
                " ".join(f"{value:.3f}" for value in row["cpu_s"]),
                f"{row['each_us']:.0f}",
                f"{row['exponent']:.2f}",
            ]
            for row in document["costs"]
        ),
        left=3,
    )
    yield f"{len(above(document))} of {len(document['costs'])} above {document['most']}"


STUDY = Study("exponents", __doc__, options, measure, lines, failures=above)

if __name__ == "__main__":
    STUDY.main()

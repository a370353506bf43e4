"""Study of many clients: the same cohort drawn from 10,000 clients and from 100.

``python -m fedvtc_edge.benchmarks.studies scale --methods local,fedproto,fedvtc --json``

Digits of 8 × 8 pixels with a little noise are dealt out evenly, as many to each client on both
sides, and as many clients take part in each round. Each side is a fresh process with a run
directory: CPU time and peak memory are those of all of it, from the first import to the report.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .runner import Document, Study, fresh_process, listed, paired, positive, table

PER_CLIENT = 6
"""Training images of each client."""

_CHILD = """
import json, sys, time
from fedvtc_edge import load_config, run
from fedvtc_edge.benchmarks.studies.runner import peak_mb
seen = []
settings = json.loads(sys.argv[1])
result = run(load_config(settings), out=sys.argv[2], callbacks=[seen.append])
print(json.dumps({
    "cpu_s": time.process_time(),
    "rounds_s": sum(record["seconds"] for record in seen),
    "peak_mb": peak_mb(),
    "accuracy_mean": result.summary["accuracy_mean"],
}))
"""


def measure(
    methods: list[str],
    few: int,
    many: int,
    cohort: int,
    rounds: int,
    repeats: int,
    settings: Mapping[str, Any] | None = None,
) -> Document:
    """CPU time and memory with many clients and with few, in turn, ``repeats`` times.

    Args:
        methods: Names of methods.
        cohort: Clients of each round.
        settings: Tables of the configuration that differ from the defaults.

    Returns:
        ``{"schema", "few", "many", "cohort", "rounds", "methods": [{"method", "few": {"cpu_s",
        "rounds_s", "peak_mb"}, "many", "cpu_ratio", "memory_ratio"}]}``; of each side the figures
        are the least of its repeats, for what else the machine does only adds.

    Raises:
        FedVTCError: Settings that make no run.
    """
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for method in methods:
            sides = {}
            for name, clients in (("few", few), ("many", many)):
                data = write_digits(Path(folder) / f"{name}.npz", PER_CLIENT * clients)
                config: dict[str, Any] = {
                    **(settings or {}),
                    "data": {"name": str(data), "partition": "iid", "min_samples": 2},
                    "clients": {"count": clients, "cohort": min(1.0, cohort / clients)},
                    "method": {"name": method, "rounds": rounds},
                }
                sides[name] = lambda config=config: _run(config)
            figures = paired(sides, repeats)
            least = {
                side: {key: min(one[key] for one in runs) for key in runs[0]}
                for side, runs in figures.items()
            }
            found.append(
                {
                    "method": method,
                    **least,
                    "cpu_ratio": least["many"]["cpu_s"] / least["few"]["cpu_s"],
                    "memory_ratio": least["many"]["peak_mb"] / least["few"]["peak_mb"],
                }
            )
    return {
        "schema": 1,
        "few": few,
        "many": many,
        "cohort": cohort,
        "rounds": rounds,
        "methods": found,
    }


def write_digits(path: Path, number: int) -> Path:
    """An ``.npz`` of so many images, the built-in digits with noise; the test set as it is."""
    from fedvtc_edge.config import DataSettings
    from fedvtc_edge.data import load_dataset

    known, draw = load_dataset(DataSettings()), np.random.default_rng(0)
    chosen = draw.integers(len(known.y_train), size=number)
    noise = draw.normal(0.0, 12.0, (number, *known.image_shape))
    np.savez(
        path,
        x_train=np.clip(known.x_train[chosen] + noise, 0, 255).astype(np.uint8),
        y_train=known.y_train[chosen],
        x_test=known.x_test,
        y_test=known.y_test,
        class_names=np.array(known.class_names),
    )
    return path


def _run(config: Mapping[str, Any]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as out:
        said = fresh_process(_CHILD, json.dumps(config), Path(out) / "run")
    found: dict[str, float] = json.loads(said)
    return found


def _lines(result: Document) -> Iterator[str]:
    yield (
        f"{result['many']:,} clients beside {result['few']:,}, {result['cohort']} of them in each "
        f"of {result['rounds']} rounds, {PER_CLIENT} images each"
    )
    header, keys = ["method", "side", "CPU s", "rounds s", "peak MB"], _KEYS
    rows = [
        [
            one["method"],
            side,
            *(f"{one[side][key]:.1f}" for key in keys),
        ]
        for one in result["methods"]
        for side in ("few", "many")
    ]
    yield from table(header, rows, left=2)
    for one in result["methods"]:
        yield f"{one['method']}: CPU × {one['cpu_ratio']:.2f}, memory × {one['memory_ratio']:.2f}"


_KEYS = "cpu_s", "rounds_s", "peak_mb"


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--methods", type=listed(str), default=["local", "fedproto", "fedvtc"])
    parser.add_argument("--few", type=positive, default=100)
    parser.add_argument("--many", type=positive, default=10_000)
    parser.add_argument("--cohort", type=positive, default=10)
    parser.add_argument("--rounds", type=positive, default=5)


STUDY = Study("scale", __doc__, _options, measure, _lines, repeats=1)

if __name__ == "__main__":
    STUDY.main()

"""Study of simulated devices: the same federation with profiles and without.

``python -m fedvtc_edge.benchmarks.studies fleet --clients 200 --rounds 2 --json``

Both runs train the same clients on the same data, for the profiles' availability is set
to 1, their dropout to 0 and their deadlines are taken away: what differs is the planner,
the cost of each phase's steps, and the clock. Each is a fresh process, so that neither finds
what the other has cached, and figures are its CPU time from the first import to the end.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedvtc_edge.devices import DeviceProfile, profile_names

from .runner import Document, Study, fresh_process, paired, positive

_CHILD = """
import json, sys, time
from fedvtc_edge import load_config, run
summary = run(load_config(json.loads(sys.argv[1]))).summary
print(json.dumps({
    "cpu_s": time.process_time(),
    "accuracy_mean": summary["accuracy_mean"],
    "seconds_virtual": summary["seconds_virtual"],
}))
"""


def measure(
    clients: int, rounds: int, repeats: int, settings: Mapping[str, Any] | None = None
) -> Document:
    """CPU time with and without profiles, one after the other, ``repeats`` times.

    Args:
        clients: Number of clients; the built-in digits are dealt out evenly.
        settings: Tables of the configuration that differ from the defaults.

    Returns:
        ``{"schema", "clients", "rounds", "devices", "pairs": [{"off_s", "on_s", "ratio"}],
        "ratio", "accuracy_equal", "seconds_virtual"}``; ``ratio`` is the least of all pairs:
        what else the machine does only adds. The last round is as short as the others
        (``finetune_last`` is 20, not 1,000): the more is trained, the less the clock is of it.

    Raises:
        FedVTCError: Settings that make no run.
    """
    config: dict[str, Any] = {
        "data": {"partition": "iid", "min_samples": 2},
        "clients": {"count": clients},
        "method": {"rounds": rounds},
        "training": {"finetune_last": 20},
        **(settings or {}),
    }
    with tempfile.TemporaryDirectory() as folder:
        devices = [str(path) for path in _always_there(Path(folder))]
        timed = {**config, "clients": {**config["clients"], "devices": devices}}
        found = paired({"off": lambda: _run(config), "on": lambda: _run(timed)}, repeats)
    pairs = [
        {"off_s": off["cpu_s"], "on_s": on["cpu_s"], "ratio": on["cpu_s"] / off["cpu_s"]}
        for off, on in zip(found["off"], found["on"], strict=True)
    ]
    off, on = found["off"][-1], found["on"][-1]
    return {
        "schema": 1,
        "clients": clients,
        "rounds": rounds,
        "devices": [Path(device).stem for device in devices],
        "pairs": pairs,
        "ratio": min(pair["ratio"] for pair in pairs),
        "accuracy_equal": on["accuracy_mean"] == off["accuracy_mean"],
        "seconds_virtual": on["seconds_virtual"],
    }


def _always_there(folder: Path) -> list[Path]:
    """The shipped profiles on which torch trains, without what lets a client miss a round."""
    made = []
    for name in profile_names():
        profile = DeviceProfile.load(name)
        if profile.runtime == "none" or profile.memory_total_mb.value < 2048:
            continue
        path = folder / f"{name}.toml"
        path.write_text(
            f"name = {json.dumps(name)}\ntitle = {json.dumps(profile.title)}\n"
            f"arch = {json.dumps(profile.arch)}\nruntime = {json.dumps(profile.runtime)}\n"
            + "".join(
                f'{key} = {{ value = {figure.value}, kind = "{figure.kind}", '
                f"source = {json.dumps(figure.source)} }}\n"
                for key, figure in profile.figures.items()
                if key not in ("availability", "dropout", "deadline_s")
            )
        )
        made.append(path)
    return made


def _run(config: dict[str, Any]) -> Document:
    hint = "try fewer clients: each needs two images at least"
    document: Document = json.loads(fresh_process(_CHILD, json.dumps(config), hint=hint))
    return document


def _lines(document: Document) -> Iterator[str]:
    for pair in document["pairs"]:
        yield f"off {pair['off_s']:.1f} s, on {pair['on_s']:.1f} s: {pair['ratio']:.3f} times"
    same = "the same" if document["accuracy_equal"] else "ANOTHER"
    yield (
        f"{document['clients']} clients, {document['rounds']} rounds, "
        f"{len(document['devices'])} devices: {document['ratio']:.3f} times the CPU, "
        f"{same} accuracy, {document['seconds_virtual']:.0f} simulated seconds"
    )


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=positive, default=200)
    parser.add_argument("--rounds", type=positive, default=2)


STUDY = Study("fleet", __doc__, _options, measure, _lines, repeats=1)


if __name__ == "__main__":
    STUDY.main()

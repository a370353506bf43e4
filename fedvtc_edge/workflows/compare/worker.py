"""Work of one cell, in this process or in one of several.

A cell's result does not depend on where it is worked; see :mod:`.process` for the latter.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fedvtc_edge.config import Config, load_config
from fedvtc_edge.data import Dataset, load_data
from fedvtc_edge.documents import parse_json
from fedvtc_edge.errors import FedVTCError, RunError
from fedvtc_edge.runs.records import mean
from fedvtc_edge.workflows.run import run, run_without_trace

from .cells import Cell, Result

AUDITS = "audits"
"""Folder of audits' reports in a comparison's folder."""

_MEANS = ("absent_classes", "calibrated")
_POINTS = ("own_distribution", "home", "held_out")
_EXPERTS = ("", "_calibrated", "_control")
_FIGURES = {
    "accuracy_mean": "accuracy_mean",
    "accuracy_worst": "accuracy_worst",
    **{f"accuracy_{name}": f"accuracy_{name}_mean" for name in _MEANS},
    "accuracy_control": "accuracy_control",
    **{
        f"accuracy_{point}{expert}": f"accuracy_{point}{expert}_mean"
        for point in _POINTS
        for expert in _EXPERTS
    },
    "upload_bytes_total": "upload_bytes_total",
    "download_bytes_total": "download_bytes_total",
    "seconds": "seconds",
}
"""Figures of a cell, and the key of each in a run's summary."""


class Workplace:
    """Where cells are worked one after another: the last data set stays in memory."""

    def __init__(self) -> None:
        self._loaded: tuple[str, Dataset] | None = None

    def do(self, job: dict[str, Any]) -> Result:
        """Run a cell.

        Args:
            job: As :func:`job_of` makes it.

        Raises:
            RunError: The machine, and not the settings, is the reason.
        """
        config = load_config(job["config"])
        begin = time.perf_counter()
        try:
            if job["kind"] == "audit":
                result = audited(config, Path(job["keep"]) if job["keep"] else None)
            else:
                result = figures_of(run_without_trace(config, self._load(config)))
        except RunError:
            raise
        except FedVTCError as error:
            return {"refused": str(error), "seconds": round(time.perf_counter() - begin, 3)}
        return {**result, "seconds": round(time.perf_counter() - begin, 3)}

    def _load(self, config: Config) -> Dataset:
        """The data set of a cell; that of the cell before, where it is the same."""
        same = {"alpha", "partition", "shards", "min_samples", "holdout"}
        key = repr((config.data.model_dump(exclude=same), config.privacy.mode))
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # not two at a time
            self._loaded = key, load_data(config)
        return self._loaded[1]


def figures_of(summary: dict[str, Any]) -> Result:
    """Figures of a run, and recalls of its classes.

    Args:
        summary: The content of ``summary.json``.
    """
    clients = summary["clients"]
    figures = {name: summary[key] for name, key in _FIGURES.items()}
    figures["upload_bytes_per_client"] = mean(client["upload_bytes"] for client in clients)
    peaks = [client["peak_memory_mb"] for client in clients]
    figures["peak_memory_mb"] = max((peak for peak in peaks if peak is not None), default=None)
    figures |= {key: summary[key] for key in ("decoder_seconds", "decoder_bytes") if key in summary}
    return {"figures": figures, "recall_mean": summary["recall_mean"]}


def audited(config: Config, keep: Path | None) -> Result:
    """Verdict of an audit of one run, by the command ``audit`` and its quick settings.

    Args:
        keep: Folder for the audit's report; None keeps none. The run itself is not kept.
    """
    with tempfile.TemporaryDirectory(prefix="fedvtc-") as scratch:
        directory = Path(scratch, "run")
        run(config.replace(method={"baseline": False}), out=directory)
        report = Path(scratch, "audit") if keep is None else keep
        shutil.rmtree(report, ignore_errors=True)  # of an audit that was cut off
        words = ["audit", str(directory), "--quick", "--json", "--quiet", "--out", str(report)]
        command = [sys.executable, "-m", "fedvtc_edge", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode not in VERDICTS:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        why = said[0].removeprefix("fedvtc-edge: error: ")
        return {"figures": {"verdict": "inconclusive", "reason": why}}
    document = parse_json(done.stdout)
    reason = next(iter(document["reasons"]), None)
    return {"figures": {"verdict": document["verdict"], "reason": reason}}


VERDICTS = (0, 1, 3, 4)
"""Exit codes of an audit that came to a verdict."""


def job_of(cell: Cell, folder: Path | None) -> dict[str, Any]:
    """A cell as a process takes it.

    Args:
        folder: Of the comparison, where reports of audits are kept; None keeps none.
    """
    config = cell.config.model_dump(mode="json", exclude_none=True)
    keep = None if folder is None else str((folder / AUDITS / Path(cell.file).stem).absolute())
    return {"kind": cell.kind, "config": config, "keep": keep}

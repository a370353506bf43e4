"""Writes ``bench.json`` and the page that shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedvtc_edge.benchmarks.bench import wording
from fedvtc_edge.benchmarks.bench.plots import accuracy_memory, latency, memory_batch
from fedvtc_edge.files import write_atomic
from fedvtc_edge.report.page import fill, write


def render(document: Mapping[str, Any], path: Path) -> Path:
    """Draws ``report.html`` of a bench.

    The page is one file without scripts that loads nothing from anywhere, and the same
    document gives the same bytes.

    Args:
        document: What ``bench`` returned.
        path: Of the page.

    Returns:
        ``path``.

    Raises:
        RunError: The page cannot be written.
    """
    html = fill(
        "bench.html.j2",
        package=__package__,
        say=wording,
        bench=document,
        measured=wording.measured_rows(document),
        devices=[
            (device, wording.device_rows(document, device["name"]))
            for device in document["devices"]
        ],
        remarks=wording.remarks(document["rows"]),
        front=accuracy_memory(document),
        memory=memory_batch(document),
        latency=latency(document),
    )
    return write(path, html)


def save(document: Mapping[str, Any], folder: Path) -> Path:
    """Write ``bench.json`` and ``report.html``.

    Args:
        document: What ``bench`` returned.
        folder: An existing one; what stood there under these names is replaced.

    Returns:
        The path of the page.

    Raises:
        RunError: The page cannot be written.
    """
    data = json.dumps(document, indent=2, allow_nan=False) + "\n"
    write_atomic(folder / "bench.json", data.encode("ascii"))
    return render(document, folder / "report.html")

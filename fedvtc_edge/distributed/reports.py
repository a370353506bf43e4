"""What clients say of a finished round, checked, and their running totals."""

from __future__ import annotations

import json
from typing import Any

from fedvtc_edge.evaluation import ACCURACIES

from .records import OrderError

_LARGEST = 65_536
_TOTALS = {"seconds": 1e9, "samples_seen": 2**53, "parameters": 2**40, "peak_memory_mb": 1e9}

_TOLD = {
    "samples": "samples_seen",
    "parameters": "parameters",
    "peak_memory_mb": "peak_memory_mb",
}
"""Totals that not every client tells, and what a report calls them."""


def blank() -> dict[str, Any]:
    """Totals of a client that has done nothing yet."""
    return {
        "seconds": 0.0,
        "samples": 0,
        "up": 0,
        "down": 0,
        "parameters": None,
        "peak_memory_mb": None,
    }


def read_report(payload: bytes) -> dict[str, Any]:
    """A client's report: accuracies in [0, 1] or None, and totals, as it says.

    Raises:
        OrderError: Not JSON, too large, or a number that none can be.
    """
    try:
        found = json.loads(payload) if len(payload) <= _LARGEST else {}
        report: dict[str, Any] = {key: found.get(key) for key in ACCURACIES}
        report |= {key: found.get(key) for key in _TOTALS}
        for key, value in report.items():
            most = _TOTALS.get(key, 1.0)
            if value is not None and not (type(value) in (int, float) and 0 <= value <= most):
                raise ValueError(key)
        if report["seconds"] is None:
            raise ValueError("seconds")
    except (ValueError, AttributeError, RecursionError):
        raise OrderError(
            "its report is none", hint="install the same version of fedvtc-edge on both sides"
        ) from None
    return report


def merged(account: dict[str, Any], report: dict[str, Any]) -> None:
    """Enter a report's totals in a client's account."""
    account["seconds"] = report["seconds"]
    for key, told in _TOLD.items():
        if report[told] is not None:
            account[key] = report[told]

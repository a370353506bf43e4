"""The same data, split and budget for every method, over several seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedvtc_edge.config import Config
from fedvtc_edge.data import load_dataset
from fedvtc_edge.errors import RunError, UsageError
from fedvtc_edge.federation.evaluation import mean
from fedvtc_edge.federation.preflight import check_names
from fedvtc_edge.progress import Progress, SilentProgress
from fedvtc_edge.storage.atomic import write_atomic

from .run import run_without_trace

SCHEMA = 1

_OVERRIDES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "local": ("each client alone, phase A's epochs", {"name": "local"}),
    "local-matched": (
        "each client alone, with all of FedVTC's gradient steps",
        {"name": "local-matched"},
    ),
    "fedproto": ("prototypes as regularisers (Tan et al. 2022)", {"name": "fedproto"}),
    "fedvtc": ("FedVTC as configured", {"name": "fedvtc"}),
    "fedvtc-features": (
        "FedVTC as published: own features only",
        {"name": "fedvtc", "share": "features"},
    ),
    "fedvtc-decoder": (
        "FedVTC with decoder averaging",
        {"name": "fedvtc", "share": "features+decoder"},
    ),
    "fedvtc-diagonal": (
        "FedVTC, anchored, per-class means and stds",
        {"name": "fedvtc", "share": "anchored", "moments": "diagonal"},
    ),
    "fedvtc-covariance": (
        "FedVTC, anchored, pooled covariance",
        {"name": "fedvtc", "share": "anchored", "moments": "covariance"},
    ),
    "fedvtc-head-only": (
        "ablation: fine-tune the head only",
        {"name": "fedvtc", "ablate": ["head-only"]},
    ),
    "fedvtc-no-dm": ("ablation: no distribution matching", {"name": "fedvtc", "ablate": ["dm"]}),
    "fedvtc-no-kl": ("ablation: no KL pull", {"name": "fedvtc", "ablate": ["kl"]}),
    "fedvtc-no-teacher": ("ablation: no teacher", {"name": "fedvtc", "ablate": ["teacher"]}),
    "centralised": (
        "ceiling: all data in one place, FedVTC's gradient steps",
        {"name": "centralised"},
    ),
}

METHODS: Mapping[str, str] = {name: text for name, (text, _) in _OVERRIDES.items()}
"""Names for ``--methods`` and what they are."""


def compare(
    config: Config,
    methods: Sequence[str],
    seeds: Sequence[int],
    *,
    out: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run every method on every seed; a seed fixes the split, the streams and the weights.

    Args:
        config: Everything but the method.
        methods: Names from :data:`METHODS`.
        seeds: One run each.
        out: New or empty folder for ``comparison.json``; None writes nothing.
        progress: Told of each run.

    Returns:
        The content of ``comparison.json``.

    Raises:
        UsageError: An unknown method, or none.
        ConfigError: An unknown architecture or device.
        RunError: ``out`` cannot be written or is not empty.
    """
    unknown = [name for name in methods if name not in _OVERRIDES]
    if unknown or not methods or not seeds:
        raise UsageError(
            f"methods {list(methods)} and seeds {list(seeds)}",
            hint=f"at least one of each; methods: {', '.join(METHODS)}",
        )
    check_names(config)
    if out is not None:
        _claim(out)
    progress = progress or SilentProgress()
    progress.start(len(methods) * len(seeds), "runs")
    data = load_dataset(config.data, public_classes=config.privacy.mode != "none")
    entries: dict[str, Any] = {}
    document = {
        "schema": SCHEMA,
        "data": data.name,
        "alpha": config.data.alpha if config.data.partition == "dirichlet" else None,
        "seeds": list(seeds),
        "evaluated_on": config.data.evaluate,
        "methods": entries,
    }
    try:
        for name in methods:
            summaries = []
            for seed in seeds:
                settings = config.replace(seed=seed, method=_OVERRIDES[name][1])
                summary = run_without_trace(settings, data)
                summaries.append(summary)
                progress.advance(f"{name}, seed {seed}: {100 * summary['accuracy_mean']:.1f} %")
            entries[name] = _entry(summaries)
            if out is not None:  # each method as it is done: a stopped comparison keeps the rest
                text = json.dumps(document, indent=2, allow_nan=False) + "\n"
                write_atomic(out / "comparison.json", text.encode())
    finally:
        progress.close()
    return document


def _claim(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        occupied = any(out.iterdir())
    except OSError as error:
        raise RunError(
            f"cannot write {out}: {error.strerror}", hint="choose another --out"
        ) from None
    if occupied:
        raise RunError(f"{out} is not empty", hint="choose a new folder for --out")


def _entry(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def over(key: str) -> float | None:
        return mean([summary[key] for summary in summaries])

    accuracies = [summary["accuracy_mean"] for summary in summaries]
    return {
        "accuracy_mean": over("accuracy_mean"),
        # The sample std: None where one seed says nothing of the spread.
        "accuracy_std": float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None,
        "accuracy_worst": over("accuracy_worst"),
        "accuracy_absent_classes": over("accuracy_absent_classes_mean"),
        "accuracy_calibrated": over("accuracy_calibrated_mean"),
        "accuracy_control": over("accuracy_control"),
        "upload_bytes_total": over("upload_bytes_total"),
        "seconds": over("seconds"),
        "per_seed": accuracies,
    }

"""The same data, split and budget for every method, over several seeds."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedvtc_edge.config import Config
from fedvtc_edge.data import load_data
from fedvtc_edge.errors import RunError, UsageError
from fedvtc_edge.federation.preflight import check
from fedvtc_edge.plugins import METHODS
from fedvtc_edge.progress import Progress, SilentProgress
from fedvtc_edge.runs.directory import as_json, check_empty
from fedvtc_edge.runs.records import Comparison, MethodRecord, mean
from fedvtc_edge.storage.atomic import write_atomic

from .run import run_without_trace

_VARIANTS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "fedvtc-features": ("FedVTC as published: own features only", {"share": "features"}),
    "fedvtc-decoder": ("FedVTC with decoder averaging", {"share": "features+decoder"}),
    "fedvtc-diagonal": (
        "FedVTC, anchored, per-class means and stds",
        {"share": "anchored", "moments": "diagonal"},
    ),
    "fedvtc-covariance": (
        "FedVTC, anchored, pooled covariance",
        {"share": "anchored", "moments": "covariance"},
    ),
    "fedvtc-head-only": ("ablation: fine-tune the head only", {"ablate": ["head-only"]}),
    "fedvtc-no-dm": ("ablation: no distribution matching", {"ablate": ["dm"]}),
    "fedvtc-no-kl": ("ablation: no KL pull", {"ablate": ["kl"]}),
    "fedvtc-no-teacher": ("ablation: no teacher", {"ablate": ["teacher"]}),
}
"""FedVTC with some keys of ``[method]`` fixed, by a name of its own."""


def methods_by_name() -> dict[str, str]:
    """Names for ``--methods`` and what they are: every method, and variants of FedVTC."""
    single = {name: (METHODS.find(name).__doc__ or name) for name in METHODS.names()}
    return {name: text.strip().splitlines()[0] for name, text in single.items()} | {
        name: text for name, (text, _) in _VARIANTS.items()
    }


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
        methods: Names from :func:`methods_by_name`.
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
    if not methods or not seeds:
        raise UsageError(
            f"methods {list(methods)} and seeds {list(seeds)}",
            hint=f"at least one of each; methods: {', '.join(methods_by_name())}",
        )
    changes = {name: _changes(name) for name in methods}
    check(config)
    if out is not None:
        check_empty(out)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"cannot write {out}: {error.strerror}", hint="choose another --out"
            ) from None
    progress = progress or SilentProgress()
    progress.start(len(methods) * len(seeds), "runs")
    data = load_data(config)
    comparison = Comparison(
        data=data.name,
        alpha=config.data.alpha if config.data.partition == "dirichlet" else None,
        seeds=list(seeds),
        evaluated_on=config.data.evaluate,
        methods={},
    )
    try:
        for name in methods:
            summaries = []
            for seed in seeds:
                settings = config.replace(seed=seed, method=changes[name])
                summary = run_without_trace(settings, data)
                summaries.append(summary)
                progress.advance(f"{name}, seed {seed}: {100 * summary['accuracy_mean']:.1f} %")
            comparison.methods[name] = _entry(summaries)
            if out is not None:  # each method as it is done: a stopped comparison keeps the rest
                write_atomic(out / "comparison.json", as_json(comparison.document()))
    finally:
        progress.close()
    return comparison.document()


def _changes(name: str) -> dict[str, Any]:
    """What a name of ``--methods`` changes in ``[method]``."""
    if name in _VARIANTS:
        return {"name": "fedvtc", **_VARIANTS[name][1]}
    if name not in METHODS.names():
        known = methods_by_name()
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"methods: {', '.join(known)};"
        raise UsageError(
            f"unknown method {name!r}", hint=f"{hint} one of your own needs --plugin FILE.py"
        )
    return {"name": name}


def _entry(summaries: Sequence[dict[str, Any]]) -> MethodRecord:
    def over(key: str) -> float | None:
        return mean(summary[key] for summary in summaries)

    accuracies = [summary["accuracy_mean"] for summary in summaries]
    return MethodRecord(
        accuracy_mean=over("accuracy_mean"),
        # The sample std: None where one seed says nothing of the spread.
        accuracy_std=float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None,
        accuracy_worst=over("accuracy_worst"),
        accuracy_absent_classes=over("accuracy_absent_classes_mean"),
        accuracy_calibrated=over("accuracy_calibrated_mean"),
        accuracy_control=over("accuracy_control"),
        accuracy_own_distribution=over("accuracy_own_distribution_mean"),
        accuracy_home=over("accuracy_home_mean"),
        accuracy_home_calibrated=over("accuracy_home_calibrated_mean"),
        accuracy_home_control=over("accuracy_home_control_mean"),
        upload_bytes_total=over("upload_bytes_total"),
        seconds=over("seconds"),
        per_seed=accuracies,
    )

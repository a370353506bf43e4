"""A run directory or a comparison as a report reads it.

It may come from another machine, another version or a run that was killed: every file is
validated, so that the drawing code can trust its types.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedvtc_edge.errors import RunError
from fedvtc_edge.runs.comparisons import Comparison
from fedvtc_edge.runs.means import averages
from fedvtc_edge.runs.records import (
    ClientRecord,
    RoundRecord,
    Summary,
    read_record,
    read_rounds,
)

_AGAIN = "the file is damaged: restore it, or finish the run with 'fedvtc-edge run --resume DIR'"


@dataclass(frozen=True)
class Run:
    """A run as far as it is known.

    Args:
        summary: Of the whole run, or of what there is.
        rounds: In order.
        partial: Whether it is still on its way.
        served: Whether its clients were elsewhere, and kept their networks and images.
    """

    summary: Summary
    rounds: list[RoundRecord]
    partial: bool
    served: bool = False


def read_run(directory: Path) -> Run:
    """Read ``summary.json`` and ``metrics.jsonl``.

    A run without a summary is still in progress, or was stopped: what its rounds
    say stands in for the summary.

    Raises:
        RunError: ``directory`` is no run, or a file in it is damaged.
    """
    if not directory.is_dir():
        raise RunError(
            f"no run directory at '{directory}'",
            hint="give the folder that 'fedvtc-edge run' printed",
        )
    rounds = read_rounds(directory / "metrics.jsonl")
    path = directory / "summary.json"
    if path.is_file():
        summary = read_record(Summary, path)
        _check(summary, path)
        return Run(summary, rounds, partial=False, served=summary.elsewhere(directory))
    if (directory / "home.json").is_file():
        raise RunError(
            f"'{directory}' is of a client whose run is not over",
            hint="it is ready when 'fedvtc-edge join' says that the run is done",
        )
    if not rounds:
        raise RunError(
            f"nothing to report in '{directory}': neither summary.json nor a finished round",
            hint="give a run directory; 'fedvtc-edge run' makes one and "
            "'fedvtc-edge run --resume DIR' finishes one",
        )
    return Run(_so_far(rounds), rounds, partial=True)


def read_comparison(directory: Path) -> Comparison:
    """Read ``comparison.json``.

    Raises:
        RunError: the file is missing or damaged.
    """
    path = directory / "comparison.json"
    if not path.is_file():
        raise RunError(
            f"no comparison.json in '{directory}'",
            hint="give the folder that 'fedvtc-edge compare --out DIR' wrote",
        )
    comparison = read_record(Comparison, path)
    if not comparison.each:
        raise RunError(f"'{path}' compares no method", hint="run 'fedvtc-edge compare' again")
    return comparison


def _check(summary: Summary, path: Path) -> None:
    """What holds between keys: clients are told apart and count the same classes."""
    ids = [client.id for client in summary.clients]
    if not ids or len(set(ids)) != len(ids):
        raise RunError(f"'{path}': expected one or more clients with unlike ids", hint=_AGAIN)
    width = len(summary.classes)
    for client in summary.clients:
        if client.class_counts and len(client.class_counts) != width:
            raise RunError(
                f"'{path}': client {client.id!r} counts {len(client.class_counts)} classes, "
                f"expected {width}",
                hint=_AGAIN,
            )
    told = [client.recall for client in summary.clients]
    for recall in (summary.recall_mean, summary.recall_control, *told):
        if recall is not None and len(recall) != width:
            raise RunError(
                f"'{path}': recalls of {len(recall)} classes, expected {width}", hint=_AGAIN
            )


def _so_far(rounds: list[RoundRecord]) -> Summary:
    """A summary of an unfinished run: accuracies of the last round, costs of all rounds."""
    last = rounds[-1]
    known = {client.id: client for record in rounds for client in record.clients}
    spans: dict[str, list[ClientRecord]] = {name: [] for name in known}
    for client in (client for record in rounds for client in record.clients):
        spans[client.id].append(client)
    clients = []
    for name, client in known.items():
        spent = spans[name]
        update = {
            "upload_bytes": sum(c.upload_bytes or 0 for c in spent),
            "download_bytes": sum(c.download_bytes or 0 for c in spent),
            "seconds": sum(c.seconds or 0.0 for c in spent),
        }
        clients.append(client.model_copy(update=update))
    means = averages(clients)
    summary = Summary(
        clients=clients,
        rounds=len(rounds),
        accuracy_mean=last.accuracy_mean,
        accuracy_worst=means["accuracy_worst"],
        accuracy_absent_classes_mean=means["accuracy_absent_classes_mean"],
        accuracy_calibrated_mean=last.accuracy_calibrated_mean,
        accuracy_local_only_mean=last.accuracy_local_only_mean,
        upload_bytes_total=sum(client.upload_bytes or 0 for client in clients),
        download_bytes_total=sum(client.download_bytes or 0 for client in clients),
        seconds=sum(record.seconds or 0.0 for record in rounds),
        recall_control=last.recall_control,
    )
    return summary.model_copy(
        update={key: value for key, value in means.items() if getattr(summary, key) is None}
    )

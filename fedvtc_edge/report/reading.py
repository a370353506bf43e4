"""Reads a run directory back, believing nothing until it is checked.

A run directory may come from another machine, another version or a run that was
killed; so every file is validated here and the drawing code can trust its types.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from fedvtc_edge.errors import RunError
from fedvtc_edge.runs.records import (
    Comparison,
    Record,
    RoundRecord,
    Summary,
)

SCHEMA = 1

_R = TypeVar("_R", bound=Record)


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
    """Reads ``summary.json`` and ``metrics.jsonl``.

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
    rounds = _read_rounds(directory / "metrics.jsonl")
    path = directory / "summary.json"
    if path.is_file():
        summary = _parse(Summary, _read_document(path), path)
        _check(summary, path)
        elsewhere = summary.engine == "flower" and not summary.home
        served = elsewhere and not any(directory.glob("clients/*/classifier.safetensors"))
        return Run(summary, rounds, partial=False, served=served)
    if (directory / "home.json").is_file():
        raise RunError(
            f"'{directory}' is the home of a client whose run is not over",
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
    """Reads ``comparison.json``.

    Raises:
        RunError: the file is missing or damaged.
    """
    path = directory / "comparison.json"
    if not path.is_file():
        raise RunError(
            f"no comparison.json in '{directory}'",
            hint="give the folder that 'fedvtc-edge compare --out DIR' wrote",
        )
    comparison = _parse(Comparison, _read_document(path), path)
    if not comparison.methods:
        raise RunError(f"'{path}' compares no method", hint="run 'fedvtc-edge compare' again")
    return comparison


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"cannot read '{path}': {error}", hint=_AGAIN) from error


_AGAIN = "the file is damaged: restore it, or finish the run with 'fedvtc-edge run --resume DIR'"


def _read_document(path: Path) -> dict[str, Any]:
    """One JSON object of a schema that this version knows."""
    try:
        document = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise RunError(f"'{path}' is not JSON: {error}", hint=_AGAIN) from error
    if not isinstance(document, dict):
        raise RunError(
            f"'{path}' holds a {type(document).__name__}, expected an object", hint=_AGAIN
        )
    if document.get("schema", SCHEMA) != SCHEMA:
        raise RunError(
            f"'{path}' has schema {document['schema']!r}, this version reads {SCHEMA}",
            hint="draw the report with the fedvtc-edge version that made the run",
        )
    return document


def _parse(kind: type[_R], document: Any, path: Path, line: int | None = None) -> _R:
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        at = f"'{path}'" if line is None else f"'{path}' line {line}"
        raise RunError(
            f"{at}: {where} is {first['input']!r:.80}: {first['msg']}", hint=_AGAIN
        ) from error


def _read_rounds(path: Path) -> list[RoundRecord]:
    """Rounds in order; a resumed run may have written a round twice, the later line holds."""
    if not path.is_file():
        return []
    lines = [line for line in _read_text(path).split("\n") if line.strip()]
    rounds: dict[int, RoundRecord] = {}
    for number, line in enumerate(lines, start=1):
        try:
            document = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break  # the process died while it wrote: the round counts as not done
            raise RunError(f"'{path}' line {number} is not JSON: {error}", hint=_AGAIN) from error
        record = _parse(RoundRecord, document, path, number)
        rounds[record.round] = record
    return [rounds[number] for number in sorted(rounds)]


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


def _so_far(rounds: list[RoundRecord]) -> Summary:
    """A summary of an unfinished run: accuracies of the last round, costs of all rounds."""
    last = rounds[-1]
    known = {client.id: client for record in rounds for client in record.clients}
    clients = []
    for name, client in known.items():
        spent = [c for record in rounds for c in record.clients if c.id == name]
        update = {
            "upload_bytes": sum(c.upload_bytes or 0 for c in spent),
            "download_bytes": sum(c.download_bytes or 0 for c in spent),
            "seconds": sum(c.seconds or 0.0 for c in spent),
        }
        clients.append(client.model_copy(update=update))
    accuracies = [client.accuracy for client in clients if client.accuracy is not None]
    absent = [c.accuracy_absent_classes for c in clients if c.accuracy_absent_classes is not None]
    return Summary(
        clients=clients,
        rounds=len(rounds),
        accuracy_mean=last.accuracy_mean,
        accuracy_worst=min(accuracies, default=None),
        accuracy_absent_classes_mean=sum(absent) / len(absent) if absent else None,
        accuracy_calibrated_mean=last.accuracy_calibrated_mean,
        accuracy_local_only_mean=last.accuracy_local_only_mean,
        upload_bytes_total=sum(client.upload_bytes or 0 for client in clients),
        download_bytes_total=sum(client.download_bytes or 0 for client in clients),
        seconds=sum(record.seconds or 0.0 for record in rounds),
    )

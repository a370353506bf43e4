"""A finished run to one bundle per client, each accepted only once the runtime agrees."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedvtc_edge.errors import FedVTCError, ParityError, RunError
from fedvtc_edge.progress import Progress, SilentProgress
from fedvtc_edge.runs.directory import version
from fedvtc_edge.runs.finished import FinishedRun
from fedvtc_edge.storage.atomic import new_folder, recover_folder
from fedvtc_edge.training.compute import deterministic

from .building import Builder, task_of
from .manifest import Manifest
from .refreshing import write_manifest
from .verification import verify

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_PATIENCE_S = 300


def export(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    clients: Sequence[str] | None = None,
    int8: bool = False,
    signing_key: Ed25519PrivateKey | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write ``out/CLIENT/`` for every client of a finished run.

    A bundle appears under its name only when it is complete: its graphs compute
    what torch computes, its accuracy on the run's test set is the run's, and a
    fresh process without torch has used it. The home of a client without a test set
    has no accuracy; its graphs are compared on what the client paints instead.
    Bundles of the same run that are there already, from an export that was cut off,
    are kept.

    Args:
        run: The run directory, or the home of a client that joined one.
        out: New or empty folder, or one of an earlier export of the same run.
        clients: Ids; None takes all.
        int8: Add int8 variants, calibrated with synthesised images.
        signing_key: Ed25519 key that signs the manifests.
        progress: Told of each client; None is silent.

    Returns:
        What was written and measured, as ``export --json`` prints it.

    Raises:
        RunError: No finished run there, one whose networks stayed with its clients, or
            ``out`` holds something else.
        DataError: The run's data set is no longer there: parity needs its test images.
        ParityError: onnxruntime does not compute what torch computes.
    """
    finished, folder = FinishedRun.open(Path(run)), Path(out)
    finished.need_networks()
    wanted = tuple(dict.fromkeys(clients)) if clients else finished.clients
    for client in wanted:
        finished.record(client)
    _check_out(folder, finished)
    progress = progress or SilentProgress()
    entries = []
    with deterministic():
        builder = Builder(finished, task_of(finished), int8=int8)
        # All of them before anything is written: a refusal touches nothing.
        kept = {
            client: _already(folder / client, builder, client, signing_key) for client in wanted
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"cannot write {folder}: {error.strerror}", hint="choose another --out"
            ) from None
        progress.start(len(wanted), "export")
        try:
            for client in wanted:
                target, manifest = folder / client, kept[client]
                if manifest is None:
                    with new_folder(target) as scratch:
                        manifest = builder.build(client, scratch)
                        write_manifest(scratch, manifest, signing_key)
                        _use_without_torch(scratch)
                entries.append(_entry(target, manifest))
                progress.advance(client)
        finally:
            progress.close()
    return {
        "schema": 1,
        "version": version(),
        "run": str(run),
        "out": str(out),
        "evaluated_on": finished.summary.evaluated_on,
        "signed_by": _fingerprint(signing_key),
        "bundles": entries,
    }


def _check_out(folder: Path, finished: FinishedRun) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file", hint="choose a new folder for --out")
    if not folder.exists():
        return
    for client in finished.clients:
        recover_folder(folder / client)
    strange = sorted({entry.name for entry in folder.iterdir()} - set(finished.clients))
    if strange:
        raise RunError(
            f"{folder} is not empty: it holds {strange[0]}", hint="choose a new folder for --out"
        )


def _already(
    target: Path, builder: Builder, client: str, key: Ed25519PrivateKey | None
) -> Manifest | None:
    """The manifest of a bundle that this very export would write again, or None."""
    if not target.exists():
        return None
    try:
        verified = verify(target, key.public_key() if key else None)
        same = builder.would_be(verified.manifest, client) and verified.signed == (key is not None)
    except FedVTCError as error:
        raise RunError(
            f"{target} is not a bundle of this export: {error}",
            hint="choose a new folder for --out",
        ) from None
    if not same:
        raise RunError(
            f"{target} is a bundle of another run, client or set of options",
            hint="choose a new folder for --out",
        )
    return verified.manifest


def _use_without_torch(folder: Path) -> None:
    """A graph that crashes the runtime must crash a process that nobody misses."""
    try:
        done = subprocess.run(  # noqa: S603  (our own module, on a folder that we wrote)
            [sys.executable, "-m", "fedvtc_edge.export.smoke", str(folder)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        problem = f"it was not done after {_PATIENCE_S} s"
    else:
        if done.returncode == 0:
            return
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        problem = lines[-1]
    raise ParityError(
        f"{folder.name}: a fresh process could not use the bundle: {problem}",
        hint="nothing was exported; install the versions that pyproject.toml asks for",
    )


def _entry(target: Path, manifest: Manifest) -> dict[str, Any]:
    return {
        "client": manifest.client,
        "bundle": str(target),
        "architecture": manifest.architecture,
        "size_bytes": {
            f"{name}{'' if variant == 'fp32' else '.' + variant}": _size(manifest, file)
            for name, graph in manifest.graphs.items()
            for variant, file in graph.variants.items()
        },
        "total_bytes": sum(file.size for file in manifest.files.values()),
        "opset": {name: graph.opset for name, graph in manifest.graphs.items()},
        "accuracy": manifest.accuracy,
        "parity": manifest.parity,
        "int8": manifest.int8,
    }


def _size(manifest: Manifest, file: str) -> int:
    files: Mapping[str, Any] = manifest.files
    return sum(files[name].size for name in (file, f"{file}.data") if name in files)


def _fingerprint(key: Ed25519PrivateKey | None) -> str | None:
    if key is None:
        return None
    from fedvtc_edge.sealing.signing import fingerprint

    return fingerprint(key.public_key())

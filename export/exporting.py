"""A finished run to one bundle per client, each accepted only once the runtime agrees."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from fedvtc_edge.errors import FedVTCError, ParityError, RunError
from fedvtc_edge.models import ImageShape
from fedvtc_edge.plugins import METHODS
from fedvtc_edge.privacy.mechanism import mechanism_of
from fedvtc_edge.progress import Progress, SilentProgress
from fedvtc_edge.runs.directory import version
from fedvtc_edge.runs.finished import FinishedRun
from fedvtc_edge.sealing.signing import fingerprint
from fedvtc_edge.statistics.class_prior import class_prior
from fedvtc_edge.storage.atomic import new_folder, recover_folder
from fedvtc_edge.training.compute import deterministic
from fedvtc_edge.training.knowledge import CODE_STD, class_codes

from . import inputs
from .codes import Codes
from .extractors import REFERENCE, AnchorFiles, write_anchor
from .graphs import CommonHead, Model, Nearest
from .manifest import STATISTICS, File, Image, Manifest, Privacy, write_manifest
from .task import ClassificationTask, task_of
from .verification import verify
from .writing import GraphWriter

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Held = Literal["embedded", "by-reference"]

_PATIENCE_S = 300
_USE_ALL = "import sys; from fedvtc_edge.export.bundle import use_all; use_all(*sys.argv[1:])"
TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")


def export(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    clients: Sequence[str] | None = None,
    int8: bool = False,
    with_prior: bool = False,
    extractor: Held = "embedded",
    signing_key: Ed25519PrivateKey | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write ``out/CLIENT/`` for every client of a finished run.

    A bundle appears under its name only when it is complete: its graphs compute
    what torch computes, its accuracy on the run's test set is the run's, and a
    fresh process without torch has used it. The home of a client without a test set
    has no accuracy; its graphs are compared on images that the client synthesises instead.
    Bundles of the same run that are there already, from an export that was cut off,
    are kept.

    Args:
        run: The run directory, or the home of a client that joined one.
        out: New or empty folder, or one of an earlier export of the same run.
        clients: Ids; None takes all.
        int8: Add int8 variants, calibrated with synthesised images.
        with_prior: Add each client's class prior, which tells how many examples of which
            class it has, for classification at its home.
        extractor: ``embedded``: each bundle holds the graph of the frozen extractor;
            ``by-reference``: it is written once, to ``out/extractor.onnx``, and each bundle
            names it by its hash.
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
    wanted = tuple(dict.fromkeys(clients)) if clients else finished.trained
    for client in wanted:
        finished.record(client)
    by_reference = extractor == "by-reference"
    _check_out(folder, finished, by_reference)
    progress = progress or SilentProgress()
    entries = []
    with deterministic(), tempfile.TemporaryDirectory() as shared:
        builder = Builder(
            finished,
            task_of(finished),
            int8=int8,
            with_prior=with_prior,
            shared=Path(shared),
            by_reference=by_reference,
        )
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
            reference = None
            if by_reference and not all(kept.values()):
                reference = folder / REFERENCE
                builder.anchor_files.keep(reference)
            for client in wanted:
                target, manifest = folder / client, kept[client]
                if manifest is None:
                    with new_folder(target) as scratch:
                        manifest = builder.build(client, scratch)
                        write_manifest(scratch, manifest, signing_key)
                        _use_without_torch(scratch, reference)
                entries.append(_entry(target, manifest))
                progress.advance(client)
        finally:
            progress.close()
    return {
        "schema": 1,
        "version": version(),
        "run": str(run),
        "out": str(out),
        "extractor": str(folder / REFERENCE) if by_reference else None,
        "evaluated_on": finished.summary.evaluated_on,
        "signed_by": fingerprint(signing_key.public_key()) if signing_key else None,
        "privacy": privacy_of(finished).document(),
        "bundles": entries,
    }


def _check_out(folder: Path, finished: FinishedRun, by_reference: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file", hint="choose a new folder for --out")
    if not folder.exists():
        return
    for client in finished.clients:
        recover_folder(folder / client)
    expected = {*finished.clients, *((REFERENCE,) if by_reference else ())}
    strange = sorted({entry.name for entry in folder.iterdir()} - expected)
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


def _use_without_torch(folder: Path, extractor: Path | None) -> None:
    """A graph that crashes the runtime must crash a process that nobody misses."""
    given = () if extractor is None else (str(extractor),)
    try:
        done = subprocess.run(  # noqa: S603  (our own words, on a folder that we wrote)
            [sys.executable, "-c", _USE_ALL, str(folder), *given],
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
            f"{name}{'' if variant == 'fp32' else '.' + variant}": manifest.size_of(file)
            for name, graph in manifest.graphs.items()
            for variant, file in graph.variants.items()
        },
        "total_bytes": sum(file.size for file in manifest.files.values()),
        "opset": {name: graph.opset for name, graph in manifest.graphs.items()},
        "accuracy": manifest.accuracy,
        "parity": manifest.parity,
        "int8": manifest.int8,
    }


def privacy_of(finished: FinishedRun) -> Privacy:
    """Claim of a run, for its bundles; nothing where its settings claim nothing."""
    config, summary = finished.config, finished.summary
    mechanism = mechanism_of(config)
    return Privacy(
        mode=config.privacy.mode,
        epsilon=summary.epsilon,
        delta=summary.delta,
        unit=summary.privacy_unit,
        relation=mechanism.claim.neighbouring if mechanism else None,
        covers=mechanism.covers if mechanism else None,
        covers_models=mechanism.protects_models if mechanism else None,
    )


class Builder:
    """Builder of the bundles of one run.

    Args:
        int8: Whether to add int8 variants.
        shared: Empty folder for what all bundles have in common.
        with_prior: Whether to add each client's class prior.
        by_reference: Whether bundles name the extractor's graph and do not hold it.

    Raises:
        RunError: int8 is wanted and there is nothing to calibrate it with, the
            published statistics do not fit the settings, the prior is what the run's
            privacy mode hides, or a reference is wanted to an extractor that it has not.
    """

    def __init__(
        self,
        finished: FinishedRun,
        data: ClassificationTask,
        *,
        int8: bool,
        shared: Path,
        with_prior: bool = False,
        by_reference: bool = False,
    ) -> None:
        size, _, channels = data.image_shape
        self.with_prior = with_prior
        self.finished, self.data, self.int8 = finished, data, int8
        self._shared, self.by_reference = shared, by_reference
        self.shape = ImageShape(size, channels)
        self.latent = finished.config.method.latent
        self.form = Image(
            size=size,
            channels=1 if channels == 1 else 3,
            colour="grey" if channels == 1 else "rgb",
            resize="bilinear, antialiased, stretched to the square",
        )
        self.published = finished.published()
        self.anchor = finished.anchor(self.shape)
        if self.published is not None:
            width = self.anchor.width if self.anchor else self.latent
            if self.published.mean.shape != (data.classes, width):
                raise RunError(
                    f"{finished.path}: statistics of shape {self.published.mean.shape} "
                    f"do not fit {data.classes} classes of {width} features",
                    hint="the run is damaged, or its data set has changed: run it again",
                )
        self.method = METHODS.find(finished.config.method.name)
        if not self.method.trains and not self.method.common_head:
            raise RunError(
                f"method.name = {finished.config.method.name!r} trains no networks to export",
                hint="export a run of method.name = fedvtc or statistics",
            )
        if not self.method.standalone:
            raise RunError(
                f"clients of method.name = {finished.config.method.name!r} classify with two "
                "networks together, and a bundle holds one",
                hint="export a run of another method, such as fedvtc",
            )
        if with_prior and self._classes_are_private:
            raise RunError(
                f"privacy.mode = {finished.config.privacy.mode!r} covers the bundle, and how many "
                "examples of which class a client has would be in it without noise",
                hint="leave out --with-prior",
            )
        if by_reference and self.anchor is None:
            raise RunError(
                f"--extractor by-reference, and {finished.path} has no frozen extractor",
                hint='leave it out, or export a run of method.share = "anchored"',
            )
        if int8 and not self.method.has_decoder:
            raise RunError(
                f"int8 is calibrated with synthesised images, and "
                f"{finished.config.method.name!r} synthesises none",
                hint="leave out --int8, or export a run of method.name = fedvtc",
            )

    def would_be(self, manifest: Manifest, client: str) -> bool:
        """True if :meth:`build` would write this manifest's bundle again."""
        return (
            manifest.run == self.finished.digest
            and manifest.client == client
            and manifest.revision == 0
            and bool(manifest.int8) == self.int8
            and manifest.prior == self._prior(client)
            and (manifest.referenced is not None) == self.by_reference
            and manifest.source == self._source(client)
            and manifest.tools == tools()
        )

    def build(self, client: str, folder: Path) -> Manifest:
        """Write a client's graphs and statistics into ``folder`` and describe them.

        Raises:
            ParityError: onnxruntime does not compute what torch computes, or the
                accuracy is not the run's.
        """
        record, codes = self.finished.record(client), self._codes()
        writer = GraphWriter(
            folder,
            self.form,
            codes,
            classes=self.data.classes,
            latent=self.latent,
            images=self.data.x_test,
            labels=self.data.y_test,
        )
        model = self._model(client)
        decoder = self.finished.decoder(client, self.shape)
        if self.int8 and decoder is None:
            raise RunError(
                f"int8 is calibrated with synthesised images, and {client} "
                f"({record.architecture}) synthesises none",
                hint="leave out --int8, or export other clients: --client ID",
            )
        if decoder is not None and codes is not None:
            writer.synthesise(decoder)
        writer.classifier(model, record.accuracy)
        if codes is not None:
            (folder / STATISTICS).write_bytes(codes.to_bytes())
            writer.files.append(STATISTICS)
            if decoder is not None:
                writer.synthesizer(decoder)
        if self.anchor is not None:
            writer.anchor(self.anchor_files, record.accuracy_calibrated)
        prior = self._prior(client)
        if prior is not None:
            writer.at_home(prior, self._counts(client), record)
        if self.int8:
            writer.quantized()
        summary = self.finished.summary
        return Manifest(
            schema=1,
            kind="fedvtc-edge bundle",
            client=client,
            architecture=record.architecture or "",
            device=record.device,
            run=self.finished.digest,
            source=self._source(client),
            method=self.finished.config.method.name,
            share=summary.share,
            classes=self.data.class_names,
            latent=self.latent,
            anchor=self.anchor.width if self.anchor else None,
            extractor=self.anchor_files.described if self.anchor else None,
            image=self.form,
            noise=inputs.describe_noise(self.latent) if "synthesizer" in writer.graphs else None,
            files={name: File.of(folder / name) for name in sorted(writer.files)},
            graphs=writer.graphs,
            privacy=privacy_of(self.finished),
            prior=prior,
            accuracy=writer.accuracy,
            parity=writer.parity,
            int8=writer.int8,
            tools=tools(),
        )

    def _model(self, client: str) -> Model:
        """Classifier of a client: its own network, or what stands on published statistics."""
        if self.method.common_head:
            assert self.anchor is not None
            assert self.published is not None
            head = self.method.head(self.finished.config, self.published)
            return CommonHead(self.anchor, head, self.published.present)
        model = self.finished.classifier(client, self.shape, self.data.classes)
        if self.method.nearest_prototype and self.published is not None:
            return Nearest(model, self.published)
        return model

    @cached_property
    def anchor_files(self) -> AnchorFiles:
        """The run's frozen extractor as a graph, written once."""
        assert self.anchor is not None
        example = torch.zeros(2, *self.data.image_shape, dtype=torch.uint8)
        return write_anchor(
            self._shared,
            self.anchor,
            self.finished.config.method,
            self.form,
            {"images": example},
            by_reference=self.by_reference,
        )

    def _source(self, client: str) -> dict[str, str]:
        folder = self.finished.path / "clients" / client
        names: tuple[str, ...] = ("classifier.safetensors", "decoder.safetensors")
        if self.method.common_head:
            folder, names = self.finished.path, (STATISTICS,)
        return {name: File.of(folder / name).sha256 for name in names if (folder / name).exists()}

    @property
    def _classes_are_private(self) -> bool:
        """True if the run's ε covers which classes a client has."""
        mechanism = mechanism_of(self.finished.config)
        return mechanism is not None and mechanism.protects_models

    def _counts(self, client: str) -> list[int]:
        counts = self.finished.record(client).class_counts
        if not isinstance(counts, list) or len(counts) != self.data.classes:
            raise RunError(
                f"{self.finished.path}: {client} lacks counts of {self.data.classes} classes",
                hint="the run is damaged, or its data set has changed: run it again",
            )
        return counts

    def _prior(self, client: str) -> tuple[float, ...] | None:
        if not self.with_prior:
            return None
        return tuple(class_prior(self._counts(client)).tolist())

    def _codes(self) -> Codes | None:
        knowledge = self.published
        if knowledge is None:
            return None
        if self.anchor is None:
            mean, std = knowledge.mean.astype(np.float32), knowledge.std.astype(np.float32)
            return Codes(mean, std, knowledge.present, None)
        mean = class_codes(self.data.classes, self.latent).astype(np.float32)
        return Codes(mean, np.full_like(mean, CODE_STD), knowledge.present, knowledge)


def tools() -> dict[str, str]:
    """Versions of what makes bundles here."""
    return {"fedvtc-edge": version()} | {name: metadata.version(name) for name in TOOLS}

"""Finished runs whose releases are made anew, honestly or with a fault planted in their bytes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge import wire
from fedvtc_edge.attacks.adversary.trials import AuditedRun
from fedvtc_edge.data import load_data
from fedvtc_edge.models.extractor import in_chunks
from fedvtc_edge.privacy.ledger import Ledger
from fedvtc_edge.privacy.release import bounded_sums, clipped_upload, estimate
from fedvtc_edge.privacy.release_spec import ClientReleaseSpec
from fedvtc_edge.runs.finished import FinishedRun
from fedvtc_edge.wire.context import Context

Integers = NDArray[np.int64]
Noises = Mapping[str, Integers]
Fault = Callable[[dict[str, Integers]], Noises]
"""Honest noise of each client to what is released in its place."""


def no_noise(honest: dict[str, Integers]) -> Noises:
    return {name: np.zeros_like(noise) for name, noise in honest.items()}


def half_noise(honest: dict[str, Integers]) -> Noises:
    return {name: noise // 2 for name, noise in honest.items()}


def silent_client(honest: dict[str, Integers]) -> Noises:
    return {**honest, "client-01": np.zeros_like(honest["client-01"])}


def reused_noise(honest: dict[str, Integers]) -> Noises:
    return {**honest, "client-02": honest["client-00"]}


FAULTS: dict[str, Fault] = {
    "no noise": no_noise,
    "half noise": half_noise,
    "one silent client": silent_client,
    "reused noise": reused_noise,
}


@dataclass(frozen=True, eq=False)
class ReleasedRun:
    """A copy of a finished run of anchored releases, which may be written to."""

    path: Path

    @classmethod
    def copied(cls, run: Path, to: Path) -> ReleasedRun:
        return cls(Path(shutil.copytree(run, to)))

    @cached_property
    def audited(self) -> AuditedRun:
        run = FinishedRun.open(self.path)
        return AuditedRun(run, load_data(run.config))

    @cached_property
    def exact(self) -> dict[str, Integers]:
        """Sums of each client before noise."""
        audited, spec = self.audited, self.audited.spec
        assert spec is not None
        assert audited.anchor is not None
        about, made = audited.centre(audited.anchor), {}
        for client in audited.config.client_ids:
            where = audited.holdings[client]
            args = audited.labels[where], about
            if isinstance(spec, ClientReleaseSpec):
                features = in_chunks(audited.anchor, audited.images[where]).numpy()
                made[client] = clipped_upload(spec, features, *args)
            else:
                features = audited.embedded(audited.anchor, where).numpy()
                made[client] = bounded_sums(spec, features, *args)
        return made

    @property
    def masked(self) -> bool:
        return self.audited.config.transport.masking

    def file(self, client: str) -> Path:
        if self.masked:
            return self.path / "clients" / client / "anchor.release"
        return self.path / "server" / "round-0000" / f"{client}.anchor.upload"

    def drawn(self, draw: Callable[[float, int], Integers]) -> dict[str, Integers]:
        """Noise of each client."""
        spec: Any = self.audited.spec
        return {client: draw(spec.share, spec.size) for client in self.audited.config.client_ids}

    def release(self, noises: Noises) -> None:
        """Write each client's release with this noise, and the sum's publication under masks."""
        spec: Any = self.audited.spec
        ledger = Ledger(self.path / "ledger.json", self.audited.mechanism)
        ledger.begin()
        for client, noise in noises.items():
            context = wire.context_of(self.file(client).read_bytes())
            assert isinstance(context, Context)
            data = wire.encode_release(self.exact[client] + noise, context=context)
            self.file(client).write_bytes(data)
            ledger.record(0, client, "anchor", data)
        if self.masked:
            total: Integers = np.sum([self.exact[c] + n for c, n in noises.items()], axis=0)
            about = self.audited.centre(self.audited.anchor)
            published = wire.publish(estimate(spec, total, len(noises), about))
            (self.path / "statistics.safetensors").write_bytes(published)


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

"""Noise in the bytes that a finished run released: each release less what is exact in it.

A mechanism's code may be right and its run's bytes bare all the same. What a client released is
read as the server got it; the exact sums are made again from the run's data, whose features
are the same to the last digit. Of own features they are for a client's last upload, whose network
the run keeps; of those before, which training has moved on from, the exact sums are known in the
classes that a client lacks: they are zero.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvtc_edge import wire
from fedvtc_edge.errors import FedVTCError, RunError
from fedvtc_edge.federation.exchange import release_name
from fedvtc_edge.models.extractor import in_chunks
from fedvtc_edge.privacy.ledger import Ledger
from fedvtc_edge.privacy.mechanism import Mechanism
from fedvtc_edge.privacy.release import (
    Integers,
    bounded_sums,
    check_norm,
    clipped_upload,
    estimate,
)
from fedvtc_edge.privacy.release_spec import Array, ClientReleaseSpec
from fedvtc_edge.privacy.release_store import SERVER
from fedvtc_edge.wire.context import Context

from ..adversary.trials import AuditedRun
from ..adversary.view import Map
from ..scoring.findings import Finding, decided
from .noise_tests import NoiseSample, correlations, repeated, tests_of

LEVEL = 1e-3
"""Chance that the bytes of an honest run are called wrong, by all tests of it together."""

KINDS = ("anchor", "features")

SUM = "sum"
"""Sender of what masks hide the parts of."""

NONE = 1e-3
"""Share of the claimed noise below which there is said to be none."""

HALF = 0.5
"""Share of the noise whose absence must have been noticed."""

_UNKNOWN = (
    "the extractor that its features are of is not kept (the last upload's is), and it has records "
    "of every class, so that no number of its release is known"
)
ATTACK = "own bytes"

_LARGEST = 2**26
_NOISE = "noise: "
_NAMED = 5
_AGREE = 1e-5
"""Relative difference by which a publication is still the one that releases add up to."""


@dataclass(frozen=True, eq=False)
class TestedRelease:
    """One release, and what its bytes say.

    Args:
        sender: Client, ``server``, or ``sum``.
        sample: Its noise, of the numbers whose exact values are known; None where there are
            none, for ``reason``.
        refused: What is wrong with it, in words.
        low: Lower limit of the noise that is there, as a share of the claimed; with ``high``,
            of all releases together wrong with a chance of :data:`LEVEL`.
    """

    sender: str
    round: int
    kind: str
    sample: NoiseSample | None = None
    reason: str = ""
    refused: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None

    @property
    def name(self) -> str:
        """Sender and round, in words."""
        who = "the masked sum" if self.sender == SUM else self.sender
        return f"{who}, round {self.round}" if self.round else who

    @property
    def passed(self) -> bool | None:
        """False: refused; True: less than half of the noise can be missing; None: undecided."""
        if self.refused:
            return False
        if self.low is None or self.high is None:
            return None
        return decided(1 - self.high, 1 - self.low, HALF)

    def plain(self) -> dict[str, Any]:
        """The release as ``report.json`` has it."""
        return {
            "sender": self.sender,
            "round": self.round,
            "kind": self.kind,
            "numbers": 0 if self.sample is None else len(self.sample.noise),
            "noise": None if self.sample is None else self.sample.share,
            "low": self.low,
            "high": self.high,
            "passed": self.passed,
            "refused": list(self.refused),
            "reason": self.reason,
        }


@dataclass(frozen=True, eq=False)
class OwnBytes:
    """All releases of a run, tested.

    Args:
        tests: Number of tests that share :data:`LEVEL`.
        reused: Pairs of releases whose noise is not independent, by name.
    """

    releases: Sequence[TestedRelease]
    tests: int
    reused: Sequence[tuple[str, str]]

    def plain(self) -> dict[str, Any]:
        """The section ``own_bytes`` of ``report.json``."""
        return {
            "level": LEVEL,
            "tests": self.tests,
            "reused": [list(pair) for pair in self.reused],
            "releases": [release.plain() for release in self.releases],
        }


def own_bytes(audited: AuditedRun) -> OwnBytes | None:
    """Test the bytes of a finished run against the noise that it claims.

    Guarantee: an honest run is found wrong with a chance of at most :data:`LEVEL`.

    Returns:
        None where the run claims no noise.

    Raises:
        RunError: The ledger does not say what was released.
    """
    if audited.mechanism is None:
        return None
    return tested(list(_Reader(audited, audited.mechanism).releases()))


def tested(releases: Sequence[TestedRelease]) -> OwnBytes:
    """Releases with what all tests say of them, at one level together (Bonferroni)."""
    samples = [release.sample for release in releases if release.sample is not None]
    each = {sample.name: tests_of(sample) for sample in samples}
    # A masked sum is made of the others: it is compared with none of them.
    alone = [r.sample for r in releases if r.sample is not None and r.sender != SUM]
    pairs = correlations(alone)
    number = sum(map(len, each.values())) + len(pairs)
    limit = LEVEL / max(number, 1)
    reused = dict.fromkeys(repeated(alone))
    reused |= dict.fromkeys((a, b) for a, b, chance in pairs if chance <= limit)
    judged = []
    for release in releases:
        sample, refused = release.sample, list(release.refused)
        if sample is None:
            judged.append(release)
            continue
        odd = sorted(name for name, chance in each[sample.name].items() if chance <= limit)
        refused += [_NOISE + ", ".join(odd)] if odd else []
        low, high = sample.interval(LEVEL / len(samples))
        judged.append(replace(release, refused=tuple(refused), low=low, high=high))
    return OwnBytes(judged, number, list(reused))


class _Reader:
    """The releases of one run, as they lie in its folder."""

    def __init__(self, audited: AuditedRun, mechanism: Mechanism) -> None:
        self.audited, self.mechanism, self.spec = audited, mechanism, mechanism.spec
        self.path = audited.run.path
        ledger = Ledger(self.path / "ledger.json", mechanism)
        ledger.reopen()
        self.entries = [entry for entry in ledger.entries if entry["kind"] in KINDS]
        self.masked = audited.config.transport.masking

    def releases(self) -> Iterator[TestedRelease]:
        """All that the ledger or the server's folder knows of, and masked sums."""
        known = {(e["round"], e["kind"], e["client"]): e["sha256"] for e in self.entries}
        places = sorted({*known, *self._received()})
        exchanges: dict[tuple[int, str], list[TestedRelease]] = {}
        for place in places:
            number, kind, sender = place
            release = self._tested(sender, number, kind, known.get(place))
            exchanges.setdefault((number, kind), []).append(release)
            if release.sample is not None or release.reason or release.refused:
                yield release
        for (number, kind), made in exchanges.items():
            if self.masked:
                yield self._sum(number, kind, made)
            elif self.mechanism.noised_by_server and SERVER not in {r.sender for r in made}:
                reason = "the server's noised sum is not in the run's folder"
                yield TestedRelease(SERVER, number, kind, reason=reason)
        if not places:
            yield TestedRelease(SERVER, 0, KINDS[0], reason="the run released nothing")

    def _received(self) -> Iterator[tuple[int, str, str]]:
        """Round, kind and sender of what lies under ``server/``."""
        for path in (self.path / "server").glob("round-*/*.upload"):
            sender, _, kind = path.name.removesuffix(".upload").rpartition(".")
            number = path.parent.name.removeprefix("round-")
            if kind in KINDS and number.isdecimal():
                yield int(number), kind, sender

    def _tested(self, sender: str, number: int, kind: str, digest: str | None) -> TestedRelease:
        """One release: its bytes, and its noise where it is to have any."""
        blank = TestedRelease(sender, number, kind)
        try:
            data = self._bytes(sender, number, kind)
            vector = self._decoded(data, sender, number, kind)
        except FedVTCError as error:
            return replace(blank, reason=str(error))
        if digest != hashlib.sha256(data).hexdigest():
            said = "the ledger has other bytes" if digest else "it is not in the ledger"
            blank = replace(blank, refused=(said,))
        if self.mechanism.noised_by_server and sender != SERVER:
            return self._clipped(blank, vector)
        try:
            exact = self._exact(blank)
        except FedVTCError as error:
            return replace(blank, reason=str(error))
        places = self._lacking(sender) if exact is None else None
        noise = vector[places] if exact is None else vector - exact
        if not len(noise):
            return replace(blank, reason=_UNKNOWN)
        return replace(blank, sample=NoiseSample(blank.name, noise, float(self.spec.share), places))

    def _clipped(self, blank: TestedRelease, vector: Integers) -> TestedRelease:
        """An upload to a trusted server, which is to have no noise and no more than the norm."""
        try:
            check_norm(self.spec, vector)
        except FedVTCError as error:
            return replace(blank, refused=(*blank.refused, str(error)))
        return blank

    def _bytes(self, sender: str, number: int, kind: str) -> bytes:
        upload = self.path / "server" / f"round-{number:04d}" / f"{sender}.{kind}.upload"
        # Under masks nobody but the client ever had it.
        name = f"{release_name(Context('0' * 32, number, sender, kind))}.release"
        path = self.path / "clients" / sender / name if self.masked else upload
        try:
            if path.stat().st_size > _LARGEST:
                raise RunError(f"{path.name} is too large", hint="the run is damaged")
            return path.read_bytes()
        except OSError as error:
            where = path.relative_to(self.path)
            raise RunError(
                f"{where} cannot be read: {error.strerror}", hint="keep the run's folder whole"
            ) from None

    def _decoded(self, data: bytes, sender: str, number: int, kind: str) -> Integers:
        context = wire.context_of(data)
        if context is None or (context.sender, context.round, context.kind) != (
            sender,
            number,
            kind,
        ):
            raise RunError(f"an upload says that it is {context}", hint="the run is damaged")
        return wire.decode_release(data, size=self.spec.size, context=context)

    def _exact(self, release: TestedRelease) -> Integers | None:
        """The sums before noise; None of own networks that have changed since."""
        audited, spec = self.audited, self.spec
        if release.sender == SERVER:
            return self._uploaded(release.round, release.kind)
        if release.sender not in audited.holdings:
            raise RunError(f"no client {release.sender}", hint="the run is damaged")
        extract = self._extractor(release)
        if extract is None:
            return None
        where, about = audited.holdings[release.sender], self._centre(release.kind)
        labels = audited.labels[where]
        if isinstance(spec, ClientReleaseSpec):
            features = in_chunks(extract, audited.images[where]).numpy()
            return clipped_upload(spec, features, labels, about)
        features = audited.embedded(extract, where).numpy()
        return bounded_sums(spec, features, labels, about)

    def _centre(self, kind: str) -> Array:
        """The public centre that the sums are about, [m]; of own features the origin."""
        if kind == "anchor":
            return self.audited.centre(self.audited.anchor)
        return np.zeros(self.spec.width)

    def _extractor(self, release: TestedRelease) -> Map | None:
        """Extractor of a release's features: the anchor, or the network kept at the last upload."""
        if release.kind == "anchor":
            return self.audited.anchor
        kept = self.audited.run.has_uploaded(release.sender)
        if not kept or release.round != self._last[release.sender]:
            return None
        return self.audited.uploaded(release.sender)

    @cached_property
    def _last(self) -> dict[str, int]:
        """Round of each client's last upload of own features, by ledger and folder together."""
        last: dict[str, int] = {}
        known = {(e["round"], e["kind"], e["client"]) for e in self.entries}
        for number, kind, sender in {*known, *self._received()}:
            if kind == "features":
                last[sender] = max(number, last.get(sender, 0))
        return last

    def _lacking(self, client: str) -> NDArray[np.bool_]:
        """Numbers of a release that are of classes without a record."""
        counts, sums, seconds = self.spec.sizes
        labels = self.audited.labels[self.audited.holdings[client]]
        absent = np.bincount(labels, minlength=counts) == 0
        rest = np.zeros(seconds, bool)
        return np.concatenate([absent, np.repeat(absent, sums // counts), rest])

    def _uploaded(self, number: int, kind: str) -> Integers:
        """Sum of the clipped uploads that counted, as the server got them."""
        total = np.zeros(self.spec.size, np.int64)
        for at, what, sender in self._received():
            if (at, what) != (number, kind) or sender == SERVER:
                continue
            if (at, what, sender) in self._refusals:
                continue
            total += self._decoded(self._bytes(sender, at, what), sender, at, what)
        return total

    @cached_property
    def _refusals(self) -> set[tuple[int, str, str]]:
        """Uploads that the server did not count."""
        path = self.path / "server" / "refusals.jsonl"
        try:
            lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            return {(line["round"], line["kind"], line["client"]) for line in lines}
        except FileNotFoundError:
            return set()
        except (OSError, ValueError, KeyError, TypeError):
            raise RunError(f"{path} is damaged", hint="keep the run's folder whole") from None

    def _sum(self, number: int, kind: str, made: Sequence[TestedRelease]) -> TestedRelease:
        """The masked sum of an exchange: that of its releases, if it is what was published."""
        release = TestedRelease(SUM, number, kind)
        spec, clients = self.spec, [one.sender for one in made]
        try:
            exact = [self._exact(one) for one in made]
            parts = [
                self._decoded(self._bytes(client, number, kind), client, number, kind)
                for client in clients
            ]
        except FedVTCError as error:
            return replace(release, reason=f"the sum cannot be made again: {error}")
        known = [one for one in exact if one is not None]
        if len(known) < len(clients):
            return replace(
                release, reason="not all extractors that its features are of are kept: the last are"
            )
        total: Integers = np.sum(parts, axis=0)
        if not self._was_published(total, len(clients), kind):
            return replace(
                release, reason="what was published is not made of the releases that are kept"
            )
        noise = total - np.sum(known, axis=0)
        scale = float(spec.share) * len(clients) ** 0.5
        return replace(release, sample=NoiseSample(release.name, noise, scale))

    def _was_published(self, total: Integers, clients: int, kind: str) -> bool:
        published = self.audited.run.published()
        if published is None:
            return False
        about = self._centre(kind)
        again = estimate(self.spec, total, clients, about)
        return all(
            np.allclose(ours, theirs, rtol=_AGREE, atol=_AGREE)
            for ours, theirs in (
                (again.count, published.count),
                (again.mean, published.mean),
                # Of own features a public constant is published in their place.
                *([(again.std, published.std)] if kind == "anchor" else []),
            )
        )


def with_own_bytes(
    found: Sequence[Finding], audited: AuditedRun
) -> tuple[list[Finding], dict[str, Any] | None]:
    """Findings, those on the run's own bytes first, and their section of ``report.json``.

    Raises:
        RunError: As :func:`own_bytes`.
    """
    own = own_bytes(audited)
    if own is None or audited.mechanism is None:
        return list(found), None
    view = "device" if audited.mechanism.noised_by_server else "server"
    return [*findings_of_bytes(own, view), *found], own.plain()


def findings_of_bytes(own: OwnBytes, view: str) -> list[Finding]:
    """Findings on a run's own bytes: what was refused, how much noise is there, what is untested.

    Args:
        view: Adversary from whom the noise is to hide.
    """
    common: dict[str, Any] = {"attack": ATTACK, "view": view, "group": "all releases"}
    wrong = sum(bool(release.refused) for release in own.releases) + len(own.reused)
    found = [
        Finding.fact(
            metric="refused",
            value=float(wrong),
            threshold=0.0,
            trials=own.tests,
            note="; ".join(_problems(own)) or "no test refuses the noise of any release",
            **common,
        )
    ]
    sampled = [(r.sample.share, r.low, r.high, r.name) for r in own.releases if r.sample]
    if sampled:
        share, _, _, name = min(sampled)
        found.append(
            Finding(
                metric="noise_missing",
                value=_share(1 - share),
                low=_share(1 - min(each[2] or 0.0 for each in sampled)),
                high=_share(1 - min(each[1] or 0.0 for each in sampled)),
                threshold=HALF,
                trials=len(sampled),
                decides_by="a wider release, or more classes",
                note=f"{name} has the least noise: {share:.0%} of what is claimed",
                **common,
            )
        )
    untested = [r for r in own.releases if r.sample is None and r.reason]
    if untested:
        reasons = list(dict.fromkeys(r.reason for r in untested))
        found.append(
            Finding(
                metric="untested",
                threshold=0.0,
                trials=len(untested),
                decides_by="the run's whole folder, with what each upload was measured by",
                note=f"{_names([r.name for r in untested])}: {'; '.join(reasons[:_NAMED])}",
                **common,
            )
        )
    return found


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _problems(own: OwnBytes) -> list[str]:
    """Faults in words, the worst first."""
    wrong = [r for r in own.releases if r.refused]
    bare = [r for r in wrong if r.sample is not None and r.sample.share < NONE]
    thin = [r for r in wrong if r not in bare and r.high is not None and r.high < 1]
    said = []
    if bare:
        said.append(f"the run's own bytes carry no noise: {_names([r.name for r in bare])}")
    if thin:
        least = min(r.sample.share for r in thin if r.sample is not None)
        names = _names([r.name for r in thin])
        said.append(f"the run's own bytes carry {least:.0%} of the claimed noise: {names}")
    if own.reused:
        pairs = [f"{first} and {second}" for first, second in own.reused]
        said.append(f"noise was used twice: {_names(pairs)}")
    rest = [(r.name, why) for r in wrong for why in r.refused if not why.startswith(_NOISE)]
    rest += [(r.name, why) for r in wrong if r not in bare + thin for why in r.refused]
    said += [f"{name}: {why}" for name, why in dict.fromkeys(rest)][:_NAMED]
    return said


def _names(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")

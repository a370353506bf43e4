"""Replay of the release path on neighbouring data, with the noise draw frozen.

The path is the run's own: measured, noised, encoded, entered in the ledger and kept on disk.
On two data sets that differ in one record (or one client) it must make the same calls, ask for
the same noise, and leave files and messages of the same lengths; and without the noise, which is
the same in both, it may move by no more than the sensitivity that is declared. (Re:cord-play, arXiv
2602.17454, replays on neighbours; here it is class statistics.)
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedvtc_edge import wire
from fedvtc_edge.config import Config
from fedvtc_edge.errors import FedVTCError, UsageError
from fedvtc_edge.federation.exchange import Exchange, SecureAggregatable
from fedvtc_edge.federation.federation import Federation
from fedvtc_edge.federation.methods import method_of
from fedvtc_edge.federation.server import Server
from fedvtc_edge.models import ImageShape, network
from fedvtc_edge.privacy import release as release_path
from fedvtc_edge.privacy.ledger import Ledger
from fedvtc_edge.privacy.mechanism import Mechanism, mechanism_of
from fedvtc_edge.privacy.release_spec import Array
from fedvtc_edge.privacy.release_store import SERVER, ReleaseStore
from fedvtc_edge.runs.directory import public_name
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.compute import Compute
from fedvtc_edge.transport.channel import Plain
from fedvtc_edge.transport.keyring import KeyRing
from fedvtc_edge.transport.masked_sum import MaskedSums

from ..adversary.observations import EVERYONE
from ..adversary.trials import AuditedRun
from ..scoring.findings import Finding

Integers = NDArray[np.int64]
Holding = tuple[Tensor, Tensor]
"""Images [N, channels, size, size] and classes [N] of one client."""

CLIENTS = 3
"""Clients that take part under masks, as few as they allow; without masks one is enough."""

MOST_RECORDS = 8
"""Records of each of them: what one more or less moves does not depend on the others."""

_SAMPLER = "discrete_gaussian"
_TRACED = ("privacy", "wire", "storage", "federation/exchange", "transport/masked_sum")
_PER_RECORD = {"contributions"}
"""Called once for so many records: the claim says that time tells of how many there are."""

HOSTILE: dict[str, Callable[[Tensor], Tensor]] = {
    "not a number": lambda image: torch.full_like(image, torch.nan),
    "infinite": lambda image: torch.full_like(image, torch.inf),
    "huge": lambda image: torch.full_like(image, 1e30),
    "negative and huge": lambda image: torch.full_like(image, -1e30),
    "tiny": lambda image: torch.full_like(image, 1e-30),
    "black": torch.zeros_like,
    "white": torch.ones_like,
    "far outside": lambda image: 1e4 * image,
    "half not a number": lambda image: torch.where(image > image.mean(), torch.nan, image),
}
"""Records that no honest client has, of one that is natural."""


@dataclass
class Recording:
    """Record of the release path in one world.

    Args:
        calls: Names of the functions that were called, in order.
        noise: Scale and size of each draw, in order.
        messages: Round, sender, kind and length of what left.
        files: Length of each file on disk, by name.
        released: Vectors whose neighbours the claim is about, by sender.
        refused: Why it stopped, or empty.
    """

    calls: list[str] = field(default_factory=list)
    noise: list[tuple[Fraction, int]] = field(default_factory=list)
    messages: list[tuple[int, str, str, int]] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    released: dict[str, Integers] = field(default_factory=dict)
    refused: str = ""


@dataclass(frozen=True)
class Replay:
    """Outcome of one pair of worlds.

    Args:
        name: What they differ in.
        moved: ‖q(D) − q(D′)‖ as a share of the declared sensitivity.
        violations: What differs and must not, in words.
    """

    name: str
    moved: float
    violations: tuple[str, ...]


def replayed(audited: AuditedRun) -> list[Replay]:
    """Play the release path of a run on its own records; see :func:`replay`."""
    labels = torch.from_numpy(audited.labels)
    own = [where[:MOST_RECORDS] for name, where in audited.holdings.items() if name != EVERYONE]
    enough = [(audited.images[where], labels[where]) for where in own if len(where)][:CLIENTS]
    return replay(audited.config, enough, audited.classes)


def with_replay(audited: AuditedRun) -> list[Finding]:
    """The finding on a run's release path.

    Raises:
        UsageError: A run that claims nothing.
    """
    if audited.mechanism is None:
        raise UsageError(
            "there is no claim whose release path could be replayed",
            hint="leave out --replay, or audit a run with a privacy.mode",
        )
    view = "device" if audited.mechanism.noised_by_server else "server"
    return findings_of_replay(replayed(audited), view)


def replay(config: Config, holdings: Sequence[Holding], classes: int) -> list[Replay]:
    """Play the release path of some settings on neighbouring worlds.

    Args:
        config: Settings with a claim.
        holdings: Records of some clients, :data:`CLIENTS` under masks; the first client's are
            what changes. Each needs one at least.
        classes: Number C of classes.

    Returns:
        One outcome per pair of worlds; none where nothing is claimed.
    """
    mechanism = mechanism_of(config, classes)
    if mechanism is None:
        return []
    holdings = holdings[: CLIENTS if config.transport.masking else 1]
    whole = _Path(config, classes, mechanism, holdings[0][0]).play
    whole(holdings)  # what is remembered from the first time on, noise multipliers for one
    usual = whole(holdings)
    return [
        _compared(name, mechanism, whole(base) if base is not holdings else usual, whole(changed))
        for name, base, changed in _worlds(mechanism, holdings)
    ]


def findings_of_replay(replays: Sequence[Replay], view: str) -> list[Finding]:
    """Finding on all pairs of worlds: a fact, for no chance is in it."""
    wrong = [one for one in replays if one.violations]
    said = [f"{one.name}: {', '.join(one.violations)}" for one in wrong[:3]]
    moved = max((one.moved for one in replays), default=0.0)
    return [
        Finding.fact(
            attack="replay",
            view=view,
            metric="violations",
            value=float(len(wrong)),
            threshold=0.0,
            trials=len(replays),
            note="; ".join(said)
            or f"the release moves by {moved:.3f} of the declared sensitivity at most",
        )
    ]


def _worlds(
    mechanism: Mechanism, holdings: Sequence[Holding]
) -> Iterator[tuple[str, Sequence[Holding], Sequence[Holding]]]:
    """Pairs of worlds that are neighbours by the claim."""
    (images, labels), others = holdings[0], holdings[1:]
    nothing = (images[:0], labels[:0])
    made = {name: (make(images[:1]), labels[:1]) for name, make in HOSTILE.items()}
    if mechanism.unit == "client":
        yield "a client with its records, or without any", holdings, [nothing, *others]
        for name, (image, label) in made.items():
            bad = image.repeat(40, 1, 1, 1), label.repeat(40)
            yield f"a client of 40 records that are {name}", [bad, *others], [nothing, *others]
        many = images.repeat(20, 1, 1, 1), labels.repeat(20)
        yield "a client with all records twenty times", [many, *others], [nothing, *others]
        return
    yield "a natural record removed", holdings, [(images[1:], labels[1:]), *others]
    yield "the only record", [(images[:1], labels[:1]), *others], [nothing, *others]
    absent = sorted(set(range(mechanism.classes)) - set(labels.tolist()))[:1]
    for number in absent:
        made["the only one of its class"] = images[:1], torch.tensor([number])
    for name, (image, label) in made.items():
        more = torch.cat([images, image]), torch.cat([labels, label])
        yield f"a record that is {name}", holdings, [more, *others]


def _compared(name: str, mechanism: Mechanism, here: Recording, there: Recording) -> Replay:
    """Comparison of two worlds: what must be equal, and how far the release moved."""
    found = [f"refused: {one.refused}" for one in (here, there) if one.refused]
    for what, first, second in (
        ("calls", here.calls, there.calls),
        ("noise", here.noise, there.noise),
        ("messages", here.messages, there.messages),
        ("files", sorted(here.files.items()), sorted(there.files.items())),
    ):
        if first != second:
            found.append(f"{what} differ: {_first_difference(first, second)}")
    moved = 0.0
    declared = mechanism.sensitivity()
    for sender in sorted({*here.released, *there.released}):
        ours, theirs = here.released.get(sender), there.released.get(sender)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            found.append(f"{sender} releases another vector, or none")
            continue
        square = sum(int(step) ** 2 for step in (ours - theirs).tolist())
        moved = max(moved, float(Fraction(square) ** Fraction(1, 2) / declared))
        if square > declared**2:
            found.append(f"{sender} moves by {moved:.4g} of the declared sensitivity")
    return Replay(name, moved, tuple(found))


def _first_difference(first: Sequence[Any], second: Sequence[Any]) -> str:
    for ours, theirs in zip(first, second, strict=False):
        if ours != theirs:
            return f"{ours} and {theirs}"
    return f"{len(first)} and {len(second)} of them"


class _Path:
    """The release path of some settings, which can be gone again and again."""

    def __init__(self, config: Config, classes: int, mechanism: Mechanism, images: Tensor) -> None:
        self.config, self.classes, self.mechanism = config, classes, mechanism
        self.shape = ImageShape(images.shape[2], images.shape[1])
        name = config.clients.architectures[0]
        self.name, self.model = name, network(name, config, self.shape, classes=classes, seed=0)
        self.keys: KeyRing | None = None

    def play(self, holdings: Sequence[Holding]) -> Recording:
        """Go the path once, in a folder of its own."""
        made = Recording()
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            federation = self._federation(holdings, folder, made)
            method = method_of(self.config)(federation)
            number = int(self.mechanism.every_round)
            exchange = next(s.exchange for s in method.steps(number) if s.exchange is not None)
            try:
                with _recorded(made):
                    self._go(federation, exchange, number, folder, made)
            except FedVTCError as error:
                made.refused = str(error)
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    made.files[path.relative_to(folder).as_posix()] = path.stat().st_size
        return made

    def _federation(self, holdings: Sequence[Holding], folder: Path, made: Recording) -> Federation:
        config = self.config
        ids = config.client_ids[: len(holdings)]
        self.keys = self.keys or KeyRing(ids, None)
        # Not the one that was asked before: it remembers its claim.
        ledger = Ledger(folder / "ledger.json", mechanism_of(config, self.classes))
        ledger.begin()

        def recorder(number: int, sender: str, kind: str, data: bytes) -> None:
            made.messages.append((number, sender, kind, len(data)))

        transport = Plain()
        return Federation(
            config,
            [self._client(name, *own) for name, own in zip(ids, holdings, strict=True)],
            self.shape,
            self.classes,
            Compute(torch.device("cpu"), False),
            public_name(config, "0" * 32),
            Server(recorder),
            ReleaseStore(folder),
            transport,
            ledger.enter,
            MaskedSums(self.keys, transport, recorder) if config.transport.masking else None,
        )

    def _client(self, name: str, images: Tensor, labels: Tensor) -> Client:
        return Client(
            id=name,
            architecture=self.name,
            device_profile=None,
            images=images,
            labels=labels,
            classes=self.classes,
            model=self.model,
            decoder=None,
            settings=self.config.training,
            compute=Compute(torch.device("cpu"), False),
            seed=self.config.seed,
        )

    def _go(
        self,
        federation: Federation,
        exchange: Exchange[Any],
        number: int,
        folder: Path,
        made: Recording,
    ) -> None:
        """Uploads, or a masked sum, and what a trusted server releases of them."""
        about = federation.context(SERVER, number, exchange.kind)
        if federation.masked is not None:
            masked = cast(SecureAggregatable[Any], exchange)
            vectors = {}
            for client in federation.clients:
                own = replace(about, sender=client.id)
                vectors[client.id], noted = masked.vector(client, own)
                federation.enter([(own, noted)])
                made.released[client.id] = vectors[client.id]
            total = federation.masked.add(vectors, about, bound=masked.bound)
            made.released["the masked sum"] = total.vector
            return
        parts = []
        for client in federation.clients:
            own = replace(about, sender=client.id)
            upload = exchange.encode(client, own)
            federation.enter([(own, upload)])
            federation.server.recorder(number, client.id, exchange.kind, upload)
            parts.append(exchange.decode(upload, own))
            if not self.mechanism.noised_by_server:
                made.released[client.id] = parts[-1]
        if self.mechanism.noised_by_server:
            exchange.aggregate(parts, about)
            (kept,) = (folder / SERVER).glob("*.release")
            data, size = kept.read_bytes(), self.mechanism.spec.size
            made.released["the server"] = wire.decode_release(data, size=size, context=about)


@contextmanager
def _recorded(made: Recording) -> Iterator[None]:
    """Within it calls of the path are noted, and noise is noted and frozen.

    For one thread, and only here: nothing that leaves a run is made within it.
    """
    root = Path(release_path.__file__).parents[1]
    traced = tuple(str(root / part) for part in _TRACED)

    def frozen(scale: float | Fraction, size: int) -> Integers:
        made.noise.append((Fraction(scale), size))
        stream = np.random.default_rng(len(made.noise))
        noise: Array = stream.normal(0, float(scale), size)
        return np.rint(noise).astype(np.int64)

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(traced):
            return
        caller = frame.f_back.f_code.co_name if frame.f_back else ""
        if not code.co_qualname.endswith(">") and not {code.co_name, caller} & _PER_RECORD:
            made.calls.append(code.co_qualname)

    draw, before = vars(release_path)[_SAMPLER], sys.getprofile()
    setattr(release_path, _SAMPLER, frozen)
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(before)
        setattr(release_path, _SAMPLER, draw)

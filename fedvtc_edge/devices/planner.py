"""Plans: what fits a device before anything runs on it, and what each client then trains.

Everything is modelled and the same on every machine: phases are tried on a handful of
images, the runtimes' baselines are recorded constants.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fedvtc_edge.config import Config
from fedvtc_edge.data import partition
from fedvtc_edge.data.sources import survey
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.models import ImageShape, architectures
from fedvtc_edge.models.registry import ON_EXTRACTOR, find
from fedvtc_edge.seeding import derive_seed

from .baselines import torch_mb
from .footprint import (
    MB,
    Footprint,
    Mode,
    Use,
    needs,
    needs_bare,
    needs_bundle,
)
from .probes import has_decoder
from .profile import DeviceProfile, Figure

__all__ = ["DevicePlan", "Footprint", "PlanRow", "largest_batch", "needs", "plan", "smaller"]

LARGEST_BATCH = 65_536
"""Of those that are tried."""

_PER_EXAMPLE = (
    "privacy.mode = example: the gradients of single examples that it holds come on top of these"
)

_MODES: tuple[Mode, ...] = ("alternate", "joint")
_USES: tuple[Use, ...] = ("infer", "synthesise")


def memory_of(profile: DeviceProfile) -> Figure:
    """The memory that a device has for us: what is usable, or all of it where unknown."""
    return profile.memory_usable_mb or profile.memory_total_mb


def plan(config: Config, profile: DeviceProfile, *, batches: Sequence[int] = ()) -> DevicePlan:
    """Every architecture × batch × {train, infer, synthesise} × {alternate, joint}.

    The data set is only looked at: its images' size, its classes, and how many samples
    the largest client gets.

    Args:
        batches: Sizes to try; by default ``training.batch``, a quarter and four times of it.

    Raises:
        ConfigError: An unknown architecture, or a batch below 2.
        DataError: No such data set, or too few samples for so many clients.
    """
    for name in config.clients.architectures:
        find(name)
    wrong = [batch for batch in batches if not 2 <= batch <= LARGEST_BATCH]
    if wrong:
        raise ConfigError(
            f"batch {wrong[0]}: expected 2 to {LARGEST_BATCH}", hint="32 is the default"
        )
    seen = survey(config.data)
    parts = partition(
        seen.labels,
        clients=config.clients.count,
        classes=seen.classes,
        settings=config.data,
        seed=derive_seed(config.seed, "partition"),
    )
    own = config.training.batch
    sizes = tuple(sorted({*batches} or {max(own // 4, 2), own, min(4 * own, LARGEST_BATCH)}))
    made = DevicePlan(
        device=profile.name,
        runtime=profile.runtime,
        memory=memory_of(profile),
        shape=ImageShape(seen.size, seen.channels),
        classes=seen.classes,
        samples=max(map(len, parts)),
        batch=own,
        note=_PER_EXAMPLE if config.privacy.mode == "example" else "",
    )
    rows = tuple(_rows(config, profile, made, sizes))
    return replace(made, rows=rows, limit=_limit(config, profile, made))


def smaller(
    config: Config,
    profile: DeviceProfile,
    architecture: str,
    shape: ImageShape,
    classes: int,
    *,
    samples: int = 0,
) -> str | None:
    """The architecture itself where its training fits, else the largest that does.

    Args:
        config: The settings; those of its architectures that fit come before all others.
        classes: Number C of classes.
        samples: The client's own images, if known.

    Returns:
        A registered name; None where nothing fits, or no torch runs there.

    Raises:
        ConfigError: No such architecture.
    """
    find(architecture)
    if profile.runtime == "none":
        return None
    budget, batch = memory_of(profile).value * MB, config.training.batch
    if torch_mb(profile.arch).value * MB > budget:  # no need to try anything
        return None

    def need(name: str) -> Footprint:
        return needs(name, config, shape, classes, batch=batch, samples=samples, arch=profile.arch)

    if need(architecture).total <= budget:
        return architecture
    for names in (config.clients.architectures, architectures()):
        fitting = [name for name in dict.fromkeys(names) if need(name).total <= budget]
        if fitting:
            return max(fitting, key=lambda name: (need(name).weights, name))
    return None


def largest_batch(
    architecture: str,
    config: Config,
    profile: DeviceProfile,
    shape: ImageShape,
    classes: int,
    *,
    samples: int = 0,
) -> int | None:
    """The largest batch with which training in turn fits a device, up to ``LARGEST_BATCH``.

    Returns:
        At least 2; None where not even that fits.

    Raises:
        ConfigError: No such architecture.
    """
    budget = memory_of(profile).value * MB

    def too_large(batch: int) -> bool:
        need = needs(
            architecture, config, shape, classes, batch=batch, samples=samples, arch=profile.arch
        )
        return need.total > budget

    largest = bisect_left(range(LARGEST_BATCH + 1), True, lo=2, key=too_large) - 1
    return largest if largest >= 2 else None


def _rows(
    config: Config, profile: DeviceProfile, made: DevicePlan, batches: Sequence[int]
) -> Iterator[PlanRow]:
    budget, arch, samples = made.memory.value * MB, profile.arch, made.samples

    def row(batch: int, what: str, mode: str, need: Footprint) -> PlanRow:
        return PlanRow(name, batch, what, mode, need, need.total <= budget)

    for name in dict.fromkeys((*config.clients.architectures, *architectures())):
        given = name, config, made.shape, made.classes
        if profile.runtime == "none":
            for numbers, size in (("float32", 4), ("int8", 1)):
                yield row(1, "infer", numbers, needs_bare(*given, weight_bytes=size))
            continue
        for batch in batches:
            for mode in _MODES:
                need = needs(*given, batch=batch, mode=mode, samples=samples, arch=arch)
                yield row(batch, "train", mode, need)
            painted = has_decoder(config.method) and name not in ON_EXTRACTOR
            for use in _USES if painted else _USES[:1]:
                yield row(batch, use, "", needs_bundle(*given, use=use, batch=batch, arch=arch))


def _limit(config: Config, profile: DeviceProfile, made: DevicePlan) -> tuple[int, str] | None:
    """The largest batch with which anything trains, and what that is."""
    if profile.runtime == "none":
        return None
    given = config, profile, made.shape, made.classes
    found = ((largest_batch(name, *given, samples=made.samples), name) for name in architectures())
    return max(((batch, name) for batch, name in found if batch), default=None)


@dataclass(frozen=True)
class PlanRow:
    """One piece of work on one device.

    Args:
        architecture: A registered name.
        batch: Images in a training step, or asked of the bundle at once.
        what: ``train`` with torch, ``infer`` or ``synthesise`` with the bundle.
        mode: ``alternate`` or ``joint``; of a device without a runtime the type of the
            weights; else empty.
        needs: In bytes.
        fits: Whether that is no more than the device has.
    """

    architecture: str
    batch: int
    what: str
    mode: str
    needs: Footprint
    fits: bool


@dataclass(frozen=True)
class DevicePlan:
    """Work that fits one device, and the rows that it was read from.

    Args:
        device: Name of its profile.
        runtime: ``onnxruntime`` or ``none``.
        memory: What it has for us, in MB of 2^20 bytes.
        classes: Number C of classes.
        batch: ``training.batch``.
        rows: Every combination, the settings' own architectures first.
        limit: The largest batch with which anything trains, and the architecture.
        note: What the figures leave out; empty if nothing.
    """

    device: str
    runtime: str
    memory: Figure
    shape: ImageShape
    classes: int
    samples: int
    batch: int
    rows: tuple[PlanRow, ...] = ()
    limit: tuple[int, str] | None = None
    note: str = ""

    @property
    def largest(self) -> PlanRow | None:
        """The largest architecture whose training in turn fits, with its largest batch."""
        return max(self._training(), key=_extent, default=None)

    @property
    def bundle(self) -> tuple[str, int] | None:
        """The largest architecture whose bundle fits with both its graphs, and its bytes."""
        found = [
            (row.needs.weights, row.architecture, total)
            for row in self._rows("infer")
            if (total := self._both(row)) <= self.memory.value * MB
        ]
        return max(found)[1:] if found else None

    @property
    def verdict(self) -> tuple[str, ...]:
        """Verdict in one line or a few."""
        memory = f"{self.memory.value:g} MB"
        if self.runtime == "none":
            return (self._bare(memory),)
        if self.largest is None:
            least = min(self._rows("train", "alternate"), key=lambda row: row.needs.total)
            training = f"cannot train with torch (needs {_mb(least.needs.total)} MB of {memory})"
            if self.bundle is None:
                least_ = min(self._both(row) for row in self._rows("infer"))
                return (f"{training}; cannot run the bundle ({_mb(least_)} MB)",)
            name, total = self.bundle
            return (f"{training}; can run the bundle ({name}: {_mb(total)} MB)",)
        row = self.largest
        lines = [
            f"largest that fits: train {row.architecture}, batch {row.batch}, {row.mode} "
            f"({_mb(row.needs.total)} of {memory})"
        ]
        own = [fitting for fitting in self._training() if fitting.batch == self.batch]
        if row.batch < self.batch and own:
            at_own = max(own, key=_extent)
            lines.append(
                f"at training.batch = {self.batch}: train {at_own.architecture} "
                f"({_mb(at_own.needs.total)} of {memory})"
            )
        if self.bundle is not None:
            lines.append(f"can run the bundle ({self.bundle[0]}: {_mb(self.bundle[1])} MB)")
        return tuple(lines)

    @property
    def lines(self) -> tuple[str, ...]:
        """The verdict, and what has to be said beside it."""
        return (*self.verdict, *(line for line in (self.warning, self.note) if line))

    @property
    def warning(self) -> str:
        """That ``training.batch`` fits nothing though a smaller one would; empty if not."""
        if self.limit is None or self.limit[0] >= self.batch:
            return ""
        return (
            f"training.batch = {self.batch} fits no architecture; the largest that does is "
            f"{self.limit[0]} ({self.limit[1]})"
        )

    def document(self) -> dict[str, Any]:
        """For ``--json``; bytes are bytes, ``memory_mb`` is in 2^20 of them."""
        largest = self.largest
        return {
            "schema": 1,
            "device": self.device,
            "runtime": self.runtime,
            "memory_mb": self.memory.value,
            "memory_kind": self.memory.kind,
            "image": {"size": self.shape.size, "channels": self.shape.channels},
            "classes": self.classes,
            "samples": self.samples,
            "training_batch": self.batch,
            "largest_batch": self.limit[0] if self.limit else None,
            "kind": "modelled",
            "rows": [
                {
                    "architecture": row.architecture,
                    "batch": row.batch,
                    "what": row.what,
                    "mode": row.mode or None,
                    **asdict(row.needs),
                    "total": row.needs.total,
                    "fits": row.fits,
                }
                for row in self.rows
            ],
            "largest": None
            if largest is None
            else {"architecture": largest.architecture, "batch": largest.batch},
            "bundle": self.bundle[0] if self.bundle else None,
            "verdict": list(self.lines),
        }

    def _training(self) -> list[PlanRow]:
        return [row for row in self._rows("train", "alternate") if row.fits]

    def _rows(self, what: str, mode: str | None = None) -> list[PlanRow]:
        return [row for row in self.rows if row.what == what and mode in (None, row.mode)]

    def _both(self, row: PlanRow) -> int:
        """Bytes of a bundle that classifies as ``row`` does and synthesises as well."""
        synthesis = [
            other.needs.working
            for other in self._rows("synthesise")
            if (other.architecture, other.batch) == (row.architecture, row.batch)
        ]
        return row.needs.total + sum(synthesis)

    def _bare(self, memory: str) -> str:
        nothing = f"nothing of ours runs on {self.device}"
        fitting = [row for row in self.rows if row.fits]
        if not fitting:
            least = min(row.needs.total for row in self.rows)
            return f"{nothing}; no network would fit (needs {_mb(least)} MB of {memory})"
        row = max(fitting, key=_extent)
        return (
            f"{nothing}; weights and activations would fit of {_names(fitting, 'float32')} "
            f"in float32, of {_names(fitting, 'int8')} with int8 weights "
            f"(largest: {row.architecture}, {_mb(row.needs.total)} of {memory})"
        )


def _names(rows: Iterable[PlanRow], mode: str) -> str:
    return ", ".join(row.architecture for row in rows if row.mode == mode) or "none"


def _extent(row: PlanRow) -> tuple[int, str, int]:
    return row.needs.weights, row.architecture, row.batch


def _mb(size: int) -> str:
    value = size / MB
    return f"{value:.0f}" if value >= 10 else f"{value:.2f}"


@dataclass(frozen=True)
class ClientAssignment:
    """Device and architecture of one client.

    Args:
        profile: Of its device, or None where the settings name none.
        wanted: The architecture that the settings give it.
        architecture: The one that its device can train: ``wanted`` where that fits, else
            the planner's smaller one; None where nothing fits and the client sits out.
    """

    client: str
    profile: DeviceProfile | None
    wanted: str
    architecture: str | None


def fleet(
    config: Config, clients: Sequence[str], shape: ImageShape, classes: int
) -> list[ClientAssignment]:
    """An assignment for every client; architectures and devices are given in turn.

    Raises:
        ConfigError: An architecture or device that does not exist.
    """
    settings = config.clients
    profiles = {name: DeviceProfile.load(name) for name in settings.devices}
    assignments = []
    for index, client in enumerate(clients):
        wanted = settings.architectures[index % len(settings.architectures)]
        profile: DeviceProfile | None = None
        fitting: str | None = wanted
        if settings.devices:
            profile = profiles[settings.devices[index % len(settings.devices)]]
            fitting = smaller(config, profile, wanted, shape, classes)
        assignments.append(ClientAssignment(client, profile, wanted, fitting))
    return assignments


def notes(assignments: Sequence[ClientAssignment]) -> list[str]:
    """Changes for the devices' memory, in words, one line per device and architecture."""
    groups: dict[tuple[str, str], list[str]] = {}
    for assignment in assignments:
        profile, architecture = assignment.profile, assignment.architecture
        if profile is None or architecture == assignment.wanted:
            continue
        if profile.runtime == "none":
            what = f"out, nothing that trains runs on {profile.name}"
        elif architecture is None:
            what = f"out, no architecture can be trained in the memory of {profile.name}"
        else:
            what = (
                f"{architecture} in place of {assignment.wanted}, which does not fit the memory of "
                f"{profile.name}"
            )
        groups.setdefault(("sit" if architecture is None else "train", what), []).append(
            assignment.client
        )
    return [
        f"{_some(clients)} {verb}{'s' * (len(clients) == 1)} {what}"
        for (verb, what), clients in groups.items()
    ]


def _some(clients: Sequence[str]) -> str:
    """Up to three names, and how many more."""
    shown, more = ", ".join(clients[:3]), len(clients) - 3
    return f"{shown} and {more} more" if more > 0 else shown

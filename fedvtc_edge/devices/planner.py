"""What fits a device, before anything runs on it.

Everything is modelled and the same on every machine: the networks are rehearsed on a
handful of images, the runtimes' baselines are recorded constants.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedvtc_edge.config import Config
from fedvtc_edge.data import partition
from fedvtc_edge.data.survey import survey
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.models import ImageShape, architectures
from fedvtc_edge.models.registry import find
from fedvtc_edge.streams import seed_of

from .baseline import torch_mb
from .footprint import MB, Footprint, Mode, Use, needs, needs_bare, needs_bundle
from .plans import Plan, Row
from .profile import DeviceProfile, Figure

__all__ = ["Footprint", "Plan", "Row", "largest_batch", "needs", "plan", "smaller"]

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


def plan(config: Config, profile: DeviceProfile, *, batches: Sequence[int] = ()) -> Plan:
    """Every architecture × batch × {train, infer, synthesise} × {alternate, joint}.

    The data set is only looked at: its images' size, its classes, and how many samples
    the largest client gets.

    Args:
        config: The settings of the run.
        profile: Of the device.
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
        seed=seed_of(config.seed, "partition"),
    )
    own = config.training.batch
    sizes = tuple(sorted({*batches} or {max(own // 4, 2), own, min(4 * own, LARGEST_BATCH)}))
    made = Plan(
        device=profile.name,
        runtime=profile.runtime,
        memory=memory_of(profile),
        shape=ImageShape(seen.size, seen.channels),
        classes=seen.classes,
        samples=max(map(len, parts)),
        batch=own,
        rows=(),
        note=_PER_EXAMPLE if config.privacy.mode == "example" else "",
    )
    return made.filled(tuple(_rows(config, profile, made, sizes)), _limit(config, profile, made))


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
        profile: Of the device.
        architecture: The one that is wanted.
        shape: Of the images.
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
    if torch_mb(profile.arch).value * MB > budget:  # no need to rehearse anything
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

    def fits(batch: int) -> bool:
        need = needs(
            architecture, config, shape, classes, batch=batch, samples=samples, arch=profile.arch
        )
        return need.total <= budget

    if not fits(2):
        return None
    low, high = 2, LARGEST_BATCH + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _rows(
    config: Config, profile: DeviceProfile, made: Plan, batches: Sequence[int]
) -> Iterator[Row]:
    budget, shape, classes = made.memory.value * MB, made.shape, made.classes
    for name in dict.fromkeys((*config.clients.architectures, *architectures())):
        if profile.runtime == "none":
            for numbers, size in (("float32", 4), ("int8", 1)):
                need = needs_bare(name, config, shape, classes, weight_bytes=size)
                yield Row(name, 1, "infer", numbers, need, need.total <= budget)
            continue
        for batch in batches:
            for mode in _MODES:
                need = needs(
                    name,
                    config,
                    shape,
                    classes,
                    batch=batch,
                    mode=mode,
                    samples=made.samples,
                    arch=profile.arch,
                )
                yield Row(name, batch, "train", mode, need, need.total <= budget)
            for use in _USES if config.method.name == "fedvtc" else _USES[:1]:
                need = needs_bundle(
                    name, config, shape, classes, use=use, batch=batch, arch=profile.arch
                )
                yield Row(name, batch, use, "", need, need.total <= budget)


def _limit(config: Config, profile: DeviceProfile, made: Plan) -> tuple[int, str] | None:
    """The largest batch with which anything trains, and what that is."""
    if profile.runtime == "none":
        return None
    found = [
        (batch, name)
        for name in architectures()
        if (
            batch := largest_batch(
                name, config, profile, made.shape, made.classes, samples=made.samples
            )
        )
    ]
    return max(found, default=None)

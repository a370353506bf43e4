"""Choice of the extractor before a run, on held-out images of the clients' training parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch

from fedvtc_edge.config import LITE0, Config
from fedvtc_edge.data import Dataset, hold_out, partition
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.models import ImageShape
from fedvtc_edge.models.extractor import Anchor
from fedvtc_edge.plugins import METHODS
from fedvtc_edge.seeding import derive_seed, generator
from fedvtc_edge.statistics.class_statistics import ClassStatistics, GlobalStatistics
from fedvtc_edge.statistics.discriminant import Discriminant
from fedvtc_edge.training.compute import as_images

CHOOSE = "choose"
"""Value of ``method.extractor`` that asks for the choice."""

CANDIDATES = ("random", LITE0)

HELD_OUT = 5
"""One image in so many of a client is held out for the comparison."""

MOST = 2_000
"""Images that are looked at, of all clients: twenty seconds of EfficientNet-Lite0."""


def check_choice(config: Config, engine: Literal["local", "flower", "client"]) -> None:
    """Refuse a choice where it would tell what is hidden, or nobody could make it.

    Raises:
        ConfigError: Under a privacy mode or masks, away from one machine, or for a method
            without a frozen extractor.
    """
    name = "choose on one machine, then name it"
    reason, hint = "", f"{name}: method.extractor = {LITE0!r} or 'random'"
    if config.privacy.mode != "none":
        reason = f"with privacy.mode = {config.privacy.mode!r}: it reads data, unaccounted for"
    elif config.transport.masking:
        reason = "with transport.masking: statistics of parts, taken from each other, unmask"
    elif engine != "local":
        reason = "on engine flower: clients would upload once more for each candidate"
    elif METHODS.find(config.method.name).shared(config) != "anchored":
        reason, hint = f"for method.name = {config.method.name!r}", "it has no use for one"
    if reason:
        raise ConfigError(f"method.extractor = {CHOOSE!r} {reason}", hint=hint)


def choose(
    config: Config, data: Dataset, say: Callable[[str], None]
) -> tuple[Config, dict[str, float]]:
    """Settings with the extractor whose statistics classify held-out images best.

    Statistics are of four fifths of each client's training images, or of fewer where all
    have more than :data:`MOST`; accuracy is that of the discriminant on the other fifth. The
    test set is not read.

    Args:
        say: Told which candidates were left out, and why.

    Returns:
        The settings, and the accuracies by name.
    """
    height, _, channels = data.image_shape
    shape = ImageShape(height, channels)
    fitted, held = _parts(config, data)
    accuracies: dict[str, float] = {}
    for name in CANDIDATES:
        try:
            anchor = Anchor(
                shape, config.method.anchor, derive_seed(config.seed, "anchor"), name
            ).eval()
        except ConfigError as error:
            say(f"extractor {name} is not tried: {error}")
            continue
        accuracies[name] = _accuracy(anchor, config, data, fitted, held)
    best = max(accuracies, key=lambda name: accuracies[name])
    return config.replace(method={"extractor": best}), accuracies


def _parts(
    config: Config, data: Dataset
) -> tuple[list[np.typing.NDArray[np.int64]], np.typing.NDArray[np.int64]]:
    """Indices of each client's images for its statistics, and of everybody's held-out ones."""
    parts = partition(
        data.y_train,
        clients=config.clients.count,
        classes=data.classes,
        settings=config.data,
        seed=derive_seed(config.seed, "partition"),
    )
    share = min(1.0, MOST / len(data.y_train))
    fitted, held = [], []
    for client, dealt in zip(config.client_ids, parts, strict=True):
        part = dealt[hold_out(data.y_train[dealt], config, client)[0]]  # the rest is read last
        order = torch.randperm(len(part), generator=generator(config.seed, client, CHOOSE))
        kept = part[order[: max(round(len(part) * share), HELD_OUT)].numpy()]
        held.append(kept[::HELD_OUT])
        fitted.append(np.delete(kept, np.s_[::HELD_OUT]))
    return fitted, np.concatenate(held)


def _accuracy(
    anchor: Anchor,
    config: Config,
    data: Dataset,
    fitted: list[np.typing.NDArray[np.int64]],
    held: np.typing.NDArray[np.int64],
) -> float:
    device, total = torch.device("cpu"), None
    for part in fitted:
        own = ClassStatistics.of(
            anchor.embed(as_images(data.x_train[part], device)),
            torch.from_numpy(data.y_train[part]),
            classes=data.classes,
            pooled=config.method.moments == "covariance",
        )
        total = own if total is None else total + own
    assert total is not None  # there is a client
    classifier = Discriminant(GlobalStatistics.from_sum(total), device=device)
    scores = classifier(anchor.embed(as_images(data.x_train[held], device)))
    correct = scores.argmax(1) == torch.from_numpy(data.y_train[held])
    return float(correct.double().mean())

"""Interface between methods and the round loop."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedvtc_edge.config import Config, MethodSettings
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.federation.exchange import RoundStep
from fedvtc_edge.federation.federation import Federation
from fedvtc_edge.models.companion import Companion
from fedvtc_edge.models.extractor import in_chunks
from fedvtc_edge.models.registry import ImageShape
from fedvtc_edge.statistics.class_statistics import GlobalStatistics
from fedvtc_edge.statistics.gaussian import Coefficients
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.knowledge import GlobalKnowledge


@dataclass(frozen=True)
class Knob:
    """A method's main number: ``method.knob`` sets it, and a comparison tunes it.

    Args:
        meaning: In words, with its symbol in the paper.
        default: In force where nothing is set.
        tuned_over: Values that a comparison tries on validation data.
        least: Smallest value that makes sense.
        most: Largest.
    """

    meaning: str
    default: float
    tuned_over: tuple[float, ...]
    least: float = 0.0
    most: float = math.inf


class Method(ABC):
    """Method of learning, in steps that an executor takes with the clients of a round.

    What a method needs of the server again after a restart, it keeps in ``published``; the
    engine checkpoints that beside the clients' modules.
    """

    has_decoder: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    """True if clients train networks; a run that trains none cannot be exported."""
    common_head: ClassVar[bool] = False
    """True if the model of all clients is one head on the frozen extractor: see :meth:`head`."""
    sends_moments: ClassVar[bool] = True
    """True if uploaded statistics have second moments beside counts and sums."""
    is_own_control: ClassVar[bool] = False
    """True for local-only training itself, which needs no local baseline beside it."""
    nearest_prototype: ClassVar[bool] = False
    """True if clients classify by the nearest published mean of their features."""
    standalone: ClassVar[bool] = True
    """True if a client classifies with its own network alone; else no bundle holds all of it."""
    needs_public: ClassVar[bool] = False
    """True if clients learn from public images, which ``data.public`` names."""
    for_senders: ClassVar[frozenset[str]] = frozenset()
    """Kinds of publications that their senders alone take up, and that nobody keeps."""
    variants: ClassVar[Mapping[str, type[Method]]] = {}
    """What runs under each ``privacy.mode`` that has a guarantee; a subclass has none of these."""
    knob: ClassVar[Knob | None] = None
    """Its main number, or None if there is nothing to tune."""
    trimmable: ClassVar[bool] = True
    """True if ``server.trim`` can leave outliers out of all that the server uses."""
    publishes_statistics: ClassVar[bool] = True
    """True if statistics are published of uploaded statistics; else trained weights are."""
    every_round: ClassVar[bool] = False
    """True if something is exchanged in every round, so that more rounds teach more."""

    def __init_subclass__(cls) -> None:
        cls.variants = {}

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.published: dict[str, bytes] = {}
        self.done = 0
        """Rounds behind it, as the engine counts them."""

    @classmethod
    def shared(cls, settings: Config) -> str:
        """Content of uploads.

        ``anchored``, ``features[+decoder]``, ``heads`` on own features, ``features+heads``,
        ``companion``, ``scores``, ``nothing`` or ``data``.
        """
        return "nothing"

    @classmethod
    def maskable(cls, settings: Config) -> bool:
        """True if the sum of all uploads, under masks, is enough for the server."""
        return cls.shared(settings) in ("anchored", "features", "nothing")

    @classmethod
    def strength_in(cls, settings: Config) -> float:
        """Value of the knob that is in force under some settings."""
        if settings.method.knob is None:
            assert cls.knob is not None
            return cls.knob.default
        return settings.method.knob

    @property
    def strength(self) -> float:
        """Value of the knob that is in force."""
        return self.strength_in(self.federation.config)

    @classmethod
    def head(cls, settings: Config, known: GlobalStatistics) -> Coefficients:
        """Coefficients of the head that all clients share, from what was published.

        Raises:
            ConfigError: There is none, as ``common_head`` says.
        """
        raise ConfigError(
            f"clients of method.name = {settings.method.name!r} share no head",
            hint='use method.name = "statistics"',
        )

    @classmethod
    def companion(
        cls, settings: MethodSettings, shape: ImageShape, classes: int, *, seed: int
    ) -> Companion | None:
        """Small network that each client keeps beside its own, fresh; None for no such network.

        It is kept, restored and trained with the client's own.

        Args:
            classes: Number C of classes.
            seed: The same for all clients of a run.
        """
        return None

    @abstractmethod
    def steps(self, number: int) -> Sequence[RoundStep]:
        """Steps of round ``number``; 0 is what happens once, before the first."""

    def learn(self, kind: str, data: bytes, cohort: Sequence[Client]) -> None:
        """Take up what was published at the end of an exchange.

        Args:
            cohort: Clients in this process that took part.
        """
        self.restore({**self.published, kind: data})

    def sent(self) -> Mapping[str, bytes]:
        """What clients are given of ``published``; the rest is what the server goes on with."""
        return self.published

    def statistics(self) -> Mapping[str, bytes]:
        """What of it are statistics, which a run leaves."""
        return self.sent() if self.publishes_statistics else {}

    def restore(self, published: dict[str, bytes]) -> None:
        """Take up again what an earlier process published."""
        self.published = dict(published)

    def scores(self, client: Client, images: Tensor) -> Tensor:
        """Log-posteriors [N, C] of a client's own model on images, on the CPU."""
        return in_chunks(client.model.eval(), client.model.inputs(images)).log_softmax(1)

    def control(self, images: Tensor) -> Tensor | None:
        """Log-posteriors [N, C] of the training-free classifier, or None without an anchor."""
        return None

    def knowledge(self) -> GlobalKnowledge | None:
        """Global statistics to synthesise images from, or None for methods that synthesise none."""
        return None

    def epsilon(self) -> float | None:
        """ε that each client has spent by now, or None where nothing is claimed."""
        return None

    def decoder_cost(self) -> dict[str, float]:
        """Seconds spent on decoders in this process, and bytes of one; empty without decoders."""
        return {}

    def uploads(self) -> list[str]:
        """Uploads of a client, in words."""
        return []


OWN_SHARE = 0.3
"""Share of f_k in the combined prediction; the rest is that of statistics only."""


def calibrated(own: Tensor, control: Tensor) -> Tensor:
    """Log-posteriors of own model and statistics together: their normalised geometric mean.

    A logarithmic opinion pool. The exponents add up to one, for f_k learned from t: their errors
    are not independent, and a product would be too sure of itself (docs/decisions/0031).

    Args:
        own: log f_k, [N, C].
        control: log t, [N, C].
    """
    return (OWN_SHARE * own + (1 - OWN_SHARE) * control).log_softmax(1)

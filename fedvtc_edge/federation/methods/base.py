"""Interface between methods and the round loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fedvtc_edge.config import Config
from fedvtc_edge.federation.exchange import RoundStep
from fedvtc_edge.federation.federation import Federation
from fedvtc_edge.models.extractor import in_chunks
from fedvtc_edge.training.client import Client
from fedvtc_edge.training.knowledge import GlobalKnowledge


class Method(ABC):
    """Method of learning, in steps that an executor takes with the clients of a round.

    What a method needs of the server again after a restart, it keeps in ``published``; the
    engine checkpoints that beside the clients' modules.
    """

    has_decoder: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    """Whether clients' networks learn anything; where not, none can be exported."""
    is_own_control: ClassVar[bool] = False
    """Whether it is local-only training itself, which needs no local baseline beside it."""
    nearest_prototype: ClassVar[bool] = False
    """Whether clients classify by the nearest published mean of their features."""
    variants: ClassVar[Mapping[str, type[Method]]] = {}
    """What runs under each ``privacy.mode`` that has a guarantee; a subclass has none of these."""

    def __init_subclass__(cls) -> None:
        cls.variants = {}

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.published: dict[str, bytes] = {}
        self.done = 0
        """Rounds behind it, as the engine counts them."""

    @classmethod
    def shared(cls, settings: Config) -> str:
        """Content of uploads: ``anchored``, ``features[+decoder]``, ``nothing`` or ``data``."""
        return "nothing"

    @abstractmethod
    def steps(self, number: int) -> Sequence[RoundStep]:
        """Steps of round ``number``; 0 is what happens once, before the first."""

    def learn(self, kind: str, data: bytes, cohort: Sequence[Client]) -> None:
        """Take up what was published at the end of an exchange.

        Args:
            cohort: Clients in this process that took part.
        """
        self.restore({**self.published, kind: data})

    def restore(self, published: dict[str, bytes]) -> None:
        """Take up again what an earlier process published."""
        self.published = dict(published)

    def scores(self, client: Client, images: Tensor) -> Tensor:
        """Log-posteriors [N, C] of a client's own model on images, on the CPU."""
        return in_chunks(client.model.eval(), client.model.inputs(images)).log_softmax(1)

    def control(self, images: Tensor) -> Tensor | None:
        """Log-posteriors [N, C] of the training-free classifier, or None without an anchor."""
        return None

    def own_classes(self, client: Client) -> Tensor:
        """Classes [C] that a client's prediction treats as its own."""
        return client.present

    def knowledge(self) -> GlobalKnowledge | None:
        """Global statistics to synthesise images from, or None for methods that synthesise none."""
        return None

    def epsilon(self) -> float | None:
        """ε that each client has spent by now, or None where nothing is claimed."""
        return None

    def uploads(self) -> list[str]:
        """Uploads of a client, in words."""
        return []


CALIBRATION = 0.5
"""Weight of f_k beside the control: it learned from it, so their errors are not independent."""


def calibrated(own: Tensor, control: Tensor, present: Tensor) -> Tensor:
    """Log-posteriors of both experts, each where it knows more.

    The control says how likely the client's own classes are as a group, and
    decides among the others alone; *within* the group the prediction is
    log t(y|x) + ½ log f_k(y|x), because there f_k learned from real images. The
    plain product over all classes lets f_k's guesses about classes that it only
    knows from synthetic images spoil the control's (docs/decisions/0007).

    Args:
        own: log f_k, [N, C].
        control: log t, [N, C].
        present: Classes [C] of which the client has samples.
    """
    outside = torch.full_like(control, float("-inf"))
    group = torch.logsumexp(torch.where(present, control, outside), 1, keepdim=True)
    within = torch.where(present, control + CALIBRATION * own, outside).log_softmax(1)
    return torch.where(present, within + group, control)

"""What every method is to the engine, and what it may use of the federation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedvtc_edge.client import Client, in_chunks
from fedvtc_edge.compute import Compute
from fedvtc_edge.config import Config
from fedvtc_edge.knowledge import Knowledge
from fedvtc_edge.models.registry import ImageShape
from fedvtc_edge.server import Server


@dataclass
class Traffic:
    """Bytes between one client and the server."""

    up: int = 0
    down: int = 0


@dataclass
class Federation:
    """Everyone and everything that takes part in one run.

    Args:
        config: The settings.
        clients: In the order of their ids.
        server: Adds and publishes.
        shape: Of the images.
        classes: Number C of classes.
        compute: Where tensors live.
        traffic: Bytes per client id.
    """

    config: Config
    clients: Sequence[Client]
    server: Server
    shape: ImageShape
    classes: int
    compute: Compute
    traffic: dict[str, Traffic] = field(init=False)

    def __post_init__(self) -> None:
        self.traffic = {client.id: Traffic() for client in self.clients}

    def broadcast(self, size: int, to: Sequence[Client] | None = None) -> None:
        """Count ``size`` published bytes for every client that downloads them."""
        for client in self.clients if to is None else to:
            self.traffic[client.id].down += size


class Method:
    """How clients learn; the engine calls :meth:`open` once, then :meth:`round` per round.

    Whatever of the outside world a method needs again after a restart, it keeps in
    ``published``; the engine checkpoints that beside the clients' modules.
    """

    has_decoder = False

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.published: dict[str, bytes] = {}

    def open(self) -> None:
        """What happens once, before the first round."""

    def restore(self, published: dict[str, bytes]) -> None:
        """Take up again what an earlier process published."""
        self.published = dict(published)

    def round(self, number: int, cohort: Sequence[Client]) -> None:
        """One federated round with the clients in ``cohort``; rounds count from 1."""
        raise NotImplementedError

    def scores(self, client: Client, images: Tensor) -> Tensor:
        """Log-posteriors [N, C] of a client's own model on images, on the CPU."""
        return in_chunks(client.model.eval(), images).log_softmax(1)

    def control(self, images: Tensor) -> Tensor | None:
        """Log-posteriors [N, C] of the training-free classifier, or None without an anchor."""
        return None

    def world(self) -> Knowledge | None:
        """What clients paint from, or None for methods that paint nothing."""
        return None

    def uploads(self) -> list[str]:
        """What travels from a client to the server, in words."""
        return []


def calibrated(own: Tensor, control: Tensor) -> Tensor:
    """Log-posteriors of the product of both experts: log f_k(y|x) + log t(y|x)."""
    return torch.log_softmax(own + control, dim=1)

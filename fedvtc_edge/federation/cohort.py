"""Who is drawn for a round: public, since it follows from the seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

from fedvtc_edge.config import Config
from fedvtc_edge.seeding import generator

T = TypeVar("T")


def drawn(config: Config, clients: Sequence[T], number: int) -> list[T]:
    """A fixed share of the clients, drawn anew in each round, in their order.

    Args:
        config: The settings.
        clients: All of them, or their ids.
        number: Round, from 1; in round 0 everybody is drawn.
    """
    if number == 0:
        return list(clients)
    order = torch.randperm(len(clients), generator=generator(config.seed, "cohort", number))
    return [clients[index] for index in sorted(order[: config.clients.per_round].tolist())]

"""What carries orders and answers; Flower's grid is one, a test's dictionary another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from .messages import Answer, Order


class Reply(NamedTuple):
    """An answer as it came.

    Args:
        node: Whence.
        order: To what.
        answer: Itself; of a node that failed, one that says so.
    """

    node: int
    order: Order
    answer: Answer


class Post(Protocol):
    """Knows nodes by number, and nothing of clients. It may lose and repeat anything."""

    def nodes(self) -> frozenset[int]:
        """Nodes that are connected, as far as is known."""

    def send(self, orders: Mapping[int, Order]) -> None:
        """Send one order to each of these nodes; returns at once."""

    def receive(self, wait_s: float) -> Iterable[Reply]:
        """What has come since; waits for something for ``wait_s`` seconds at most."""

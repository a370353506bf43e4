"""Mailbox that carries task requests and replies; over Flower's grid, or in a test's memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from .messages import TaskReply, TaskRequest


class NodeReply(NamedTuple):
    """An answer as it came.

    Args:
        reply: Itself; of a node that failed, one that says so.
    """

    node: int
    request: TaskRequest
    reply: TaskReply


class Mailbox(Protocol):
    """Knows nodes by number, and nothing of clients. It may lose and repeat anything."""

    def nodes(self) -> frozenset[int]:
        """Nodes that are connected, as far as is known."""

    def send(self, requests: Mapping[int, TaskRequest]) -> None:
        """Send one order to each of these nodes; returns at once."""

    def receive(self, wait_s: float) -> Iterable[NodeReply]:
        """Replies that came since; waits ``wait_s`` seconds at most for one."""

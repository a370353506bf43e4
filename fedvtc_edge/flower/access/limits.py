"""Limits of the port: how many may be connected, for how long, and with how many bytes."""

from __future__ import annotations

import asyncio
import resource
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from fedvtc_edge.errors import DeploymentError

RESERVED = 32
"""Descriptors of the gate that no connection gets: its files, listeners and the event loop's."""

UPSTREAM = 32
"""Connections from the gate to the SuperLink, one for each request on its way."""

_LEAST_STRANGERS = 8


@dataclass(frozen=True)
class Limits:
    """Limits on connections, time and bytes.

    A *stranger* is a connection without a signed request yet.

    Args:
        strangers: Connections of strangers at once, those in their TLS handshake among them.
        per_address: Of these, from one address; IPv6 by its first 64 bits, which belong to one
            house. Members are not counted: any number may share an address.
        per_node: Connections of one member. Flower's node keeps two.
        members: Connections of all members.
        patience_s: A stranger is let alone for so long; after that it may have to make room for
            the next. So no more than ``strangers / patience_s`` come in a second.
        handshake_s: Until the TLS handshake is done.
        head_s: From there until the header of the first request is whole.
        idle_s: Between two requests of a member; Flower's node asks every 3 s.
        grace_s: A body, of a request or an answer, may pause for so long in all ...
        least_rate: ... beyond what it takes at so many bytes per second.
        head_bytes: Of a request's line and header.
        largest: Bytes of a member's body; Flower cuts arrays into pieces of 5 MiB.
        small: Bodies up to so many bytes wait for nobody ...
        in_flight: ... and all others share so many bytes: what the SuperLink holds at once.
        lines: Lines of the log about refusals, in a minute.
    """

    strangers: int = 48
    per_address: int = 36
    per_node: int = 8
    members: int = 2048
    patience_s: float = 0.4
    handshake_s: float = 10.0
    head_s: float = 10.0
    idle_s: float = 75.0
    grace_s: float = 30.0
    least_rate: float = 8192.0
    head_bytes: int = 16_384
    largest: int = 64 << 20
    small: int = 65_536
    in_flight: int = 128 << 20
    lines: int = 20

    def fitting(self, nodes: int, descriptors: int) -> Limits:
        """These limits for so many registered nodes, within what the process may open.

        Args:
            descriptors: Of the process (RLIMIT_NOFILE).

        Raises:
            DeploymentError: Too few even for a handful of connections.
        """
        left = descriptors - RESERVED - UPSTREAM
        if left < 2 * _LEAST_STRANGERS:
            least = RESERVED + UPSTREAM + 2 * _LEAST_STRANGERS
            raise DeploymentError(
                f"a process may open {descriptors} files here, expected {least} or more",
                hint="raise the limit: ulimit -n 1024",
            )
        strangers = max(_LEAST_STRANGERS, min(self.strangers, left // 3))
        return replace(
            self,
            strangers=strangers,
            per_address=max(1, self.per_address * strangers // self.strangers),
            members=min(self.per_node * nodes, left - strangers),
        )


def descriptors() -> int:
    """Number of files that processes started by this one may open: the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if hard == resource.RLIM_INFINITY else hard


def note_on_descriptors(nodes: int) -> str | None:
    """Warning for the operator before so many nodes are served, or None.

    Raises:
        DeploymentError: Too few for any connection.
    """
    limits = Limits().fitting(nodes, descriptors())
    if limits.members >= 2 * nodes:
        return None
    return (
        f"{descriptors()} open files allow {limits.members} connections, and {nodes} clients "
        f"keep two each: raise the limit, ulimit -n {2 * nodes + limits.strangers + 256}"
    )


class Pace:
    """Deadline of a body that moves with each piece: slow is fine, standing still is not.

    Args:
        limits: Their ``grace_s`` and ``least_rate``.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._until = asyncio.get_running_loop().time() + limits.grace_s

    def moved(self, count: int) -> None:
        """Tell of ``count`` bytes that came through."""
        self._until += count / self._limits.least_rate

    def deadline(self) -> asyncio.Timeout:
        """A block that raises TimeoutError when the deadline is over."""
        return asyncio.timeout_at(self._until)


class ByteBudget:
    """Bytes that may be on their way at once; who comes first is served first.

    Args:
        total: At least as large as anything that is asked for.
    """

    def __init__(self, total: int) -> None:
        self._left = total
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def holding(self, count: int) -> AsyncIterator[None]:
        """Wait for ``count`` bytes, and give them back at the end of the block."""
        turn = asyncio.get_running_loop().create_future()
        place = (count, turn)
        self._line.append(place)
        self._serve()
        try:
            await turn
            yield
        finally:
            if place in self._line:  # cancelled while it waited
                self._line.remove(place)
            else:
                self._left += count
            self._serve()

    def _serve(self) -> None:
        while self._line and self._line[0][0] <= self._left:
            count, turn = self._line.popleft()
            self._left -= count
            if not turn.done():  # else its own end gives the bytes back
                turn.set_result(None)

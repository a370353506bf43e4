"""Admission to the port: connections counted by whose they are, and cut where they are too many.

Where all places are taken, a newcomer waits, unread, and behind it the others in the kernel's
queue, until a stranger is done, or has had its time and makes room. So whoever holds
connections open keeps nobody out for longer than a moment, and who has signed a request is no
stranger any more. Only an address that has more than its share, and of which no member ever
came, is turned away at once: nobody elsewhere waits behind it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from .limits import Limits

_HOMES = 4096


class Guest:
    """One connection.

    Args:
        address: Whose it is, as :func:`neighbourhood` gives it.
        since: When it came, in seconds of :func:`time.monotonic`, the event loop's clock.
    """

    def __init__(self, address: str, since: float) -> None:
        self.address = address
        self.since = since
        self.node: bytes | None = None
        self.busy = False
        self.cut: Callable[[], object] = lambda: None  # set by who serves it


class Admission:
    """Connections that are open, and room for more.

    Args:
        limits: How many may be.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._strangers: dict[Guest, None] = {}  # in the order in which they came
        self._members: dict[bytes, dict[Guest, None]] = {}
        self._homes: dict[str, None] = {}  # addresses that members came from, the last ones
        self._left = asyncio.Event()

    def __len__(self) -> int:
        return len(self._strangers) + sum(map(len, self._members.values()))

    def turns_away(self, address: str) -> bool:
        """True if one more from an address need not even wait.

        Clients that share an address with strangers wait with them, once one of theirs has
        signed a request; so do those of this machine.
        """
        crowd = [guest for guest in self._strangers if guest.address == address]
        if len(crowd) < self._limits.per_address or address in self._homes:
            return False
        aged = time.monotonic() - crowd[0].since >= self._limits.patience_s
        return not aged and not _of_this_machine(address)

    async def room(self, address: str | None = None) -> None:
        """Wait until one more stranger may come in; one that had its time may have to go.

        Args:
            address: Room among those of one address; None for room among all.
        """
        while True:
            crowd = [guest for guest in self._strangers if address in (None, guest.address)]
            limit = self._limits.strangers if address is None else self._limits.per_address
            if len(crowd) < limit:
                return
            # Of who has the most, the one that came first: a crowd makes room for others.
            [(fullest, _)] = Counter(guest.address for guest in crowd).most_common(1)
            oldest = next(guest for guest in crowd if guest.address == fullest)
            wait = oldest.since + self._limits.patience_s - time.monotonic()
            if wait <= 0:
                self.remove(oldest)
                oldest.cut()
                continue
            self._left.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._left.wait()

    def enter(self, address: str) -> Guest:
        """A new stranger; there was :meth:`room`."""
        guest = Guest(address, time.monotonic())
        self._strangers[guest] = None
        return guest

    def promote(self, guest: Guest, node: bytes) -> bool:
        """Make a stranger a member; False where the members have too many connections.

        Of one node with too many the connection that came first is cut off: it is most
        likely one that the node has forgotten.
        """
        own = self._members.get(node, {})
        if len(own) >= self._limits.per_node:
            oldest = next(iter(own))
            self.remove(oldest)
            oldest.cut()
        elif sum(map(len, self._members.values())) >= self._limits.members:
            return False
        self._strangers.pop(guest, None)
        self._homes.pop(guest.address, None)
        self._homes[guest.address] = None
        if len(self._homes) > _HOMES:
            self._homes.pop(next(iter(self._homes)))
        guest.node = node
        self._members.setdefault(node, {})[guest] = None
        self._left.set()
        return True

    def leave(self, guest: Guest) -> None:
        """Tell that a connection is closed.

        A stranger's place stays taken until its time is over: else who is refused at once
        and comes again would be served as often as it likes.
        """
        rest = guest.since + self._limits.patience_s - time.monotonic()
        if guest in self._strangers and rest > 0:
            asyncio.get_running_loop().call_later(rest, self.remove, guest)
        else:
            self.remove(guest)

    def remove(self, guest: Guest) -> None:
        """Count it no more."""
        self._strangers.pop(guest, None)
        if guest.node is not None:
            own = self._members.get(guest.node, {})
            own.pop(guest, None)
            if not own:
                self._members.pop(guest.node, None)
        self._left.set()


def neighbourhood(host: str) -> str:
    """Address as it is counted: an IPv4 address, or the first 64 bits of an IPv6 one."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, 64), strict=False))


def _of_this_machine(address: str) -> bool:
    try:
        return ipaddress.ip_network(address).is_loopback
    except ValueError:
        return False

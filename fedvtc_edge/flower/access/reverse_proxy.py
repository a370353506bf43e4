"""The one door to a SuperLink: lets registered nodes' requests through, and nothing else.

    python -m fedvtc_edge.flower.access.reverse_proxy --host … --port … --certificate … --key … \
        --nodes FILE --to 127.0.0.1:PORT --authority …

Flower 1.42 serves three APIs on one port. The Fleet API is for nodes, which sign each
request. The Control API starts, stops and lists runs and registers nodes; the Runtime
API hands out the tasks of a run. Neither asks who is there, and a run is code: whoever
reaches that port can execute code on the server and on every node. So the SuperLink
listens on 127.0.0.1 alone, and this process answers on the port that others see.

A request is passed on when its method and its path are, letter by letter, in ROUTES, and
its header is signed by a registered node; for any other nothing is kept but its header, and
the SuperLink never hears of it. How much of everything there may be: :class:`.limits.Limits`.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import resource
import signal
import socket
import ssl
import sys
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from email.utils import formatdate
from http import HTTPStatus
from importlib import metadata
from pathlib import Path

import h11
import httpx

from .admission import Admission, Guest, neighbourhood
from .limits import UPSTREAM, ByteBudget, Limits, Pace, descriptors
from .node_signature import NodeKeys

HEALTH = ("GET", "/health")
_ACTIVATE = ("POST", "/v1/fleet/activate-node")
# What flower-supernode asks for, but for register-node and unregister-node: a SuperLink
# with node authentication refuses both.
ROUTES = {
    HEALTH,
    *(
        ("POST", f"/v1/fleet/{name}")
        for name in (
            "activate-node",
            "confirm-message-received",
            "deactivate-node",
            "get-fab",
            "get-run",
            "pull-messages",
            "pull-object",
            "push-messages",
            "push-object",
            "send-node-heartbeat",
        )
    ),
}
# Of the one connection, not of the request (RFC 9110, section 7.6.1); the host is ours.
_HOP = {b"connection", b"host", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
_CLOSE = (b"connection", b"close")
# Flower's own words to a node that it does not know; others would mean something else to it.
_UNKNOWN = json.dumps({"code": 2004, "detail": "Failed to activate SuperNode."}).encode()
_PIECE = 65_536
_BACKLOG = 1024
_LINGER_S = 1.0  # and bytes, which are thrown away, for who is refused while it still sends
_LINGER_BYTES = 65_536
_CLOSING_S = 2.0  # for the end of TLS
_FINISH_S = 3.0  # for requests on their way, when the gate is closed
_HEALTH_S = 1.0  # so old may the SuperLink's answer be: it is not asked as often as strangers ask
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

Headers = list[tuple[bytes, bytes]]


class RefusalError(Exception):
    """A request that is not passed on.

    Args:
        reason: For the log.
        body: In JSON, for a node that reads it.
    """

    def __init__(self, status: HTTPStatus, reason: str, body: bytes = b"") -> None:
        super().__init__(reason)
        self.status = status
        self.body = body


class Gate:
    """A server in front of another one.

    Args:
        client: Its base URL is the other server's. It must not follow redirects.
        version: Flower's version, told with ``/health``: a node of another does not match.
        nodes: Keys of those that are let in.
    """

    def __init__(
        self, client: httpx.AsyncClient, version: str, nodes: NodeKeys, limits: Limits
    ) -> None:
        self.client = client
        self.version = version
        self.nodes = nodes
        self.limits = limits
        self.admission = Admission(limits)
        self.budget = ByteBudget(max(limits.in_flight, limits.largest))
        self._refusals = _Refusals(limits.lines)
        self._health: asyncio.Future[int] | None = None
        self._asked = 0.0
        self._tasks: dict[asyncio.Task[None], Guest] = {}
        self.closing = False

    async def serve(self, listeners: Sequence[socket.socket], tls: ssl.SSLContext) -> None:
        """Serve until this is cancelled; requests on their way are brought to an end then.

        Args:
            listeners: Bound and listening; closed at the end.
        """
        accepting = [asyncio.ensure_future(self._accept(listener, tls)) for listener in listeners]
        try:
            await asyncio.gather(*accepting)
        finally:
            self.closing = True
            for task in accepting:
                task.cancel()
            for listener in listeners:
                listener.close()
            for task, guest in self._tasks.items():
                if not guest.busy:
                    task.cancel()
            if self._tasks:
                _, late = await asyncio.wait(self._tasks, timeout=_FINISH_S)
                for task in late:
                    task.cancel()

    async def well(self) -> int:
        """Status of the SuperLink, which is asked once a second at most."""
        now = asyncio.get_running_loop().time()
        if self._health is None or now - self._asked >= _HEALTH_S:
            self._asked = now
            self._health = asyncio.ensure_future(self._ask_health())
        return await asyncio.shield(self._health)

    def refuse(self, guest: Guest, reason: str) -> None:
        """Write a refusal into the log, where there is room for it."""
        self._refusals.note(f"refused {guest.address}: {reason}")

    async def _ask_health(self) -> int:
        try:
            return (await self.client.get(HEALTH[1])).status_code
        except httpx.TransportError:
            return HTTPStatus.BAD_GATEWAY

    async def _accept(self, listener: socket.socket, tls: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            try:
                peer, name = await loop.sock_accept(listener)
            except OSError as error:
                # The reserve should keep this from happening; another process may use all
                # that the machine has. Whoever waits in the queue is served a moment later.
                self._refusals.note(f"no connection accepted: {error.strerror}")
                await asyncio.sleep(0.5 if error.errno in _EXHAUSTED else 0.0)
                continue
            address = neighbourhood(name[0])
            if self.admission.turns_away(address):
                peer.close()
                self._refusals.note(f"refused {address}: too many connections")
                await asyncio.sleep(0)  # members' requests go on between two of these
                continue
            try:
                await self.admission.room(address)
                await self.admission.room()
            except asyncio.CancelledError:
                peer.close()
                raise
            guest = self.admission.enter(address)
            task = loop.create_task(self._receive(guest, peer, tls))
            guest.cut = task.cancel
            self._tasks[task] = guest
            task.add_done_callback(self._tasks.pop)

    async def _receive(self, guest: Guest, peer: socket.socket, tls: ssl.SSLContext) -> None:
        """One connection, from its TLS handshake to its end."""
        reader = asyncio.StreamReader(limit=self.limits.head_bytes)
        protocol = _Protocol(reader)
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                lambda: protocol,
                peer,
                ssl=tls,
                ssl_handshake_timeout=self.limits.handshake_s,
                ssl_shutdown_timeout=_CLOSING_S,
            )
            assert protocol.transport is not None
            writer = asyncio.StreamWriter(protocol.transport, protocol, reader, loop)
            await _Conversation(self, guest, reader, writer).hold()
            writer.close()
            async with asyncio.timeout(2 * _CLOSING_S):
                await writer.wait_closed()
        except (BrokenPipeError, ConnectionResetError):
            pass  # whoever it was has gone, as everybody may
        except (OSError, TimeoutError, h11.RemoteProtocolError) as error:
            # No TLS, no HTTP, gone, or too slow: ssl.SSLError is an OSError.
            self.refuse(guest, f"{type(error).__name__} {str(error)[:80]}".strip())
        except Exception:
            # A fault of ours ends one connection, not the port; who reads the log sees it.
            self._refusals.note(traceback.format_exc(limit=-4))
        finally:
            if protocol.transport is not None:
                protocol.transport.abort()
            else:
                # The socket is asyncio's. Closed here, its number would be the next
                # connection's, while asyncio still has it down for this one.
                with suppress(OSError):
                    peer.shutdown(socket.SHUT_RDWR)
            guest.cut = _nothing  # else task and guest would hold each other, and TLS buffers
            self.admission.leave(guest)


def _nothing() -> None: ...


class _Protocol(asyncio.StreamReaderProtocol):
    """A stream's protocol that knows its transport, also where the handshake's end was cut off."""

    transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        super().connection_made(transport)


class _Conversation:
    """Requests and answers of one connection."""

    def __init__(
        self,
        gate: Gate,
        guest: Guest,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._gate = gate
        self._limits = gate.limits
        self._guest = guest
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, gate.limits.head_bytes)

    async def hold(self) -> None:
        """Answer requests: one of a stranger, any number of a member."""
        while True:
            stranger = self._guest.node is None
            async with asyncio.timeout(self._limits.head_s if stranger else self._limits.idle_s):
                request = await self._event()
            if not isinstance(request, h11.Request):
                return  # the other side has closed it
            self._guest.busy = True
            try:
                more = await self._answer(request)
            finally:
                self._guest.busy = False
            if not more or self._gate.closing:
                return
            self._http.start_next_cycle()

    async def _answer(self, request: h11.Request) -> bool:
        """Answer one request; whether the connection may have another one."""
        try:
            route = self._admitted(request)
            if route == HEALTH:
                await self._tell_health()
            else:
                await self._pass_on(request, route[1])
        except RefusalError as refused:
            self._gate.refuse(self._guest, str(refused))
            await self._refuse(refused.status, refused.body)
        except httpx.TransportError:
            # Nodes try again after this status. When part of an answer is out, the closed
            # connection is the same to them.
            await self._refuse(HTTPStatus.BAD_GATEWAY)
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    def _admitted(self, request: h11.Request) -> tuple[str, str]:
        """The route of a request that may be passed on, of which the header alone was read.

        Raises:
            RefusalError: It may not.
        """
        route = (request.method.decode("ascii"), request.target.decode("ascii"))
        if route not in ROUTES:
            raise RefusalError(HTTPStatus.NOT_FOUND, f"{route[0][:20]} {route[1][:80]!r}")
        if route == HEALTH:
            return route
        headers = dict(request.headers)
        node = self._gate.nodes.signer(headers)
        if node is None and route == _ACTIVATE and not self._gate.nodes.knows(headers):
            raise RefusalError(HTTPStatus.PRECONDITION_FAILED, "a node that is unknown", _UNKNOWN)
        if node is None or node != (self._guest.node or node):
            raise RefusalError(HTTPStatus.UNAUTHORIZED, "not signed by a node that is known")
        length = headers.get(b"content-length")
        if length is None or b"transfer-encoding" in headers:
            raise RefusalError(HTTPStatus.LENGTH_REQUIRED, "a body of unknown length")
        if int(length) > self._limits.largest:
            raise RefusalError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{int(length)} bytes")
        if self._guest.node is None and not self._gate.admission.promote(self._guest, node):
            raise RefusalError(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections of members")
        return route

    async def _tell_health(self) -> None:
        status = await self._gate.well()
        headers = [
            (b"content-length", b"0"),
            (b"date", formatdate(usegmt=True).encode()),  # by which a node sees a wrong clock
            (b"flwr-package-version", self._gate.version.encode()),
            *([_CLOSE] if self._guest.node is None else []),
        ]
        await self._send(h11.Response(status_code=status, headers=headers))
        await self._send(h11.EndOfMessage())

    async def _pass_on(self, request: h11.Request, path: str) -> None:
        length = int(dict(request.headers)[b"content-length"])
        async with AsyncExitStack() as stack:
            if length > self._limits.small:
                await stack.enter_async_context(self._gate.budget.holding(length))
            reply = await stack.enter_async_context(
                self._gate.client.stream(
                    request.method.decode("ascii"),
                    path,
                    headers=_end_to_end(list(request.headers)),
                    content=self._body(),
                )
            )
            headers = _end_to_end(reply.headers.raw)
            await self._send(h11.Response(status_code=reply.status_code, headers=headers))
            pace = Pace(self._limits)
            async for piece in reply.aiter_raw():
                async with pace.deadline():
                    await self._send(h11.Data(data=piece))
                pace.moved(len(piece))
            async with pace.deadline():
                await self._send(h11.EndOfMessage())

    async def _body(self) -> AsyncIterator[bytes]:
        """The request's body; whoever sends half of one gets no further."""
        pace = Pace(self._limits)
        if self._http.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))
        while True:
            async with pace.deadline():
                event = await self._event()
            if not isinstance(event, h11.Data):
                return  # its end: h11 refuses one that is short
            pace.moved(len(event.data))
            yield bytes(event.data)

    async def _refuse(self, status: HTTPStatus, body: bytes = b"") -> None:
        """Answer with a status of our own, where none is out yet, and hear no more."""
        if self._http.our_state is not h11.SEND_RESPONSE:
            return
        headers = [(b"content-length", b"%d" % len(body)), _CLOSE]
        async with asyncio.timeout(self._limits.head_s):
            await self._send(h11.Response(status_code=status, headers=headers))
            await self._send(h11.Data(data=body))
            await self._send(h11.EndOfMessage())
        # Closed with bytes unread, a connection is reset, and the answer may be lost with it.
        left = _LINGER_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while left > 0 and (piece := await self._reader.read(_PIECE)):
                    left -= len(piece)

    async def _event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """The next part of a request.

        Raises:
            RemoteProtocolError: It is no HTTP, or a header that is too large.
        """
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(_PIECE))
        return event

    async def _send(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            self._writer.write(data)
            await self._writer.drain()


class _Refusals:
    """A log that strangers cannot fill: some lines a minute, and how many more there were."""

    def __init__(self, lines: int) -> None:
        self._lines = lines
        self._begin = float("-inf")
        self._count = 0

    def note(self, line: str) -> None:
        """Write a line, or count it."""
        now = asyncio.get_running_loop().time()
        if now - self._begin >= 60.0:
            if self._count > self._lines:
                print(f"and {self._count - self._lines} more in that minute", flush=True)
            self._begin, self._count = now, 0
        self._count += 1
        if self._count <= self._lines:
            print(line, flush=True)


def _end_to_end(headers: Sequence[tuple[bytes, bytes]]) -> Headers:
    return [(name, value) for name, value in headers if name.lower() not in _HOP]


def listen(host: str, port: int) -> list[socket.socket]:
    """Listening sockets on all addresses of a host.

    Raises:
        OSError: Taken, or no address of this machine.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    with ExitStack() as stack:
        listeners = []
        for family, kind, protocol, _, name in found:
            listener = stack.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(name)
            listener.listen(_BACKLOG)
            listeners.append(listener)
        stack.pop_all()
    return listeners


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 and later, with as little to be done for a stranger as there can be."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0  # a node keeps its connection
    return context


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM."""
    allowed = descriptors()
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
    nodes = NodeKeys(arguments.nodes.read_bytes().splitlines())
    limits = Limits().fitting(len(nodes), allowed)
    trust = ssl.create_default_context(cafile=arguments.authority)
    async with httpx.AsyncClient(
        base_url=f"https://{arguments.to}",
        verify=trust,
        trust_env=False,  # no proxy between two processes of one machine
        timeout=httpx.Timeout(60.0, pool=None),
        limits=httpx.Limits(max_connections=UPSTREAM, max_keepalive_connections=UPSTREAM),
    ) as client:
        gate = Gate(client, metadata.version("flwr"), nodes, limits)
        tls = server_context(arguments.certificate, arguments.key)
        try:
            listeners = listen(arguments.host, arguments.port)
        except OSError as error:
            name, said = (arguments.host, arguments.port), str(error.strerror).lower()
            sys.exit(f"error while attempting to bind on address {name}: {said}")
        print(f"{len(nodes)} nodes may come in; {limits}", flush=True)
        serving = asyncio.ensure_future(gate.serve(listeners, tls))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, serving.cancel)
        with suppress(asyncio.CancelledError):
            await serving


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser()
    for name in ("host", "to"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("certificate", "key", "nodes", "authority"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    parser.add_argument("--port", required=True, type=int)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()

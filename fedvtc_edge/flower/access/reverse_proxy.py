"""The one door to a SuperLink: lets registered nodes' requests through, and nothing else.

    python -m fedvtc_edge.flower.access.reverse_proxy --host … --port … --certificate … --key … \
        --to 127.0.0.1:PORT --authority …

Flower 1.42 serves three APIs on one port. The Fleet API is for nodes, which sign each
request. The Control API starts, stops and lists runs and registers nodes; the Runtime
API hands out the tasks of a run. Neither asks who is there, and a run is code: whoever
reaches that port can execute code on the server and on every node. So the SuperLink
listens on 127.0.0.1 alone, and this process answers on the port that others see.

A request is passed on when its method and its path are, letter by letter, in ROUTES;
any other gets 404 and the SuperLink never hears of it.
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from http import HTTPStatus
from importlib import metadata
from typing import Any

import httpx
import uvicorn

# What flower-supernode asks for, but for register-node and unregister-node: a SuperLink
# with node authentication refuses both.
ROUTES = {
    ("GET", "/health"),
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
LARGEST = 64 << 20  # bytes of a request; Flower cuts arrays into pieces of 5 MiB
_LOGGED = 1000  # refusals; a stranger must not be able to fill the disk
# Of the one connection, not of the request (RFC 9110, section 7.6.1); the host is ours.
_HOP = {b"connection", b"host", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"}

Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]


class Gate:
    """An ASGI application in front of another server.

    Args:
        client: Its base URL is the server's. It must not follow redirects.
        version: Flower's version, told with ``/health``: a node of another does not match.
    """

    def __init__(self, client: httpx.AsyncClient, version: str) -> None:
        self._client = client
        self._version = version
        self._refused = 0

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """Answer one request: pass it on, or refuse it."""
        if scope["type"] != "http":  # a WebSocket; uvicorn closes it with 403
            raise RuntimeError(f"{scope['type']} is not served here")
        refusal = self._refusal(scope)
        if refusal:
            await _answer(send, refusal)
            return
        try:
            await self._pass_on(scope, receive, send)
        except httpx.TransportError:
            # Nodes try again after this status. When part of an answer is out, uvicorn
            # closes the connection instead, which is the same to them.
            await _answer(send, HTTPStatus.BAD_GATEWAY)

    def _refusal(self, scope: Event) -> HTTPStatus | None:
        """Why a request is not passed on, or None."""
        if (scope["method"], scope["path"]) not in ROUTES or scope["query_string"]:
            self._refused += 1
            if self._refused <= _LOGGED:
                who = (scope["client"] or ["?"])[0]
                print(f"refused {who}: {scope['method']} {scope['path'][:80]!r}", flush=True)
            return HTTPStatus.NOT_FOUND
        if scope["method"] == "GET":
            return None
        length = dict(scope["headers"]).get(b"content-length")
        if length is None:
            return HTTPStatus.LENGTH_REQUIRED
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE if int(length) > LARGEST else None

    async def _pass_on(self, scope: Event, receive: Receive, send: Send) -> None:
        body = _body(receive) if scope["method"] == "POST" else None
        async with self._client.stream(
            scope["method"], scope["path"], headers=_end_to_end(scope["headers"]), content=body
        ) as reply:
            start = {"type": "http.response.start", "status": reply.status_code}
            headers = _end_to_end(reply.headers.raw)
            if scope["path"] == "/health":
                headers.append((b"flwr-package-version", self._version.encode()))
            await send({**start, "headers": headers})
            async for piece in reply.aiter_raw():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body"})


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":  # else half a request would look like a whole
            raise httpx.ReadError("the node went away")
        yield event.get("body", b"")
        more = event.get("more_body", False)


async def _answer(send: Send, status: HTTPStatus) -> None:
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body"})


def _end_to_end(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers if name.lower() not in _HOP]


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM."""
    trust = ssl.create_default_context(cafile=arguments.authority)
    async with httpx.AsyncClient(
        base_url=f"https://{arguments.to}",
        verify=trust,
        trust_env=False,  # no proxy between two processes of one machine
        timeout=httpx.Timeout(60.0, pool=None),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
    ) as client:
        config = uvicorn.Config(
            Gate(client, metadata.version("flwr")),
            host=arguments.host,
            port=arguments.port,
            ssl_certfile=arguments.certificate,
            ssl_keyfile=arguments.key,
            lifespan="off",
            ws="none",
            access_log=False,
            server_header=False,
            date_header=False,  # the SuperLink's own is passed on
            timeout_graceful_shutdown=3,
        )
        await uvicorn.Server(config).serve()


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser()
    for name in ("host", "certificate", "key", "to", "authority"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--port", required=True, type=int)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()

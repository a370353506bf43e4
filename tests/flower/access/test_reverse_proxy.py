"""The gate: what it lets through, unchanged, and that nothing else gets past."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvtc_edge.flower.access.reverse_proxy import LARGEST, ROUTES, Event, Gate

PULL = "/v1/fleet/pull-messages"
BODY = b"\x00\x01\xff" * 1000

Handler = Callable[[httpx.Request], httpx.Response]


def scope(method: str = "POST", path: str = PULL, **changed: Any) -> Event:
    headers = [(b"content-length", b"%d" % len(BODY)), (b"content-type", b"application/protobuf")]
    base = {"type": "http", "query_string": b"", "headers": headers, "client": ("192.0.2.1", 5)}
    return {**base, "method": method, "path": path, **changed}


def ask(
    request: Event, handler: Handler, pieces: tuple[bytes, ...] = (BODY,), cut: bool = False
) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body that the gate sends for one request."""
    events: list[Event] = [
        {"type": "http.request", "body": piece, "more_body": cut or piece is not pieces[-1]}
        for piece in pieces
    ] + [{"type": "http.disconnect"}]
    sent: list[Event] = []

    async def receive() -> Event:
        return events.pop(0)

    async def send(event: Event) -> None:
        sent.append(event)

    async def run() -> None:
        transport = httpx.MockTransport(handler)
        async with httpx.AsyncClient(base_url="https://inner", transport=transport) as client:
            await Gate(client, "1.42.0")(request, receive, send)

    asyncio.run(run())
    start, *rest = sent
    body = b"".join(event.get("body", b"") for event in rest)
    assert not rest[-1].get("more_body")
    return start["status"], dict(start["headers"]), body


def reply(status: int, body: bytes = b"", **headers: str) -> httpx.Response:
    """As it comes from a socket, in pieces."""

    async def pieces() -> AsyncIterator[bytes]:
        yield body

    return httpx.Response(status, content=pieces(), headers=headers)


def nobody(request: httpx.Request) -> httpx.Response:
    raise AssertionError(f"{request.url} got past the gate")


def test_a_nodes_request_and_its_answer_pass_unchanged() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return reply(403, b"answer", flower="1", connection="close")

    signed = [
        (b"flwr-signature", b"c2ln"),
        (b"content-length", b"3000"),
        (b"host", b"outside:443"),
        (b"connection", b"keep-alive"),
    ]
    status, headers, body = ask(scope(headers=signed), handler, (BODY[:7], BODY[7:]))
    assert (status, body) == (403, b"answer")
    assert headers[b"flower"] == b"1"
    assert b"connection" not in headers
    [request] = seen
    assert request.content == BODY
    assert str(request.url) == f"https://inner{PULL}"
    assert request.headers["flwr-signature"] == "c2ln"
    assert request.headers["host"] == "inner"
    assert "transfer-encoding" not in request.headers


def test_health_passes_and_tells_the_version() -> None:
    request = scope("GET", "/health", headers=[])
    status, headers, _ = ask(request, lambda request: reply(200, date="today"))
    assert status == 200
    assert headers[b"flwr-package-version"] == b"1.42.0"
    assert headers[b"date"] == b"today"  # by which a node sees that its clock is wrong


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/control/start-run"),
        ("POST", "/v1/control/register-node"),
        ("POST", "/v1/runtime/acquire-task"),
        ("POST", "/v1/runtime/responses"),
        ("POST", "/v1/fleet/register-node"),
        ("POST", "/v1/fleet/unregister-node"),
        ("POST", "/v1/fleet/../control/start-run"),
        ("POST", "/v1/fleet/pull-messages/../../control/start-run"),
        ("POST", "//v1/fleet/pull-messages"),
        ("POST", "/v1/fleet/pull-messages/"),
        ("POST", "/V1/fleet/pull-messages"),
        ("GET", "/v1/fleet/pull-messages"),
        ("POST", "/health"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("OPTIONS", "*"),
    ],
)
def test_everything_else_is_not_there(
    method: str, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(scope(method, path), nobody)[0] == 404
    assert capsys.readouterr().out == f"refused 192.0.2.1: {method} {path!r}\n"


@given(st.sampled_from(["GET", "POST", "PUT"]), st.text(max_size=40).map("/v1/".__add__))
def test_no_path_but_those_of_the_list_gets_past(method: str, path: str) -> None:
    assert (method, path) in ROUTES or ask(scope(method, path), nobody)[0] == 404


def test_a_query_is_refused() -> None:
    assert ask(scope(query_string=b"a=1"), nobody)[0] == 404


@pytest.mark.parametrize(("length", "status"), [(None, 411), (LARGEST + 1, 413)])
def test_a_request_says_its_size_and_is_no_larger(length: int | None, status: int) -> None:
    headers = [] if length is None else [(b"content-length", b"%d" % length)]
    assert ask(scope(headers=headers), nobody)[0] == status


def test_a_superlink_that_is_away_is_worth_another_try() -> None:
    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    assert ask(scope(), away)[0] == 502  # one of the three that a node tries again after


def test_half_a_request_is_not_passed_on_as_a_whole() -> None:
    assert ask(scope(), nobody, (BODY[:100],), cut=True)[0] == 502


def test_refusals_do_not_fill_the_disk(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedvtc_edge.flower.access.reverse_proxy._LOGGED", 2)

    async def run() -> None:
        async def send(event: Event) -> None: ...

        async with httpx.AsyncClient(transport=httpx.MockTransport(nobody)) as client:
            gate = Gate(client, "1.42.0")
            for _ in range(5):
                await gate(scope(path="/x" * 200), send, send)  # type: ignore[arg-type]

    asyncio.run(run())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(len(line) < 130 for line in lines)

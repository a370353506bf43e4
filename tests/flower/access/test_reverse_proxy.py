"""The gate: what it lets through, unchanged, and that nothing else gets past or is kept."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import os
import socket
import ssl
from asyncio import sslproto
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import h11
import httpx
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from fedvtc_edge.flower.access import pki, reverse_proxy
from fedvtc_edge.flower.access.limits import Limits
from fedvtc_edge.flower.access.node_signature import NodeKeys
from fedvtc_edge.flower.access.reverse_proxy import Gate, listen, server_context
from fedvtc_edge.sealing import signing

PULL = "/v1/fleet/pull-messages"
ACTIVATE = "/v1/fleet/activate-node"
BODY = b"\x00\x01\xff" * 1000
PATIENT = Limits(patience_s=0.0, handshake_s=20.0, head_s=20.0)
"""Deadlines that a busy machine does not reach."""

Handler = (
    Callable[[httpx.Request], httpx.Response]
    | Callable[[httpx.Request], Coroutine[Any, Any, httpx.Response]]
)

KEY, OTHER = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    folder = tmp_path_factory.mktemp("tls")
    authority = pki.new_authority("test", 2)
    server = pki.server_certificate(authority, ["127.0.0.1"], 2)
    (folder / "crt").write_bytes(server.certificate_pem())
    (folder / "key").write_bytes(server.key_pem())
    return server_context(folder / "crt", folder / "key")


def signed(
    key: ec.EllipticCurvePrivateKey = KEY, late_s: float = 0.0, by: object = None
) -> list[tuple[bytes, bytes]]:
    """The three lines that Flower's node adds; ``by`` another key than the one it names."""
    when = (datetime.now(UTC) - timedelta(seconds=late_s)).isoformat().encode()
    signer = by if isinstance(by, ec.EllipticCurvePrivateKey) else key
    return [
        (b"flwr-public-key", base64.b64encode(signing.public_pem(key.public_key()))),
        (b"flwr-timestamp", when),
        (b"flwr-signature", base64.b64encode(signer.sign(when, ec.ECDSA(hashes.SHA256())))),
    ]


def request(
    path: str = PULL,
    *more: tuple[bytes, bytes],
    method: str = "POST",
    body: bytes = BODY,
    length: int | None = None,
) -> bytes:
    size = len(body) if length is None else length
    lines = [(b"host", b"outside:443"), *more]
    lines += [(b"content-length", b"%d" % size)] if size >= 0 else []
    head = b"".join(b"%s: %s\r\n" % line for line in lines)
    return f"{method} {path} HTTP/1.1\r\n".encode() + head + b"\r\n" + body


@dataclass
class Caller:
    """Whoever connects to the gate."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send bytes, and read one answer."""
        self.writer.write(data)
        await self.writer.drain()
        return await self.hear()

    async def hear(self) -> tuple[int, dict[str, str], bytes]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self.reader.readline(), 16):
                body += await self.reader.readexactly(size)
                await self.reader.readline()
            await self.reader.readline()
        else:
            body = await self.reader.readexactly(int(headers["content-length"]))
        return int(head[0].split()[1]), headers, body

    async def cut(self) -> bool:
        """Wait until the other side has closed the connection."""
        with contextlib.suppress(OSError):
            while await self.reader.read(65_536):
                pass
        return True


NODES = NodeKeys([pki.openssh_line(KEY.public_key())])
SIGNED = signed()
TARGETS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=40)
"""What h11 takes for the target of a request; it refuses all others."""

Call = Callable[[], Awaitable[Caller]]


@asynccontextmanager
async def gate(
    tls: ssl.SSLContext, handler: Handler, limits: Limits = PATIENT
) -> AsyncIterator[tuple[Gate, Call, int]]:
    """A gate before a SuperLink that is a function, how it is called, and its port."""
    transport = httpx.MockTransport(handler)
    async with httpx.AsyncClient(base_url="https://inner", transport=transport) as client:
        standing = Gate(client, "1.42.0", NODES, limits)
        listeners = listen("127.0.0.1", 0)
        port = listeners[0].getsockname()[1]
        serving = asyncio.ensure_future(standing.serve(listeners, tls))
        callers: list[Caller] = []

        async def call() -> Caller:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            made = Caller(*await asyncio.open_connection("127.0.0.1", port, ssl=context))
            callers.append(made)
            return made

        try:
            yield standing, call, port
        finally:
            for caller in callers:
                caller.writer.transport.abort()
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving


def run(story: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await story

    asyncio.run(bounded())


def once(tls: ssl.SSLContext, data: bytes, handler: Handler) -> tuple[int, dict[str, str], bytes]:
    """The answer to one request."""
    seen: list[tuple[int, dict[str, str], bytes]] = []

    async def story() -> None:
        async with gate(tls, handler) as (_, call, _):
            seen.append(await (await call()).ask(data))

    run(story())
    return seen[0]


def reply(status: int, body: bytes = b"", **headers: str) -> httpx.Response:
    """As it comes from a socket, in pieces."""

    async def pieces() -> AsyncIterator[bytes]:
        yield body

    return httpx.Response(status, content=pieces(), headers=headers)


def nobody(request: httpx.Request) -> httpx.Response:
    raise AssertionError(f"{request.url} got past the gate")


# ---------------------------------------------------------------- what passes


def test_a_nodes_requests_and_their_answers_pass_unchanged(tls: ssl.SSLContext) -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return reply(403, b"answer", flower="1", connection="close")

    async def story() -> None:
        async with gate(tls, handler) as (_, call, _):
            node = await call()
            for _ in range(3):  # over one connection
                status, headers, body = await node.ask(request(PULL, *signed()))
                assert (status, body) == (403, b"answer")
                assert headers["flower"] == "1"
                assert "connection" not in headers

    run(story())
    assert len(seen) == 3
    assert seen[0].content == BODY
    assert str(seen[0].url) == f"https://inner{PULL}"
    assert seen[0].headers["flwr-signature"]
    assert seen[0].headers["host"] == "inner"
    assert "transfer-encoding" not in seen[0].headers


def test_health_is_told_to_everybody_and_asked_rarely(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reverse_proxy, "_HEALTH_S", 1000.0)
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return reply(200)

    async def story() -> None:
        async with gate(tls, handler) as (_, call, _):
            for _ in range(5):
                caller = await call()
                status, headers, _ = await caller.ask(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
                assert status == 200
                assert headers["flwr-package-version"] == "1.42.0"
                assert "gmt" in headers["date"]  # by which a node sees that its clock is wrong
                assert await caller.cut()

    run(story())
    assert asked == ["/health"]


def test_a_superlink_that_is_away_is_worth_another_try(tls: ssl.SSLContext) -> None:
    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    assert once(tls, request(PULL, *signed()), away)[0] == 502  # a node tries again after it
    assert once(tls, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n", away)[0] == 502


def test_who_asks_for_it_is_told_to_go_on(tls: ssl.SSLContext) -> None:
    async def story() -> None:
        async with gate(tls, lambda request: reply(200, b"well")) as (_, call, _):
            node = await call()
            head = request(PULL, *signed(), (b"expect", b"100-continue"), body=b"", length=4)
            node.writer.write(head)
            assert b" 100 " in await node.reader.readuntil(b"\r\n\r\n")
            assert (await node.ask(b"body"))[::2] == (200, b"well")

    run(story())


# ---------------------------------------------------------------- what does not


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
        ("POST", "/v1/fleet/pull%2Dmessages"),
        ("POST", "//v1/fleet/pull-messages"),
        ("POST", "/v1/fleet/pull-messages/"),
        ("POST", "/v1/fleet/pull-messages?a=1"),
        ("POST", "/V1/fleet/pull-messages"),
        ("GET", "/v1/fleet/pull-messages"),
        ("POST", "/health"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("OPTIONS", "*"),
    ],
)
def test_everything_else_is_not_there(
    tls: ssl.SSLContext, method: str, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert once(tls, request(path, *signed(), method=method), nobody)[0] == 404
    assert f"refused 127.0.0.1: {method} {path!r}\n" in capsys.readouterr().out


@given(st.sampled_from(["GET", "POST", "PUT"]), TARGETS.map("/v1/".__add__))
def test_no_path_but_those_of_the_list_gets_past(method: str, path: str) -> None:
    headers = [(b"host", b"x"), (b"content-length", b"1"), *SIGNED]
    asked = h11.Request(method=method, target=path, headers=headers)
    standing = Gate(httpx.AsyncClient(), "1.42.0", NODES, PATIENT)
    guest = standing.admission.enter("192.0.2.1")
    conversation = reverse_proxy._Conversation(standing, guest, None, None)  # type: ignore[arg-type]
    with pytest.raises(reverse_proxy.RefusalError) as caught:
        conversation._admitted(asked)
    assert caught.value.status == 404


@pytest.mark.parametrize(
    "lines",
    [
        list,
        lambda: signed(OTHER),
        lambda: signed(KEY, by=OTHER),
        lambda: signed(KEY, late_s=400),
        lambda: signed(KEY, late_s=-60),
    ],
    ids=["unsigned", "unknown", "forged", "old", "of the future"],
)
def test_who_is_not_known_is_sent_away_before_a_byte_of_the_body(
    tls: ssl.SSLContext, lines: Callable[[], list[tuple[bytes, bytes]]]
) -> None:
    head = request(PULL, *lines(), body=b"", length=60 << 20)
    assert once(tls, head, nobody)[0] == 401


def test_an_unknown_node_hears_flowers_own_words(tls: ssl.SSLContext) -> None:
    status, _, body = once(tls, request(ACTIVATE, *signed(OTHER)), nobody)
    assert status == 412
    assert b'"code": 2004' in body  # see the patterns of errors
    assert once(tls, request(ACTIVATE, *signed(KEY, by=OTHER)), nobody)[0] == 401


def test_a_connection_belongs_to_one_node(tls: ssl.SSLContext) -> None:
    async def story() -> None:
        async with gate(tls, lambda request: reply(200)) as (standing, call, _):
            standing.nodes = NodeKeys(pki.openssh_line(key.public_key()) for key in (KEY, OTHER))
            node = await call()
            assert (await node.ask(request(PULL, *signed(KEY))))[0] == 200
            assert (await node.ask(request(PULL, *signed(OTHER))))[0] == 401

    run(story())


@pytest.mark.parametrize(("length", "status"), [(-1, 411), (PATIENT.largest + 1, 413)])
def test_a_request_says_its_size_and_is_no_larger(
    tls: ssl.SSLContext, length: int, status: int
) -> None:
    assert once(tls, request(PULL, *signed(), body=b"", length=length), nobody)[0] == status


def test_half_a_request_is_not_passed_on_as_a_whole(tls: ssl.SSLContext) -> None:
    got: list[int] = []

    async def handler(request: httpx.Request) -> httpx.Response:
        got.append(len(await request.aread()))
        return reply(200)

    async def story() -> None:
        async with gate(tls, handler) as (standing, call, _):
            node = await call()
            node.writer.write(request(PULL, *signed(), body=BODY[:100], length=len(BODY)))
            await node.writer.drain()
            while not standing._tasks or not any(one.busy for one in standing._tasks.values()):
                await asyncio.sleep(0.01)
            node.writer.close()
            while len(standing.admission):
                await asyncio.sleep(0.01)

    run(story())
    assert got == []


# ---------------------------------------------------------------- limits


def test_a_header_without_an_end_is_cut_off(tls: ssl.SSLContext) -> None:
    """Today's uvicorn took 2.4 GB of it in 40 s; what was let in is all that is kept here."""

    async def story() -> None:
        async with gate(tls, nobody) as (_, call, _):
            stranger = await call()
            sent = 0
            with contextlib.suppress(OSError):
                stranger.writer.write(b"GET /health HTTP/1.1\r\n")
                while sent < 64 << 20 and not stranger.writer.transport.is_closing():
                    stranger.writer.write(b"x: " + b"a" * 60_000 + b"\r\n")
                    sent += 60_000
                    await stranger.writer.drain()
            assert sent < 32 << 20

    run(story())


@pytest.mark.parametrize("kind", ["handshake", "head", "body", "idle"])
def test_deadlines(tls: ssl.SSLContext, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    shorter: dict[str, Any] = {f"{kind}_s": 0.3} if kind != "body" else {"grace_s": 0.3}
    limits = replace(PATIENT, **shorter)

    async def body(request: httpx.Request) -> httpx.Response:
        await request.aread()
        return reply(200)

    async def story() -> None:
        async with gate(tls, body, limits) as (standing, call, port):
            if kind == "handshake":
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"\x16\x03\x01\x02\x00\x01\x00")
                caller = Caller(reader, writer)
            else:
                caller = await call()
            if kind == "head":
                caller.writer.write(b"GET /health HTTP/1.1\r\nx: ")
            if kind == "body":
                caller.writer.write(request(PULL, *signed(), body=b"a", length=1000))
            if kind == "idle":
                assert (await caller.ask(request(PULL, *signed())))[0] == 200
            assert await caller.cut()
            while len(standing.admission):
                await asyncio.sleep(0.01)
            if kind == "handshake":
                writer.transport.abort()

    run(story())
    assert "refused 127.0.0.1" in capsys.readouterr().out


def test_slow_is_fine_where_it_moves(tls: ssl.SSLContext) -> None:
    limits = replace(PATIENT, grace_s=1.0, least_rate=1.0)

    async def body(request: httpx.Request) -> httpx.Response:
        return reply(200, b"%d" % len(await request.aread()))

    async def story() -> None:
        async with gate(tls, body, limits) as (_, call, _):
            node = await call()
            node.writer.write(request(PULL, *signed(), body=b"", length=4000))
            for _ in range(4):  # longer than the grace alone
                node.writer.write(bytes(1000))
                await node.writer.drain()
                await asyncio.sleep(0.4)
            assert (await node.hear())[::2] == (200, b"4000")

    run(story())


def test_a_crowd_of_strangers_makes_room_and_members_stay(tls: ssl.SSLContext) -> None:
    limits = replace(PATIENT, strangers=4, per_address=3)

    async def story() -> None:
        async with gate(tls, lambda request: reply(200)) as (standing, call, _):
            standing.admission._limits = limits
            node = await call()
            assert (await node.ask(request(PULL, *signed())))[0] == 200
            crowd = [await call() for _ in range(12)]
            assert all([await one.cut() for one in crowd[:8]])
            assert len(standing.admission) <= 1 + limits.per_address
            newcomer = await call()
            assert (await newcomer.ask(request(PULL, *signed())))[0] == 200
            assert (await node.ask(request(PULL, *signed())))[0] == 200

    run(story())


def test_a_crowd_from_elsewhere_is_turned_away_at_once(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = replace(PATIENT, strangers=6, per_address=3, patience_s=600.0)
    monkeypatch.setattr(reverse_proxy, "neighbourhood", {"127.0.0.1": "a", "127.0.0.2": "b"}.get)

    async def story() -> None:
        async with gate(tls, lambda request: reply(200), limits) as (_, call, port):
            crowd = [
                Caller(
                    *await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
                )
                for _ in range(9)
            ]
            assert all([await one.cut() for one in crowd[3:]])
            newcomer = await call()
            assert (await newcomer.ask(request(PULL, *signed())))[0] == 200
            for one in crowd:
                one.writer.transport.abort()

    run(story())
    assert capsys.readouterr().out.count("refused b: too many connections") == 6


def test_who_is_cut_as_its_handshake_ends_leaves_its_number_to_the_next(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its socket, closed under asyncio's feet, once made the next connection wait for nothing."""
    made = reverse_proxy._Protocol.connection_made
    standing: list[Gate] = []

    def cut(self: reverse_proxy._Protocol, transport: asyncio.BaseTransport) -> None:
        made(self, transport)
        if standing:
            for guest in standing.pop()._tasks.values():
                guest.cut()

    monkeypatch.setattr(reverse_proxy._Protocol, "connection_made", cut)

    async def story() -> None:
        async with gate(tls, lambda request: reply(200)) as (door, call, _):
            for _ in range(5):
                standing.append(door)
                unlucky = await call()
                assert await unlucky.cut()
                unlucky.writer.transport.abort()
                for _ in range(2):
                    caller = await call()
                    assert (await caller.ask(request(PULL, *signed())))[0] == 200
            for key in asyncio.get_running_loop()._selector.get_map().values():  # type: ignore[attr-defined]
                os.fstat(key.fd)  # none of these is closed

    run(story())


def tls_of_servers() -> int:
    """Connections whose buffers are still in memory."""
    # isinstance would ask objects of other libraries, some of which answer with a warning.
    return sum(type(one) is sslproto.SSLProtocol and one._server_side for one in gc.get_objects())


def test_a_connection_that_is_cut_leaves_nothing_to_the_garbage_collector(
    tls: ssl.SSLContext,
) -> None:
    """A cycle of task and guest once kept 256 KiB of each: 200 MB after 20 s of strangers."""
    limits = replace(PATIENT, strangers=4, per_address=4)

    async def story() -> None:
        async with gate(tls, nobody, limits) as (standing, call, _):
            gc.collect()
            before = tls_of_servers()  # of other tests
            gc.disable()
            try:
                crowd = [await call() for _ in range(24)]
                assert all([await one.cut() for one in crowd[:20]])
                assert len(standing.admission) == 4
                assert tls_of_servers() - before <= 2 * limits.strangers
            finally:
                gc.enable()

    run(story())


def test_a_nodes_forgotten_connections_are_closed(tls: ssl.SSLContext) -> None:
    limits = replace(PATIENT, per_node=2)

    async def story() -> None:
        async with gate(tls, lambda request: reply(200), limits) as (standing, call, _):
            made = []
            for _ in range(4):
                made.append(await call())
                assert (await made[-1].ask(request(PULL, *signed())))[0] == 200
            assert await made[0].cut()
            assert await made[1].cut()
            assert len(standing.admission) == 2

    run(story())


def test_no_connection_is_left_for_the_members(tls: ssl.SSLContext) -> None:
    limits = replace(PATIENT, members=1)

    async def story() -> None:
        async with gate(tls, lambda request: reply(200), limits) as (_, call, _):
            first, second = await call(), await call()
            assert (await first.ask(request(PULL, *signed())))[0] == 200
            assert (await second.ask(request(PULL, *signed())))[0] == 503

    run(story())


def test_large_bodies_take_turns_and_small_ones_do_not_wait(tls: ssl.SSLContext) -> None:
    limits = replace(PATIENT, small=10, in_flight=1, largest=1000)
    large, most = [0], [0]
    together = asyncio.Barrier(4)

    async def body(request: httpx.Request) -> httpx.Response:
        if len(await request.aread()) == 1:
            await together.wait()
            return reply(200)
        large[0] += 1
        most[0] = max(most[0], large[0])
        await asyncio.sleep(0.05)
        large[0] -= 1
        return reply(200)

    async def story() -> None:
        async with gate(tls, body, limits) as (_, call, _):
            nodes = [await call() for _ in range(4)]
            for size in (600, 1):
                data = request(PULL, *signed(), body=bytes(size))
                answers = await asyncio.gather(*(node.ask(data) for node in nodes))
                assert {status for status, _, _ in answers} == {200}

    run(story())
    assert most == [1]


def test_without_descriptors_it_waits_and_goes_on(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = [OSError(24, "Too many open files"), OSError(103, "gone")]

    async def story() -> None:
        loop = asyncio.get_running_loop()
        accept = loop.sock_accept

        async def failing(sock: socket.socket) -> tuple[socket.socket, object]:
            if failures:
                raise failures.pop(0)
            return await accept(sock)

        monkeypatch.setattr(loop, "sock_accept", failing)
        async with gate(tls, lambda request: reply(200)) as (_, call, _):
            assert (await (await call()).ask(request(PULL, *signed())))[0] == 200

    run(story())
    assert "no connection accepted: Too many open files" in capsys.readouterr().out


def test_a_fault_of_ours_ends_one_connection_alone(
    tls: ssl.SSLContext, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = [RuntimeError("unheard of")]

    def handler(request: httpx.Request) -> httpx.Response:
        if faults:
            raise faults.pop()
        return reply(200)

    async def story() -> None:
        async with gate(tls, handler) as (_, call, _):
            first, second = await call(), await call()
            first.writer.write(request(PULL, *signed()))
            assert await first.cut()
            assert (await second.ask(request(PULL, *signed())))[0] == 200

    run(story())
    assert "unheard of" in capsys.readouterr().out


def test_requests_on_their_way_are_finished_when_it_closes(tls: ssl.SSLContext) -> None:
    arrived = asyncio.Event()

    async def handler(request: httpx.Request) -> httpx.Response:
        arrived.set()
        await asyncio.sleep(0.2)
        return reply(200, b"well")

    async def story() -> None:
        async with gate(tls, handler) as (_, call, _):
            node, idle = await call(), await call()
            node.writer.write(request(PULL, *signed()))
            await arrived.wait()
            [serving] = [
                task
                for task in asyncio.all_tasks()
                if getattr(task.get_coro(), "__qualname__", "") == "Gate.serve"
            ]
            serving.cancel()
            assert (await node.hear())[::2] == (200, b"well")
            assert await idle.cut()

    run(story())


def test_refusals_do_not_fill_the_disk(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]

    async def story() -> None:
        loop = asyncio.get_running_loop()
        log = reverse_proxy._Refusals(2)
        real, loop.time = loop.time, lambda: now[0]  # type: ignore[method-assign]
        try:
            for _ in range(50):
                log.note("x")
            now[0] = 61.0
            log.note("y")
        finally:
            loop.time = real  # type: ignore[method-assign]

    asyncio.run(story())
    assert capsys.readouterr().out.splitlines() == ["x", "x", "and 48 more in that minute", "y"]


def test_a_taken_port_is_said_as_flower_says_it() -> None:
    [taken] = listen("127.0.0.1", 0)
    with taken, pytest.raises(OSError, match="in use"):
        listen("127.0.0.1", taken.getsockname()[1])


@pytest.fixture(autouse=True)
def nothing_is_left(tls: ssl.SSLContext) -> Iterator[None]:
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) <= before

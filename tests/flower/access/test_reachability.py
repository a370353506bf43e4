"""Servers on loopback that are wrong in one way each, and what is said of them."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from importlib import metadata
from pathlib import Path

import pytest

from fedvtc_edge.errors import DeploymentError
from fedvtc_edge.flower.access import pki, reachability
from fedvtc_edge.flower.access.reachability import check_port_free, check_reachable

LOCAL = "127.0.0.1"
NOW = datetime.now(UTC)
Talk = Callable[[socket.socket], None]
Listen = Callable[[Talk], int]


@pytest.fixture
def listen() -> Iterator[Listen]:
    """``listen(talk)``: a port of loopback on which each connection is handed to ``talk``."""
    sockets, threads = [], []

    def start(talk: Talk) -> int:
        server = socket.create_server((LOCAL, 0))

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return  # the test is over
                # The client may go away: some tests are about that.
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(30)
                    talk(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        sockets.append(server)
        threads.append(thread)
        return int(server.getsockname()[1])

    yield start
    for server in sockets:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
    for thread in threads:
        thread.join()


class Tls:
    """An authority and certificates in a folder, and servers that have them."""

    def __init__(self, folder: Path, listen: Listen) -> None:
        self.folder, self.listen = folder, listen
        self.authority = pki.new_authority("an authority", 30)
        self.ca = folder / "ca.crt"
        self.ca.write_bytes(self.authority.certificate_pem())

    def serve(
        self,
        replies: dict[str, bytes],
        hosts: tuple[str, ...] = (LOCAL,),
        now: datetime = NOW,
    ) -> int:
        """A port on which a GET of each path has that answer, byte for byte."""
        made = pki.server_certificate(self.authority, hosts, 2, now=now)
        pair = self.folder / "pair.pem"
        pair.write_bytes(made.certificate_pem() + made.key_pem())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair)

        def talk(plain: socket.socket) -> None:
            with context.wrap_socket(plain, server_side=True) as connection:
                request = b""
                while piece := connection.recv(4096):
                    request += piece
                    if request.endswith(b"\r\n\r\n"):
                        path = request.split()[1].decode()
                        connection.sendall(replies.get(path, page(b"", "404 Not Found")))
                        request = b""

        return self.listen(talk)


@pytest.fixture
def tls(tmp_path: Path, listen: Listen) -> Tls:
    return Tls(tmp_path, listen)


def page(body: bytes = b"", status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def described(title: str = "SuperLink API", version: str | None = None) -> bytes:
    info = {"title": title, "version": version or metadata.version("flwr")}
    return page(json.dumps({"openapi": "3.1.0", "info": info}).encode())


def date(ahead: float = 0) -> str:
    return f"Date: {formatdate(time.time() + ahead, usegmt=True)}"


def refused(port: int, authority: Path, host: str = LOCAL, timeout: float = 30) -> DeploymentError:
    with pytest.raises(DeploymentError) as caught:
        check_reachable(host, port, authority, timeout)
    return caught.value


# ---------------------------------------------------------------- servers


def test_a_server_that_is_all_right(tls: Tls) -> None:
    port = tls.serve({"/health": page(b"", "200 OK", date()), "/openapi.json": described()})
    assert check_reachable(LOCAL, port, tls.ca) == metadata.version("flwr")


def test_a_server_that_tells_its_version_at_once(tls: Tls) -> None:
    port = tls.serve({"/health": page(b"", "200 OK", "Flwr-Package-Version: 1.42.9")})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reachability, "_installed", lambda: "1.42.0")
        assert check_reachable(LOCAL, port, tls.ca) == "1.42.9"
        patched.setattr(reachability, "_installed", lambda: "1.43.0")
        assert "has Flower '1.42.9', this machine '1.43.0'" in str(refused(port, tls.ca))


def test_a_server_that_does_not_tell_its_version(tls: Tls) -> None:
    port = tls.serve({"/health": page()})
    assert check_reachable(LOCAL, port, tls.ca) is None


@pytest.mark.parametrize("own", [None, "1.40.3"])
def test_versions_that_go_together(
    tls: Tls, own: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reachability, "_installed", lambda: own)
    port = tls.serve({"/health": page(), "/openapi.json": described(version="1.40.0")})
    assert check_reachable(LOCAL, port, tls.ca) == "1.40.0"


@pytest.mark.parametrize(
    ("replies", "message"),
    [
        ({}, "answers /health with 404: it is no Flower server"),
        ({"/health": page(b"", "302 Found", "Location: /x")}, "answers /health with 302"),
        ({"/health": page(), "/openapi.json": described("SuperNode API")}, "is 'SuperNode API'"),
        ({"/health": page(), "/openapi.json": page(b"{}")}, "does not say what it is"),
        ({"/health": page(), "/openapi.json": page(b"[" * 9999)}, "does not say what it is"),
        ({"/health": page(), "/openapi.json": page(b"\xff")}, "does not say what it is"),
        ({"/health": page(b"x" * 1_048_577)}, "/health is larger than 1048576 bytes"),
        ({"/health": b"220 mail.example.org\r\n\r\n"}, "speaks TLS but no HTTP"),
        (
            {"/health": page(), "/openapi.json": described(version="1.29.0")},
            "has Flower '1.29.0', this machine '1.4",
        ),
    ],
)
def test_what_is_no_server_for_us(tls: Tls, replies: dict[str, bytes], message: str) -> None:
    port = tls.serve(replies)
    error = refused(port, tls.ca)
    assert str(error).startswith(f"{LOCAL}:{port} ")
    assert message in str(error)
    assert "fedvtc-edge serve?" in error.hint or "one version of flwr" in error.hint


@pytest.mark.parametrize(
    ("ahead", "message"), [(3600, "3600 s behind"), (-3600, "3600 s ahead of"), (-20, "s ahead of")]
)
def test_clocks_that_differ(tls: Tls, ahead: float, message: str) -> None:
    """Flower refuses every message of such a node, and the node does not say why."""
    port = tls.serve({"/health": page(b"", "200 OK", date(ahead), date())})
    number, _, rest = message.partition(" ")
    error = refused(port, tls.ca)
    assert rest in str(error)
    assert "NTP" in error.hint
    if number.isdigit():
        shown = int(str(error).split(" is ")[1].split()[0])
        assert abs(shown - int(number)) < 120  # a busy machine


@pytest.mark.parametrize(
    "made",
    [lambda: date(200), lambda: "Date: yesterday", lambda: "Date: "],
    ids=["behind", "words", "empty"],
)
def test_clocks_that_are_near_enough(tls: Tls, made: Callable[[], str]) -> None:
    stamp = made()  # now, and not when tests were collected
    port = tls.serve({"/health": page(b"", "200 OK", stamp)})
    assert check_reachable(LOCAL, port, tls.ca) is None


# ---------------------------------------------------------------- certificates


@pytest.mark.parametrize(
    ("hosts", "days", "message", "hint"),
    [
        (("a.test",), 0, "IP address mismatch, certificate is not valid for '127", "by a name"),
        ((LOCAL,), -9, "certificate has expired", "clock"),
        ((LOCAL,), 9, "certificate is not yet valid", "set the clock"),
    ],
)
def test_certificates_that_are_wrong(
    tls: Tls, hosts: tuple[str, ...], days: int, message: str, hint: str
) -> None:
    port = tls.serve({"/health": page()}, hosts, NOW + timedelta(days=days))
    error = refused(port, tls.ca)
    assert str(error).startswith(f"the certificate of {LOCAL}:{port} is refused: {message}")
    assert hint in error.hint


def test_another_authority(tls: Tls, tmp_path: Path) -> None:
    port = tls.serve({"/health": page()})
    other = tmp_path / "other.crt"
    other.write_bytes(pki.new_authority("an authority", 1).certificate_pem())
    error = refused(port, other)
    assert f"the certificate of {LOCAL}:{port} is refused: " in str(error)
    assert "need the ca.crt" in error.hint


def test_the_authority_is_looked_at_first(tls: Tls, tmp_path: Path) -> None:
    assert "cannot read the certificate" in str(refused(1, tmp_path / "absent"))


# ---------------------------------------------------------------- no server


@pytest.mark.parametrize(
    "said",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"\0" * 100],
    ids=["HTTP", "SSH", "zeros"],
)
def test_no_tls(tls: Tls, listen: Listen, said: bytes) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(said)

    port = listen(talk)
    error = refused(port, tls.ca)
    assert str(error).startswith(f"no TLS with {LOCAL}:{port}: ")


def test_tls_that_we_do_not_speak(tls: Tls, listen: Listen) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(bytes([21, 3, 3, 0, 2, 2, 70]))  # an alert: protocol version

    error = refused(listen(talk), tls.ca)
    assert "no TLS with 127.0.0.1:" in str(error)


def test_one_that_hangs_up(tls: Tls, listen: Listen) -> None:
    port = listen(lambda connection: None)
    error = refused(port, tls.ca)
    assert f"{LOCAL}:{port}" in str(error)
    assert "fedvtc-edge serve?" in error.hint


def test_nobody_there(tls: Tls) -> None:
    with socket.create_server((LOCAL, 0)) as server:
        port = server.getsockname()[1]
    error = refused(port, tls.ca)
    assert str(error) == f"nothing listens on {LOCAL}:{port}"
    assert "fedvtc-edge serve" in error.hint


def test_one_that_says_nothing(tls: Tls) -> None:
    with socket.create_server((LOCAL, 0)) as server:
        port = server.getsockname()[1]
        error = refused(port, tls.ca, timeout=0.2)
    assert str(error) == f"{LOCAL}:{port} did not answer within 0.2 s"


def test_a_name_of_nobody(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = refused(8000, tls.ca, "nobody.invalid")
    assert str(error) == "the host name 'nobody.invalid' does not resolve to an address"
    with pytest.raises(DeploymentError, match=r"'nobody\.invalid' does not resolve"):
        check_port_free("nobody.invalid", 8000)


def test_no_way_there(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    error = refused(8000, tls.ca, "::1")
    assert str(error) == "cannot reach [::1]:8000: Network is unreachable"


@pytest.mark.parametrize("host", ["0.0.0.0", "https://x", "a b", ""])
def test_what_is_no_host(tls: Tls, host: str) -> None:
    assert "address" in str(refused(8000, tls.ca, host))


@pytest.mark.parametrize("port", [-1, 0, 65_536])
def test_what_is_no_port(tls: Tls, port: int) -> None:
    assert str(refused(port, tls.ca)) == f"port {port}, expected 1 to 65535"


# ---------------------------------------------------------------- ports


def test_a_port_that_is_free() -> None:
    check_port_free(LOCAL, 0)
    with socket.create_server((LOCAL, 0)) as server:
        port = server.getsockname()[1]
    check_port_free(LOCAL, port)


@pytest.mark.parametrize("host", [LOCAL, "localhost", "0.0.0.0"])
def test_a_port_that_is_taken(host: str) -> None:
    with socket.create_server((LOCAL, 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(DeploymentError, match=f"^port {port} of {host} is in use$") as caught:
            check_port_free(host, port)
    assert caught.value.hint == "choose another with --port"


def test_an_address_of_another_machine() -> None:
    with pytest.raises(DeploymentError, match=r"^192\.0\.2\.1 is no address of this machine$"):
        check_port_free("192.0.2.1", 8000)  # of no machine at all, RFC 5737


@pytest.mark.parametrize(
    ("number", "message"), [(13, "needs an administrator's rights"), (1, "cannot listen on h:80")]
)
def test_a_port_that_is_not_allowed(number: int, message: str) -> None:
    error = reachability._taken(OSError(number, "Permission denied"), "h", 80)
    assert message in str(error)


@pytest.mark.parametrize("port", [-1, 65_536])
def test_a_port_out_of_range(port: int) -> None:
    with pytest.raises(DeploymentError, match="expected 0 to 65535"):
        check_port_free(LOCAL, port)

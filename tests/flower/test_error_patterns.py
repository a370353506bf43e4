"""What Flower 1.42.0 really wrote when it gave up, and what we make of it."""

from __future__ import annotations

import time
from importlib import metadata
from pathlib import Path

import pytest

from fedvtc_edge.errors import DeploymentError
from fedvtc_edge.flower.access.keys import ClientKeyBundle, ServerKeyBundle, make_test_keys
from fedvtc_edge.flower.access.reachability import check_reachable
from fedvtc_edge.flower.error_patterns import PATTERNS, explain
from fedvtc_edge.flower.process.daemon import Daemon, environment, executable, free_port


def supernode(said: str) -> str:
    """The last lines of a flower-supernode that could not connect."""
    return f"""\
INFO :      Starting Flower SuperNode
INFO:     Uvicorn running on http://127.0.0.1:21490 (Press CTRL+C to quit)
ERROR :     Exit Code: 305
Failed to initialize the connection to the SuperLink.
{said}
The SuperNode could not establish a connection to the SuperLink.

For more information, visit: <https://flower.ai/docs/framework/1.42/en/ref-exit-codes/305.html>
INFO:     Shutting down
INFO:     Waiting for application shutdown.
INFO:     Finished server process [11244]
INFO :      Starting Flower SuperExec
WARNING :   Connection attempt failed, retrying in 0.32 seconds
INFO :      SuperExec terminated gracefully.
"""


FAILED = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: "
SEEN = {
    "unregistered": (
        supernode("[code: 2004] Failed to activate SuperNode."),
        "the server does not let this node in: its key is not registered, "
        "or another process uses it",
        "nodes/CLIENT-ID.pub",
    ),
    "no key": (
        supernode(
            "[code: 2001] SuperNode authentication is enabled. "
            "All SuperNodes must be registered via the CLI."
        ),
        "the server works with registered nodes alone, and this one showed no key",
        "fedvtc-edge join",
    ),
    "wrong key": (
        """\
ERROR :     Exit Code: 302
Unable to parse the private key file.
Node authentication requires elliptic curve private key. Please ensure that the file path \
points to a valid private key file and try again.
""",
        "the node's key is not an ECDSA key in OpenSSH's format without a passphrase",
        "ssh-keygen",
    ),
    "other authority": (
        supernode(f"{FAILED}unable to get local issuer certificate (_ssl.c:1006)"),
        "the server's certificate is refused: unable to get local issuer certificate",
        "ca.crt",
    ),
    "expired": (
        supernode(f"{FAILED}certificate has expired (_ssl.c:1006)"),
        "the server's certificate is refused: certificate has expired",
        "clocks",
    ),
    "to come": (
        supernode(f"{FAILED}certificate is not yet valid (_ssl.c:1006)"),
        "the server's certificate is refused: certificate is not yet valid",
        "clock",
    ),
    "other address": (
        supernode(
            f"{FAILED}IP address mismatch, certificate is not valid for '127.0.0.1'. (_ssl.c:1006)"
        ),
        "the server's certificate is refused: "
        "IP address mismatch, certificate is not valid for '127.0.0.1'",
        "name by which the server is called",
    ),
    "superexec beside the server": (
        f"""\
    raise mapped_exc(message) from exc
httpx.ConnectError: {FAILED}IP address mismatch, certificate is not valid for '127.0.0.1'. \
(_ssl.c:1006)
""",
        "the server's certificate is refused: "
        "IP address mismatch, certificate is not valid for '127.0.0.1'",
        "name by which the server is called",
    ),
    "no TLS": (
        supernode("[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)"),
        "what listens there does not speak TLS",
        "the host and the port",
    ),
    "version": (
        """\
ERROR :     Exit Code: 606
Runtime version compatibility check failed.
SuperLink version 1.42.0 detected a runtime version mismatch: expected a peer from the same \
major.minor release, but received SuperExec version 1.40.0.
Upgrade your Flower version to the required version, or contact the server administrator.
""",
        "two versions of Flower: SuperLink version 1.42.0 and SuperExec version 1.40.0",
        "one version of flwr",
    ),
    "newer database": (
        """\
    raise util.CommandError(resolution) from re
alembic.util.exc.CommandError: Can't locate revision identified by 'ffffffffffff'
""",
        "the server's database is from another version of Flower",
        "new folder",
    ),
    "port of a server": (
        """\
2026-11-25T19:08:59.808Z ERROR [uvicorn.error] [Errno 98] error while attempting to bind on \
address ('127.0.0.1', 18732): address already in use
2026-11-25T19:08:59.808Z INFO [uvicorn.error] Waiting for application shutdown.
""",
        "port 18732 of 127.0.0.1 is in use",
        "--port",
    ),
    "port of a node": (
        """\
ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 18732): \
address already in use
RuntimeError: SuperNode Runtime HTTP API failed to start.
""",
        "port 18732 of 127.0.0.1 is in use",
        "--port",
    ),
    "address of nobody": (
        """\
2026-11-25T19:19:45.272Z ERROR [uvicorn.error] [Errno 99] error while attempting to bind on \
address ('192.0.2.1', 18752): cannot assign requested address
""",
        "192.0.2.1 is no address of this machine",
        "--host 0.0.0.0",
    ),
    "no address": (
        """\
ERROR :     Exit Code: 600
SuperLink address (http://127.0.0.1:9) cannot be parsed.
Please provide a domain name, IPv4 or IPv6 address with a port, without a URL prefix.
""",
        "http://127.0.0.1:9 is no address of a server",
        "HOST:PORT",
    ),
    "flwr finds no server": (
        r"""{
  "success": false,
  "error-message": "Using SuperLink: lan (127.0.0.1:18743)\n\nConnection to the SuperLink is \
unavailable. Please check your network connection and 'address' in the SuperLink connection \
configuration."
}""".replace("\\\n", ""),
        "the server does not answer, or its certificate is refused",
        "see its log",
    ),
}


@pytest.mark.parametrize("what", SEEN)
def test_what_was_seen(what: str) -> None:
    text, message, hint = SEEN[what]
    error = explain(text)
    assert isinstance(error, DeploymentError)
    assert str(error) == message
    assert hint in error.hint


def test_no_saying_was_never_seen() -> None:
    texts = [text for text, _, _ in SEEN.values()]
    for pattern in PATTERNS:
        assert any(map(pattern.line.search, texts)), pattern.line.pattern


@pytest.mark.parametrize(
    "text",
    [
        "",
        "WARNING :   Connection attempt failed, retrying in 0.42 seconds",
        "INFO :      SuperNode terminated gracefully.",
        "Traceback (most recent call last):\nKeyError: 'x'",
    ],
)
def test_what_we_do_not_know(text: str) -> None:
    assert explain(text) is None


def version_of(port: int, authority: Path) -> str | None:
    try:
        return check_reachable("127.0.0.1", port, authority)
    except DeploymentError:
        return None  # not yet


@pytest.mark.slow
def test_a_node_that_is_not_registered(tmp_path: Path) -> None:
    """Flower itself: a server of another trial's clients, and a node of this one."""
    make_test_keys(tmp_path / "trial", 1)
    kit = ServerKeyBundle.load(tmp_path / "trial" / "server")
    client = ClientKeyBundle.load(tmp_path / "trial" / "client-00")
    environ = environment(tmp_path / "home")
    port = free_port()
    server = [
        *(executable("flower-superlink"), "--host", "127.0.0.1", "--port", str(port)),
        *("--ssl-certfile", str(kit.certificate), "--ssl-keyfile", str(kit.private_key)),
        *("--ssl-ca-certfile", str(kit.authority), "--enable-supernode-auth"),
    ]
    node = [
        *(executable("flower-supernode"), "--superlink", f"127.0.0.1:{port}"),
        *("--port", str(free_port()), "--root-certificates", str(client.authority)),
        *("--auth-supernode-private-key", str(client.node_key)),
    ]
    with Daemon(server, log=tmp_path / "server.log", environ=environ) as running:
        while not (version := version_of(port, client.authority)):
            assert running.alive(), running.tail()
            time.sleep(0.1)
        assert version == metadata.version("flwr")
        with Daemon(node, log=tmp_path / "node.log", environ=environ) as refused:
            assert refused.wait(120) == 1
            error = explain(refused.tail(40))
    assert error is not None
    assert "its key is not registered" in str(error)

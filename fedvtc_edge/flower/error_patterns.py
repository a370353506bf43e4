"""Patterns of what Flower's processes write when they give up, each with a message and a hint."""

from __future__ import annotations

import re
from typing import NamedTuple

from fedvtc_edge.errors import DeploymentError


class ErrorPattern(NamedTuple):
    """A line that Flower writes, and what it means.

    Args:
        message: What went wrong; may refer to groups of the pattern.
    """

    line: re.Pattern[str]
    message: str
    hint: str


# Each seen in what Flower 1.42.0 wrote, on Python 3.11 with OpenSSL 3.0; the whole texts are
# in the tests. Where one text has several of them, the first here says the most.
PATTERNS = (
    # flower-supernode: the server does not know the key, or has a node with this key that
    # is online. One that was killed counts as online for two heartbeats: let in again after 60 s.
    ErrorPattern(
        re.compile(r"\[code: 2004\] Failed to activate SuperNode"),
        "the server does not let this node in: its key is not registered, "
        "or another process uses it",
        "the server needs the node's public key, nodes/CLIENT-ID.pub; after a crash, wait a minute",
    ),
    # flower-supernode, started without a key.
    ErrorPattern(
        re.compile(r"\[code: 2001\] SuperNode authentication is enabled"),
        "the server works with registered nodes alone, and this one showed no key",
        "start the node with its key: fedvtc-edge join HOST:PORT --keys DIR",
    ),
    # flower-supernode: PEM, another kind of key, a passphrase.
    ErrorPattern(
        re.compile(r"Unable to parse the private key file"),
        "the node's key is not an ECDSA key in OpenSSH's format without a passphrase",
        "make one: ssh-keygen -t ecdsa -b 384 -N '' -f FILE",
    ),
    # flower-supernode, and flower-superexec beside flower-superlink: OpenSSL's own words.
    ErrorPattern(
        re.compile(r"certificate verify failed: (.{1,200}?)\.? \(_ssl"),
        r"the server's certificate is refused: \1",
        "compare the clocks, the name by which the server is called, and both sides' ca.crt",
    ),
    # flower-supernode, where something answers in plain HTTP.
    ErrorPattern(
        re.compile(r"\[SSL: WRONG_VERSION_NUMBER\]"),
        "what listens there does not speak TLS",
        "is this the host and the port of fedvtc-edge serve?",
    ),
    # All of Flower's processes; the second number is of the one that gives up.
    ErrorPattern(
        re.compile(
            r"(\S+ version \S+) detected a runtime version mismatch: "
            r"expected a peer from the same major\.minor release, but received (.+ version \S+)\."
        ),
        r"two versions of Flower: \1 and \2",
        "install one version of flwr on all machines",
    ),
    # flower-superlink: its database was written by a newer Flower.
    ErrorPattern(
        re.compile(r"alembic\S*: Can't locate revision identified by"),
        "the server's database is from another version of Flower",
        "install that version of flwr, or start in a new folder",
    ),
    # flower-superlink and flower-supernode, said by asyncio.
    ErrorPattern(
        re.compile(r"bind on address \('([^']+)', (\d+).*: address already in use"),
        r"port \2 of \1 is in use",
        "choose another with --port",
    ),
    ErrorPattern(
        re.compile(r"bind on address \('([^']+)', .*: cannot assign requested address"),
        r"\1 is no address of this machine",
        "give one that is, or --host 0.0.0.0 for all",
    ),
    # flower-supernode.
    ErrorPattern(
        re.compile(r"SuperLink address \((.+)\) cannot be parsed"),
        r"\1 is no address of a server",
        "expected HOST:PORT, such as server.example.org:8000",
    ),
    # flwr, whatever the reason is: no server, or a certificate that it refuses.
    ErrorPattern(
        re.compile(r"Connection to the SuperLink is unavailable"),
        "the server does not answer, or its certificate is refused",
        "is the server running? see its log",
    ),
)


def explain(text: str) -> DeploymentError | None:
    """The reason why a process of Flower's ended, where it is one that we know."""
    for pattern in PATTERNS:
        if found := pattern.line.search(text):
            return DeploymentError(found.expand(pattern.message), hint=pattern.hint)
    return None

"""What Flower's processes say when they give up, in words that tell what to do."""

from __future__ import annotations

import re
from typing import NamedTuple

from fedvtc_edge.errors import DeploymentError


class Saying(NamedTuple):
    """A line of Flower's, and what it means.

    Args:
        line: A pattern that some line has.
        message: What went wrong; may refer to groups of the pattern.
        hint: What to do.
    """

    line: re.Pattern[str]
    message: str
    hint: str


# Each seen in what Flower 1.42.0 wrote, on Python 3.11 with OpenSSL 3.0; the whole texts are
# in the tests. Where one text has several of them, the first here says the most.
SAYINGS = (
    # flower-supernode: the server does not know the key, or has a node with this key that
    # is online. One that was killed counts as online for two heartbeats: let in again after 60 s.
    Saying(
        re.compile(r"\[code: 2004\] Failed to activate SuperNode"),
        "the server does not let this node in: its key is not registered, "
        "or another process uses it",
        "the server needs the node's public key, nodes/CLIENT-ID.pub; after a crash, wait a minute",
    ),
    # flower-supernode, started without a key.
    Saying(
        re.compile(r"\[code: 2001\] SuperNode authentication is enabled"),
        "the server works with registered nodes alone, and this one showed no key",
        "start the node with its key: fedvtc-edge join HOST:PORT --keys DIR",
    ),
    # flower-supernode: PEM, another kind of key, a passphrase.
    Saying(
        re.compile(r"Unable to parse the private key file"),
        "the node's key is not an ECDSA key in OpenSSH's format without a passphrase",
        "make one: ssh-keygen -t ecdsa -b 384 -N '' -f FILE",
    ),
    # flower-supernode, and flower-superexec beside flower-superlink.
    Saying(
        re.compile(r"certificate verify failed: certificate has expired"),
        "the server's certificate has expired",
        "make a new one, or set this machine's clock",
    ),
    Saying(
        re.compile(r"certificate verify failed: certificate is not yet valid"),
        "the server's certificate is not valid yet",
        "set the clock of this machine or of the one that made the certificate",
    ),
    Saying(
        re.compile(r"certificate verify failed: .*certificate is not valid for '([^']{1,255})'"),
        r"the server's certificate is not for \1",
        "call the server by a name that is in its certificate, or make one with this name",
    ),
    Saying(
        re.compile(r"certificate verify failed: (unable to get (local )?issuer|self[- ]signed)"),
        "the server's certificate is not signed by the authority that was given",
        "client and server need the ca.crt of who made the server's certificate",
    ),
    # flower-supernode, where something answers in plain HTTP.
    Saying(
        re.compile(r"\[SSL: WRONG_VERSION_NUMBER\]"),
        "what listens there does not speak TLS",
        "is this the host and the port of fedvtc-edge serve?",
    ),
    # All of Flower's processes; the second number is of the one that gives up.
    Saying(
        re.compile(
            r"(\S+ version \S+) detected a runtime version mismatch: "
            r"expected a peer from the same major\.minor release, but received (.+ version \S+)\."
        ),
        r"two versions of Flower: \1 and \2",
        "install one version of flwr on all machines",
    ),
    # flower-superlink: its database was written by a newer Flower.
    Saying(
        re.compile(r"alembic\S*: Can't locate revision identified by"),
        "the server's database is from another version of Flower",
        "install that version of flwr, or start in a new folder",
    ),
    # flower-superlink and flower-supernode, said by asyncio.
    Saying(
        re.compile(r"bind on address \('([^']+)', (\d+).*: address already in use"),
        r"port \2 of \1 is in use",
        "choose another with --port",
    ),
    Saying(
        re.compile(r"bind on address \('([^']+)', .*: cannot assign requested address"),
        r"\1 is no address of this machine",
        "give one that is, or --host 0.0.0.0 for all",
    ),
    # flower-supernode.
    Saying(
        re.compile(r"SuperLink address \((.+)\) cannot be parsed"),
        r"\1 is no address of a server",
        "expected HOST:PORT, such as server.example.org:8000",
    ),
    # flwr, whatever the reason is: no server, or a certificate that it refuses.
    Saying(
        re.compile(r"Connection to the SuperLink is unavailable"),
        "the server does not answer, or its certificate is refused",
        "is the server running? see its log",
    ),
)


def explain(text: str) -> DeploymentError | None:
    """The reason why a process of Flower's ended, where it is one that we know.

    Args:
        text: The last lines that it wrote.
    """
    for saying in SAYINGS:
        if found := saying.line.search(text):
            return DeploymentError(found.expand(saying.message), hint=saying.hint)
    return None

"""Checks that a port can be listened on, and that a Flower server answers behind one."""

from __future__ import annotations

import errno
import http.client
import os
import socket
import ssl
import time
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from fedvtc_edge.documents import parse_json
from fedvtc_edge.errors import DeploymentError

from .certificates import check_authority, refusal
from .pki import general_name

_SERVER = "SuperLink API"  # the title in /openapi.json of Flower 1.41 and 1.42
_VERSION_HEADER = "flwr-package-version"  # Flower's own name for it, between its processes
_LARGEST_ANSWER = 1_048_576
# Flower 1.42 refuses what a node signed more than 5 s in its future or 305 s in its past,
# and tells nobody; a Date header is of whole seconds and may be one second old.
_AHEAD_S, _BEHIND_S = 5 + 2, 305
_IS_IT_THE_PORT = "is this the host and the port of fedvtc-edge serve?"


def check_port_free(host: str, port: int) -> None:
    """Check that a server could listen there now; another may still be faster.

    Args:
        host: A name or address of this machine, or 0.0.0.0 for all.
        port: TCP port, 1 to 65,535; 0, which stands for any free one, always is free.

    Raises:
        DeploymentError: Taken, not allowed, or a host that is not this machine's.
    """
    _check_port(port, least=0)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise _unresolved(host) from None
    for family, kind, protocol, _, name in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                if os.name == "posix":
                    # As the gate does it: what closed a moment ago is no hindrance.
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(name)
        except OSError as error:
            raise _taken(error, host, port) from None


def check_reachable(host: str, port: int, authority: Path, timeout: float = 10.0) -> str | None:
    """Check that a Flower server answers there with which this installation can work.

    Args:
        host: The server, as its certificate names it.
        port: TCP port, 1 to 65,535.
        authority: Certificate of the authority that signed the server's.
        timeout: Seconds for each step.

    Returns:
        The server's Flower version; None where it does not tell.

    Raises:
        DeploymentError: The authority's file is wrong; nobody answers, or not in TLS; the
            certificate is of another authority, out of date, or for other hosts; what
            answers is no Flower server, or of another version; the clocks differ.
    """
    check_authority(authority)
    general_name(host)
    _check_port(port)
    trusting = ssl.create_default_context(cafile=authority)  # this authority and no other
    server = http.client.HTTPSConnection(host, port, timeout=timeout, context=trusting)
    try:
        server.connect()
    except ssl.SSLCertVerificationError as error:
        raise refusal(error, _at(host, port)) from None
    except ssl.SSLError as error:
        raise DeploymentError(
            f"no TLS with {_at(host, port)}: {error.reason or error}", hint=_IS_IT_THE_PORT
        ) from None
    except OSError as error:
        raise _unreachable(error, host, port, timeout) from None
    try:
        return _introduced(server, host, port)
    except (OSError, http.client.HTTPException) as error:
        raise DeploymentError(
            f"{_at(host, port)} speaks TLS but no HTTP: {error or type(error).__name__}",
            hint=_IS_IT_THE_PORT,
        ) from None
    finally:
        server.close()


def _introduced(server: http.client.HTTPSConnection, host: str, port: int) -> str | None:
    """Ask who it is."""
    asked = time.time()
    health, _ = _get(server, "/health")
    if health.status != http.HTTPStatus.OK:
        raise _no_flower(host, port, f"answers /health with {health.status}")
    version = health.headers.get(_VERSION_HEADER)
    if version is None:
        page, body = _get(server, "/openapi.json")
        if page.status == http.HTTPStatus.OK:  # else hidden by a proxy: no fault
            version = _titled(body, host, port)
    if version is not None:
        _check_version(version, host, port)
    _check_clock(asked, health.headers.get("Date"))
    return version


def _get(server: http.client.HTTPSConnection, path: str) -> tuple[http.client.HTTPResponse, bytes]:
    """One page and its content."""
    server.request("GET", path)
    reply = server.getresponse()
    body = reply.read(_LARGEST_ANSWER)
    if reply.read(1):  # a page without an end, and no second one on this connection
        raise http.client.HTTPException(f"{path} is larger than {_LARGEST_ANSWER} bytes")
    return reply, body


def _titled(body: bytes, host: str, port: int) -> str:
    """The version in a description of Flower's server, or a refusal of any other's."""
    try:
        info: dict[str, Any] = parse_json(body)["info"]
        title, version = str(info["title"]), str(info["version"])
    except (ValueError, KeyError, TypeError):
        raise _no_flower(host, port, "does not say what it is") from None
    if title != _SERVER:
        raise _no_flower(host, port, f"is {title!r:.40}")
    return version


def _check_version(version: str, host: str, port: int) -> None:
    own = _installed()
    if own is not None and own.split(".")[:2] != version.split(".")[:2]:
        raise DeploymentError(
            f"{_at(host, port)} has Flower {version!r:.40}, this machine {own!r}; "
            "expected the same major and minor version",
            hint="install one version of flwr on all machines",
        )


def _installed() -> str | None:
    """Version of Flower here."""
    try:
        return metadata.version("flwr")
    except metadata.PackageNotFoundError:
        return None


def _check_clock(asked: float, date: str | None) -> None:
    """Compare with the server's, where it tells its time; see :data:`_AHEAD_S`."""
    try:
        ahead = asked - parsedate_to_datetime(date or "").timestamp()
    except (ValueError, OverflowError):
        return
    if not -_BEHIND_S <= ahead <= _AHEAD_S:
        which = "ahead of" if ahead > 0 else "behind"
        raise DeploymentError(
            f"this machine's clock is {abs(ahead):.0f} s {which} the server's, "
            "and Flower takes no message from a node whose clock is wrong",
            hint="set the clocks of both machines, such as with NTP",
        )


def _no_flower(host: str, port: int, what: str) -> DeploymentError:
    return DeploymentError(
        f"{_at(host, port)} {what}: it is no Flower server", hint=_IS_IT_THE_PORT
    )


def _unreachable(error: OSError, host: str, port: int, timeout: float) -> DeploymentError:
    if isinstance(error, socket.gaierror):
        return _unresolved(host)
    if isinstance(error, ConnectionRefusedError):
        return DeploymentError(
            f"nothing listens on {_at(host, port)}",
            hint="start the server first: fedvtc-edge serve; or check host and port",
        )
    if isinstance(error, TimeoutError):
        return DeploymentError(
            f"{_at(host, port)} did not answer within {timeout:g} s",
            hint="check the address, and whether a firewall is in the way",
        )
    return DeploymentError(
        f"cannot reach {_at(host, port)}: {error.strerror or error}", hint=_IS_IT_THE_PORT
    )


def _unresolved(host: str) -> DeploymentError:
    return DeploymentError(
        f"the host name {host!r:.80} does not resolve to an address",
        hint="check its spelling, or give the server's IP address",
    )


def _taken(error: OSError, host: str, port: int) -> DeploymentError:
    if error.errno == errno.EADDRINUSE:
        return DeploymentError(
            f"port {port} of {host} is in use", hint="choose another with --port"
        )
    if error.errno == errno.EACCES:
        return DeploymentError(
            f"port {port} of {host} needs an administrator's rights",
            hint="choose one above 1023 with --port",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return DeploymentError(
            f"{host} is no address of this machine",
            hint="give one that is, or --host 0.0.0.0 for all",
        )
    return DeploymentError(
        f"cannot listen on {_at(host, port)}: {error.strerror}", hint="choose another --host"
    )


def _check_port(port: int, least: int = 1) -> None:
    if not least <= port <= 65_535:
        raise DeploymentError(f"port {port}, expected {least} to 65535", hint="set --port")


def _at(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

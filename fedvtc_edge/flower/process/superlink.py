"""Flower's server process: started, waited for, and asked for runs.

Whoever reaches a SuperLink's port can run code on it and on its nodes, so it listens on
127.0.0.1 alone. In a deployment, nodes come through :mod:`fedvtc_edge.flower.access.reverse_proxy`.

A SuperLink keeps the nodes' registrations and the runs in a database of the given
folder. Killed in any way and started again on the same folder, it knows the nodes and
they come back by themselves; a run that was going on is lost and is submitted anew.
"""

from __future__ import annotations

import http.client
import secrets
import shutil
import ssl
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from fedvtc_edge.errors import DeploymentError
from fedvtc_edge.flower.access import pki
from fedvtc_edge.flower.access.checks import node_line
from fedvtc_edge.flower.error_patterns import explain
from fedvtc_edge.storage.atomic import write_atomic

from .control import SuperLinkControl
from .daemon import Daemon, executable, free_port

_LOCAL = "127.0.0.1"
_AT_ONCE = 4  # registrations, each a process of a second
_REACHED_BY = {"0.0.0.0": _LOCAL, "::": "::1"}  # noqa: S104  (no address to bind to)
_INNER = ("server.crt", "server.key", "ca.crt")
_LET_IN = "nodes"  # beside them: public keys of the nodes, a line each


@dataclass(frozen=True)
class Certificates:
    """Paths of the server's certificate, its private key and the authority's certificate."""

    certificate: Path
    private_key: Path
    authority: Path


class SuperLink(SuperLinkControl):
    """A running ``flower-superlink``; gone, with its children, when the block is left.

    Args:
        folder: State: database, logs and Flower's settings. Made when missing.
        tls: Certificates for a deployment, in which only registered nodes take part.
            None for a simulation, whose nodes are processes of this machine.
        host: Address on which nodes are let in, in a deployment; 0.0.0.0 for all.
        port: TCP port for nodes; 0 for a free one.
        nodes: Public keys of the nodes that are let in.
        timeout_s: Seconds until it must answer after its start.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tls: Certificates | None = None,
        host: str = _LOCAL,
        port: int = 0,
        nodes: Sequence[Path] = (),
        timeout_s: float = 60.0,
    ) -> None:
        inner_port = free_port()
        inner = Certificates(*(folder.resolve() / "inner" / name for name in _INNER))
        super().__init__(folder, f"{_LOCAL}:{inner_port}", inner.authority if tls else None)
        self.host = host
        self.port = port or free_port()
        self._tls = tls
        self._nodes = tuple(nodes)
        self._timeout_s = timeout_s
        self._inner = inner
        self._inner_port = inner_port
        # Ray's folder of logs and sockets, which it opens to everybody: so it lies in one that
        # is closed. Sockets want a short path; Ray's own default is /tmp too.
        self._ray = Path("/tmp") / f"fedvtc-{secrets.token_hex(4)}"  # noqa: S108
        self._environ["RAY_TMPDIR"] = str(self._ray)
        self._daemon = self._child("superlink", self._command())
        self._gate = self._child("gate", self._gate_command(tls)) if tls else None
        self._stack = ExitStack()

    @property
    def address(self) -> str:
        """``host:port`` by which nodes of this machine reach a deployment."""
        host = _REACHED_BY.get(self.host, self.host)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def log(self) -> Path:
        """File of its output."""
        return self._daemon.log

    def __enter__(self) -> Self:
        self.connect()
        if self._tls:
            self._write_inner()
        with ExitStack() as stack:
            if not self._tls:
                self._ray.mkdir(mode=0o700)
                stack.callback(shutil.rmtree, self._ray, ignore_errors=True)
            stack.enter_context(self._daemon)
            authority = self._inner.authority if self._tls else None
            self._wait_for(self._daemon, _LOCAL, self._inner_port, authority)
            # Before the gate opens: a node that comes too early is sent away for good.
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                list(pool.map(self.register, self._nodes))
            if self._tls and self._gate:
                stack.enter_context(self._gate)
                host = _REACHED_BY.get(self.host, self.host)
                self._wait_for(self._gate, host, self.port, self._tls.authority)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def alive(self) -> bool:
        """True if it runs and, in a deployment, lets nodes in."""
        return self._daemon.alive() and (self._gate is None or self._gate.alive())

    def tail(self, lines: int = 20) -> str:
        """The last lines of its log since its start."""
        return self._daemon.tail(lines)

    def stop(self) -> None:
        """Stop it; no node is let in from here on."""
        self._stack.close()

    def _child(self, name: str, command: Sequence[str]) -> Daemon:
        return Daemon(command, log=self.folder / f"{name}.log", environ=self._environ)

    def _command(self) -> list[str]:
        return [
            executable("flower-superlink"),
            *("--host", _LOCAL, "--port", str(self._inner_port)),
            *("--database", str(self.folder / "state.db")),
            "--disable-runtime-dependency-installation",  # else `uv sync` from PyPI
            *(
                (
                    "--enable-supernode-auth",
                    *("--ssl-certfile", str(self._inner.certificate)),
                    *("--ssl-keyfile", str(self._inner.private_key)),
                    *("--ssl-ca-certfile", str(self._inner.authority)),
                )
                if self._tls
                else ("--insecure", "--simulation")
            ),
        ]

    def _gate_command(self, tls: Certificates) -> list[str]:
        return [
            *(sys.executable, "-P", "-m", "fedvtc_edge.flower.access.reverse_proxy"),
            *("--host", self.host, "--port", str(self.port)),
            *("--certificate", str(tls.certificate.resolve())),
            *("--key", str(tls.private_key.resolve())),
            *("--nodes", str(self._inner.authority.with_name(_LET_IN))),
            *("--to", f"{_LOCAL}:{self._inner_port}", "--authority", str(self._inner.authority)),
        ]

    def _write_inner(self) -> None:
        """Certificates for 127.0.0.1, anew at each start, and the list of nodes for the gate.

        The key of the certificates' authority is kept nowhere. Flower's node authentication
        wants TLS, and its own processes reach it by that address, which a certificate for the
        world need not name.
        """
        authority = pki.new_authority("fedvtc-edge inner", pki.MAX_DAYS)
        server = pki.server_certificate(authority, [_LOCAL], pki.MAX_DAYS)
        self._inner.authority.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomic(self._inner.authority, authority.certificate_pem())
        write_atomic(self._inner.certificate, server.certificate_pem())
        write_atomic(self._inner.private_key, server.key_pem(), mode=0o600)
        lines = b"".join(node_line(path) + b"\n" for path in self._nodes)
        write_atomic(self._inner.authority.with_name(_LET_IN), lines)

    def _wait_for(self, daemon: Daemon, host: str, port: int, authority: Path | None) -> None:
        deadline = time.monotonic() + self._timeout_s
        while daemon.alive() and time.monotonic() < deadline:
            try:
                if healthy(host, port, authority):
                    return
            except ssl.SSLError as error:
                raise _failure(daemon, f"has no valid certificate: {error}") from error
            except OSError:  # nobody listens yet
                time.sleep(0.1)
        what = f"did not answer on {host}:{port} within {self._timeout_s:g} s"
        raise _failure(daemon, what if daemon.alive() else f"ended with status {daemon.wait()}")


def healthy(host: str, port: int, authority: Path | None) -> bool:
    """True if a SuperLink or its reverse proxy answers; never through a proxy, as urllib would ask.

    Args:
        host: Address of this machine. The certificate need not name it.
        authority: Certificate that must have signed the server's; None without TLS.

    Raises:
        OSError: When nobody listens; of which ssl.SSLError is one, for a bad certificate.
    """
    if authority is None:
        connection = http.client.HTTPConnection(host, port, timeout=5)
    else:
        context = ssl.create_default_context(cafile=str(authority))
        context.check_hostname = False  # names are for those who come from elsewhere
        connection = http.client.HTTPSConnection(host, port, timeout=5, context=context)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    finally:
        connection.close()


def _failure(daemon: Daemon, what: str) -> DeploymentError:
    """The known reason for a daemon's end, or what it said last."""
    tail = daemon.tail()
    return explain(tail) or DeploymentError(
        f"{daemon.log.stem} {what}. It said:\n{tail}", hint=f"see {daemon.log}"
    )

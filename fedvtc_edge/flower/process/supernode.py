"""Flower's client process: it fetches messages from the server and answers them.

It only opens connections to the server. When the server goes away it tries again, at
most 20 seconds apart and without end, and takes part again when the server is back.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from fedvtc_edge.errors import DeploymentError
from fedvtc_edge.flower.error_patterns import explain

from .app_bundle import Setting, lock_app
from .daemon import Daemon, environment, executable, free_port

_KEY = re.compile(r"[A-Za-z0-9_-]+")
# The last words of flower-supernode 1.42 to its server after an error that it does not try
# again after, as with another certificate. Its process stays, and does nothing any more.
_GAVE_UP = re.compile(r"^ERROR : +(\[SSL: .*|(?:Client|Server) error '\d+ .*)", re.MULTILINE)
# What it says when the server does not answer, and when it does again.
_CALLING, _HEARD = "Connection attempt failed, retrying", "Connection successful after"
_LOOK_S = 1.0


class SuperNode:
    """A running ``flower-supernode``; gone, with its children, when the block is left.

    Started always with TLS and with the node's own key: there is no insecure mode.
    Restarting is starting a new one on the same folder.

    Args:
        folder: State: log and Flower's own folder. Made when missing.
        superlink: ``host:port`` of the server; the host as its certificate names it.
        authority: Certificate of the authority that signed the server's.
        node_key: The node's private key, OpenSSH, EC; registered by the server.
        node_config: What the node's handlers find as ``context.node_config``.
        app: The one app that may run here, a folder of
            :func:`~fedvtc_edge.flower.process.app_bundle.write_app`; see
            :func:`~fedvtc_edge.flower.process.app_bundle.lock_app`.
        port: Port of 127.0.0.1 by which the node's own processes speak; 0 for a free one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        superlink: str,
        authority: Path,
        node_key: Path,
        node_config: Mapping[str, Setting],
        app: Path,
        port: int = 0,
    ) -> None:
        self.folder = folder.resolve()
        self.port = port or free_port()
        self._app = app
        home = self.folder / "home"
        command = [
            executable("flower-supernode"),
            *("--superlink", superlink),
            *("--root-certificates", str(authority.resolve())),
            *("--auth-supernode-private-key", str(node_key.resolve())),
            *("--node-config", quoted(node_config)),
            *("--host", "127.0.0.1"),
            *("--port", str(self.port)),
        ]
        self._daemon = Daemon(command, log=self.folder / "supernode.log", environ=environment(home))

    @property
    def log(self) -> Path:
        """File of its output."""
        return self._daemon.log

    def __enter__(self) -> Self:
        lock_app(self._app, self.folder / "home")
        self._daemon.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._daemon.stop()

    def alive(self) -> bool:
        """True if it runs and has not given its server up."""
        return self._daemon.alive() and not _GAVE_UP.search(self.tail(50))

    def cut_off(self) -> bool:
        """True if its server did not answer when it last called."""
        said = self.tail(50)
        return said.rfind(_CALLING) > said.rfind(_HEARD)

    def tail(self, lines: int = 20) -> str:
        """The last lines of its log since its start."""
        return self._daemon.tail(lines)

    def wait(self, timeout_s: float = math.inf) -> int:
        """Wait until it ends by itself.

        Returns:
            Its exit status, see :meth:`Daemon.wait`.

        Raises:
            TimeoutError: When it still runs after ``timeout_s`` seconds.
            DeploymentError: When it gave its server up; it is stopped then. Flower leaves
                such a node's process running, where nobody would miss it.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self._daemon.wait(max(0.0, min(_LOOK_S, deadline - time.monotonic())))
            except TimeoutError:
                said = self.tail(50)
                if given_up := _GAVE_UP.search(said):
                    self.stop()
                    raise explain(said) or DeploymentError(
                        f"the node gave its server up: {given_up[1]}",
                        hint="see that the server is well and start the node again",
                    ) from None
                if time.monotonic() >= deadline:
                    raise

    def stop(self, grace_s: float | None = None) -> None:
        """Stop it; see :meth:`Daemon.stop`."""
        self._daemon.stop(grace_s)


def quoted(values: Mapping[str, Setting]) -> str:
    """``key=value …`` as Flower's command line reads it: TOML values, split by a pattern.

    The pattern ends a string at the first quote, escaped or not, so quotes are written
    as code points.

    Raises:
        DeploymentError: For a key that is no bare TOML key, or a value that no TOML holds.
    """
    return " ".join(f"{_bare(key)}={_toml(key, value)}" for key, value in values.items())


def _bare(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise DeploymentError(
            f"node config key {key!r}: expected letters, digits, - and _",
            hint="rename it",
        )
    return key


def _toml(key: str, value: Setting) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DeploymentError(
            f"node config {key} = {os.fsencode(value)!r}: expected text in UTF-8",
            hint="give the path another name",
        ) from None
    text = "".join(
        f"\\u{ord(char):04x}" if char in '"\\' or ord(char) < 0x20 or ord(char) == 0x7F else char
        for char in value
    )
    return f'"{text}"'

"""Flower's own commands for runs and nodes, each one short process, spoken to in JSON.

They act on a SuperLink of this machine through its Control API, which asks nobody who
is there; that is why only this machine reaches it.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from fedvtc_edge.documents import parse_json
from fedvtc_edge.errors import DeploymentError
from fedvtc_edge.flower.error_patterns import explain
from fedvtc_edge.storage.atomic import write_atomic

from .app_bundle import Setting
from .daemon import environment, executable

CONNECTION = "fedvtc-edge"  # its name in Flower's settings
_KEY_KNOWN = "[code: 23]"  # "Public key already in use.", Flower 1.42
_CALL_S = 120.0  # one command takes 1 to 2 s; more, on a machine that is busy


class SuperLinkControl:
    """Nodes registered, runs started and watched.

    Args:
        folder: Where Flower's settings lie; made when missing.
        address: ``host:port`` of the SuperLink.
        authority: Certificate that signed the SuperLink's; None when it has no TLS.
    """

    def __init__(self, folder: Path, address: str, authority: Path | None) -> None:
        self.folder = folder.resolve()
        self._environ = environment(self.folder / "home")
        self._connection: dict[str, str | bool] = (
            {"address": address, "root-certificates": str(authority.resolve())}
            if authority
            else {"address": address, "insecure": True}
        )

    def connect(self) -> None:
        """Write the settings that Flower's commands read."""
        home = self.folder / "home"
        home.mkdir(parents=True, exist_ok=True)
        settings = {"superlink": {"default": CONNECTION, CONNECTION: self._connection}}
        write_atomic(home / "config.toml", tomli_w.dumps(settings).encode())

    def register(self, public_key: Path) -> None:
        """Let the node with this key take part; that it may already is no error.

        Flower has no command for several keys; each takes a process of a second. For
        many nodes, call this from a few threads.

        Args:
            public_key: File with one OpenSSH line, an EC key on a NIST curve.

        Raises:
            DeploymentError: When Flower refuses it.
        """
        try:
            self._call("supernode", "register", str(public_key.resolve()), CONNECTION)
        except DeploymentError as error:
            if _KEY_KNOWN not in str(error):
                raise

    def submit(
        self,
        app: Path,
        run_config: Mapping[str, Setting],
        federation_config: Mapping[str, Setting] | None = None,
    ) -> int:
        """Start a run.

        Args:
            app: A folder of :func:`~fedvtc_edge.flower.process.app_bundle.write_app`.
            run_config: Values for keys that the app's config has.
            federation_config: For a simulation: ``num-supernodes``,
                ``client-resources-num-cpus``, ``client-resources-num-gpus``,
                ``init-args-num-cpus`` and so on.

        Returns:
            The run's id.

        Raises:
            DeploymentError: When Flower refuses it.
        """
        settings = self.folder / "run.toml"  # a file has no trouble with quotes
        write_atomic(settings, tomli_w.dumps(dict(run_config)).encode())
        arguments = ["run", str(app.resolve()), CONNECTION, "--run-config", str(settings)]
        for name, value in (federation_config or {}).items():
            arguments += ["--federation-config", f"{name}={json.dumps(value)}"]
        return int(self._call(*arguments)["run-id"])

    def status(self, run: int) -> str:
        """Status of a run, at the cost of a process of a second: do not poll.

        Returns:
            ``pending``, ``starting``, ``running``, or ``finished:`` followed by
            ``completed``, ``failed`` or ``stopped``. A run that was cut off by a killed
            SuperLink stays ``running`` for a minute, until its heartbeats are missed.
        """
        reply = self._call("list", CONNECTION, "--run-id", str(run))
        return str(reply["runs"][0]["status"])

    def _call(self, *arguments: str) -> dict[str, Any]:
        """One of Flower's client commands and its JSON answer."""
        what = f"flwr {arguments[0]}"
        try:
            done = subprocess.run(  # noqa: S603  (no shell; our own arguments)
                [executable("flwr"), *arguments, "--format", "json"],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_CALL_S,
            )
        except subprocess.TimeoutExpired:
            raise DeploymentError(
                f"{what} had no answer within {_CALL_S:g} s",
                hint=f"see whether the SuperLink runs: the logs lie in {self.folder}",
            ) from None
        try:
            reply: dict[str, Any] = parse_json(done.stdout)
        except ValueError:
            reply = {}
        if not reply.get("success"):
            said = str(reply.get("error-message") or done.stderr or done.stdout).strip()
            raise explain(said) or DeploymentError(
                f"{what} was refused: {said}", hint=f"the logs lie in {self.folder}"
            )
        return reply

"""Identities and trust lists of one federation's clients and server."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from fedvtc_edge.sealing import Identity, TrustList
from fedvtc_edge.sealing.identity import DEFAULT

FOLDER = "parties"
"""Folder in which an unfinished run keeps all keys, the trust list and the inbox."""


TRUST = "trust.json"


class KeyRing:
    """Identities of the clients and the server of one run, made when they are first needed.

    In a simulation one process plays all parties. Private keys are readable by the owner
    alone (0600) and outlive a crash, so that a run goes on with the same ones.

    Args:
        folder: For the keys and the trust list; None keeps them for the time of the process.
    """

    def __init__(self, clients: Sequence[str], folder: Path | None) -> None:
        self._ids = tuple(clients)
        self._folder = folder

    @cached_property
    def clients(self) -> dict[str, Identity]:
        """Each client's identity."""
        return {name: self._identity(name) for name in self._ids}

    @cached_property
    def server(self) -> Identity:
        """Identity that opens envelopes."""
        return self._identity("server")

    @cached_property
    def trusted(self) -> TrustList:
        """Trust list of this run's clients, kept in ``trust.json``.

        Raises:
            TrustError: The file is damaged.
        """
        if self._folder is not None and (path := self._folder / TRUST).exists():
            return TrustList.load(path)  # somebody may have been revoked since
        trusted = TrustList()
        for name, identity in self.clients.items():
            trusted.add(name, identity.public)
        if self._folder is not None:
            self._folder.mkdir(exist_ok=True)
            trusted.save(self._folder / TRUST)
        return trusted

    def _identity(self, name: str) -> Identity:
        if self._folder is None:
            return Identity.generate(DEFAULT)
        path = self._folder / f"{name}.key"
        if not path.exists():
            self._folder.mkdir(exist_ok=True)
            # A killed process may have left the public half, which is written first.
            path.with_name(f"{name}.key.pub").unlink(missing_ok=True)
            Identity.generate(DEFAULT).save(path)
        return Identity.load(path)

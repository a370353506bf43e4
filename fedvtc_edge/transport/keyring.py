"""Identities and trust list of one simulated federation's clients and server."""

from __future__ import annotations

import functools
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from fedvtc_edge.errors import KeyFileError
from fedvtc_edge.sealing import Identity, TrustList
from fedvtc_edge.sealing.trust import Entry
from fedvtc_edge.storage.atomic import OWNER_ONLY, write_atomic

FOLDER = "parties"
"""Folder in which an unfinished run keeps its secret, revocations and the inbox."""

SECRET = "secret.key"  # noqa: S105  (a name, not the secret)
TRUST = "trust.json"

_SERVER = "server"
_SECRET_BYTES = 32
_REMEMBERED = 256
"""Identities in memory at once; one that is made again takes half a millisecond."""


class KeyRing:
    """Identities of the clients and the server of one run.

    In a simulation one process plays all parties, so that one secret stands for all of their
    keys: each identity follows from it and from its name when it is needed, and those that
    take no part cost nothing. The secret is readable by the owner alone (0600) and outlives a
    crash, so that a run goes on with the same keys.

    Args:
        clients: Ids of all clients.
        folder: For the secret and revocations; None keeps them for the time of the process.
    """

    def __init__(self, clients: Sequence[str], folder: Path | None) -> None:
        self._ids = tuple(clients)
        self._folder = folder
        self._identity = functools.lru_cache(_REMEMBERED)(self._derived)

    @cached_property
    def clients(self) -> Mapping[str, Identity]:
        """Each client's identity."""
        return _Identities(self, self._ids)

    @cached_property
    def server(self) -> Identity:
        """Identity that opens envelopes."""
        return self._derived(_SERVER)

    @cached_property
    def trusted(self) -> TrustList:
        """Trust list of this run's clients: all of them, but who was revoked in ``trust.json``.

        Raises:
            TrustError: The file is damaged.
        """
        path = None if self._folder is None else self._folder / TRUST
        known = TrustList.load(path).entries if path is not None and path.exists() else ()
        return _Everybody(self.clients, known)

    def identity(self, name: str) -> Identity:
        """The identity of a client.

        Raises:
            KeyFileError: The secret cannot be read or written.
        """
        return self._identity(name)

    def _derived(self, name: str) -> Identity:
        return Identity.derive(self._secret, name)

    @cached_property
    def _secret(self) -> bytes:
        if self._folder is None:
            return secrets.token_bytes(_SECRET_BYTES)
        path = self._folder / SECRET
        if not os.path.lexists(path):
            self._folder.mkdir(exist_ok=True)
            write_atomic(path, secrets.token_bytes(_SECRET_BYTES), mode=OWNER_ONLY)
        secret = path.read_bytes()
        if len(secret) != _SECRET_BYTES:
            raise KeyFileError(
                f"{path} holds {len(secret)} bytes, expected {_SECRET_BYTES}",
                hint="the keys of this run are lost: start a new run",
            )
        return secret


class _Identities(Mapping[str, Identity]):
    """Identities by name, each made when it is asked for."""

    def __init__(self, ring: KeyRing, names: tuple[str, ...]) -> None:
        self._ring = ring
        self._names = dict.fromkeys(names)

    def __getitem__(self, name: str) -> Identity:
        if name not in self._names:
            raise KeyError(name)
        return self._ring.identity(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _Everybody(TrustList):
    """All clients of a key ring, of which nothing is held but what was revoked."""

    def __init__(self, identities: Mapping[str, Identity], known: Iterable[Entry]) -> None:
        super().__init__(known)
        self._identities = identities

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._find(name) for name in self._identities)

    @property
    def clients(self) -> tuple[str, ...]:
        return tuple(self._identities)

    def before_revocations(self) -> TrustList:
        return _Everybody(self._identities, ())

    def _find(self, client: str) -> Entry:
        if client in self._entries or client not in self._identities:
            return super()._find(client)
        return Entry(client, self._identities[client].public)

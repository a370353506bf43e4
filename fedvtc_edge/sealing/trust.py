"""The trust list: which public identity stands behind which client id, in a file to read.

One id has one identity and one key has one id, now and later: a revoked client stays in
the list, and one with new keys gets a new id. Else one party could be counted twice.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedvtc_edge.documents import parse_json
from fedvtc_edge.errors import KeyFileError, TrustError
from fedvtc_edge.storage.atomic import write_atomic
from fedvtc_edge.wire.context import Context, ContextError

from .identity import PublicIdentity

SCHEMA = 1
KIND = "fedvtc-edge trust list"
MAX_CLIENTS = 10_000
TRUSTED, REVOKED = "trusted", "revoked"

_LARGEST_FILE = 33_554_432
_LONGEST_IDENTITY = 2048
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_KEYS = {"id", "status", "fingerprint", "suite", "identity"}


@dataclass(frozen=True)
class Entry:
    """One client of a list.

    Args:
        status: ``trusted`` or ``revoked``.
    """

    client: str
    identity: PublicIdentity
    status: str = TRUSTED


class TrustList:
    """Client ids and their identities; at most :data:`MAX_CLIENTS`.

    Args:
        entries: The clients, in order.

    Raises:
        TrustError: An id, or a key, that is there twice; an impossible id or status.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries: dict[str, Entry] = {}
        self._owners: dict[bytes, str] = {}
        for entry in entries:
            self._insert(entry)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All clients, revoked ones too, in the order in which they came."""
        return tuple(self._entries.values())

    @property
    def clients(self) -> tuple[str, ...]:
        """Ids of all clients, revoked ones too, in the order in which they came."""
        return tuple(self._entries)

    def add(self, client: str, identity: PublicIdentity) -> Entry:
        """Trust ``client`` from now on; once more changes nothing.

        Raises:
            TrustError: The id has another identity or was revoked, or one of the keys
                is another client's; a full list.
        """
        entry = Entry(client, identity)
        if self._entries.get(client) != entry:
            self._insert(entry)
        return entry

    def revoke(self, client: str) -> Entry:
        """Believe ``client`` no more, for good.

        Raises:
            TrustError: The list does not have it.
        """
        entry = replace(self._find(client), status=REVOKED)
        self._entries[client] = entry
        return entry

    def lookup(self, client: str) -> PublicIdentity:
        """The identity of a trusted client.

        Raises:
            TrustError: Unknown or revoked.
        """
        entry = self._find(client)
        if entry.status != TRUSTED:
            raise TrustError(
                f"client {client} was revoked", hint="it may join with new keys under a new id"
            )
        return entry.identity

    def before_revocations(self) -> TrustList:
        """A list in which nobody is revoked: for what was done while they were trusted."""
        return TrustList(Entry(entry.client, entry.identity) for entry in self.entries)

    def is_revoked(self, client: str) -> bool:
        """True if ``client`` was trusted once."""
        return client in self._entries and self._entries[client].status == REVOKED

    def _find(self, client: str) -> Entry:
        if client not in self._entries:
            raise TrustError(
                f"client {client!r:.80} is not in the trust list",
                hint="fedvtc-edge keys trust LIST CLIENT-ID FILE.pub adds it",
            )
        return self._entries[client]

    def _insert(self, entry: Entry) -> None:
        client, identity = entry.client, entry.identity
        try:
            Context("0" * 32, 0, client, "x")  # what no context can name is no client
        except ContextError:
            raise TrustError(
                f"{client!r:.80} is no client id",
                hint="letters, digits, '.', '_' and '-', 64 at most",
            ) from None
        if client in self._entries:
            raise TrustError(
                f"client {client} has an identity already",
                hint="with new keys it needs a new id; revoke the old one",
            )
        for key in (identity.verifying, identity.sealing):
            if key in self._owners:
                raise TrustError(
                    f"client {client} has a key of client {self._owners[key]}",
                    hint="one client, one identity: it would be counted twice",
                )
        if len(self._entries) >= MAX_CLIENTS:
            raise TrustError(
                f"more than {MAX_CLIENTS} clients", hint="start a list of its own for each run"
            )
        self._entries[client] = entry
        self._owners[identity.verifying] = self._owners[identity.sealing] = client

    def save(self, path: Path) -> None:
        """Write the list as JSON: the whole file or, on failure, the old one.

        Raises:
            TrustError: It cannot be written there.
        """
        clients = [
            {
                "id": entry.client,
                "status": entry.status,
                "fingerprint": entry.identity.fingerprint,
                "suite": entry.identity.suite,
                "identity": base64.b64encode(entry.identity.to_bytes()).decode(),
            }
            for entry in self.entries
        ]
        document = {"schema": SCHEMA, "kind": KIND, "clients": clients}
        try:
            write_atomic(path, (json.dumps(document, indent=1) + "\n").encode())
        except OSError as error:
            raise TrustError(
                f"cannot write {path}: {error.strerror}", hint="choose a folder that exists"
            ) from None

    @classmethod
    def load(cls, path: Path) -> TrustList:
        """Read and check what :meth:`save` wrote.

        Raises:
            TrustError: Missing, too large or damaged: then no client of it is trusted.
        """
        data = _read(path)
        try:
            document = parse_json(data)
            if (document["schema"], document["kind"]) != (SCHEMA, KIND):
                raise ValueError("schema")
            return cls(_entry(fields) for fields in document["clients"])
        except TrustError as error:
            raise TrustError(f"{path}: {error}", hint=error.hint) from None
        except (KeyFileError, ValueError, KeyError, TypeError):
            raise TrustError(
                f"{path} is not an intact trust list",
                hint="restore it from a copy, or trust each client anew",
            ) from None


def _entry(fields: dict[str, Any]) -> Entry:
    text = fields["identity"]
    # b64decode skips what is no base64: one identity would have many spellings.
    if set(fields) != _KEYS or len(text) > _LONGEST_IDENTITY or not _BASE64.fullmatch(text):
        raise ValueError("identity")
    identity = PublicIdentity.from_bytes(base64.b64decode(text, validate=True))
    if fields["status"] not in (TRUSTED, REVOKED) or not isinstance(fields["id"], str):
        raise ValueError("status")
    if (fields["fingerprint"], fields["suite"]) != (identity.fingerprint, identity.suite):
        raise ValueError("fingerprint")
    return Entry(fields["id"], identity, fields["status"])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object without a key twice, of which readers see different ones."""
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise FileNotFoundError(2, "no such file")
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise TrustError(
            f"cannot read the trust list {path}: {error.strerror}", hint="check the path"
        ) from None
    if len(data) > _LARGEST_FILE:
        raise TrustError(f"{path} is too large for a trust list", hint="check the path")
    return data

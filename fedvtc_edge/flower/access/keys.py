"""Key bundles: a folder with all keys that one party of a deployment needs, and no more.

    server/                      client-00/
      ca.crt                       ca.crt          the authority's certificate
      server.crt  server.key                       TLS
      identity.key                 identity.key    opens and signs; its .pub lies beside it
                                   server.pub      the server's public identity
      trust.json                   trust.json      all clients' public identities
      nodes/client-00.pub          node.key        by which Flower knows the client

A client has the trust list for masking: it agrees on masks with the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple, Self

from fedvtc_edge.distributed.client.keys import ClientKeys
from fedvtc_edge.errors import DeploymentError
from fedvtc_edge.sealing import Identity, PublicIdentity, TrustList, signing
from fedvtc_edge.storage.atomic import new_folder, recover_folder, write_atomic

from . import pki
from .checks import node_line

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
MAX_CLIENTS = 1000

_NAMES = {
    "authority": "ca.crt",
    "certificate": "server.crt",
    "private_key": "server.key",
    "identity": "identity.key",
    "trust": "trust.json",
    "nodes": "nodes",
    "node_key": "node.key",
    "server": "server.pub",
}


class _KeyBundle:
    """Paths of key files; the base of both kits."""

    @classmethod
    def load(cls, folder: Path, **given: Path) -> Self:
        """The kit that lies in a folder, by the names above.

        Args:
            given: Parts that lie elsewhere, by field.

        Raises:
            DeploymentError: One of its parts is missing.
        """
        if not folder.is_dir():
            raise DeploymentError(f"there is no folder {folder}", hint="check --keys")
        return cls(**({part: folder / _NAMES[part] for part in _parts(cls)} | given))

    def __post_init__(self) -> None:
        for part in _parts(type(self)):
            path: Path = getattr(self, part)
            if not (path.is_dir() if part == "nodes" else path.is_file()):
                raise DeploymentError(
                    f"{path} is missing from the keys",
                    hint="fedvtc-edge keys trial DIR makes DIR/server and DIR/client-00 for --keys",
                )


@dataclass(frozen=True)
class ServerKeyBundle(_KeyBundle):
    """Paths of what a server needs; each must exist.

    Args:
        authority: Certificate of the authority that signed the server's.
        certificate: The server's, in PEM.
        private_key: Of the certificate, without a passphrase.
        identity: The server's private identity, to which clients seal.
        nodes: Folder of the clients' public node keys, as ``CLIENT-ID.pub``.

    Raises:
        DeploymentError: One is missing.
    """

    authority: Path
    certificate: Path
    private_key: Path
    identity: Path
    trust: Path
    nodes: Path

    def open(self, passphrase: str | None = None) -> ServerKeys:
        """Read and compare the keys; for certificates see :func:`.checking.check_server`.

        Raises:
            DeploymentError: A trusted client without a node key, a node key of nobody who
                is trusted, or of two clients.
            KeyFileError: An identity that is damaged or locked.
            TrustError: A trust list that is damaged.
        """
        identity = Identity.load(self.identity, passphrase=passphrase)
        trusted = TrustList.load(self.trust)
        names = [one.client for one in trusted.entries if not trusted.is_revoked(one.client)]
        nodes = {name: self.nodes / f"{name}.pub" for name in names}
        for path in sorted(self.nodes.glob("*.pub")):
            if path.stem not in nodes and not trusted.is_revoked(path.stem):
                raise DeploymentError(
                    f"{path} is of no client in {self.trust}",
                    hint=f"fedvtc-edge keys trust {self.trust} {path.stem} FILE.pub; or remove it",
                )
        owners: dict[bytes, str] = {}
        for name, path in nodes.items():
            if not path.is_file():
                raise DeploymentError(
                    f"client {name} is trusted but has no node key {path}",
                    hint=f"put its node.key.pub there, or: keys trust {self.trust} {name} --revoke",
                )
            other = owners.setdefault(node_line(path), name)
            if other != name:
                raise DeploymentError(
                    f"clients {other} and {name} have one node key, expected two",
                    hint=f"make one for each: ssh-keygen -t ecdsa -b 384 -N '' -f {name}",
                )
        return ServerKeys(identity, trusted, nodes)


class ServerKeys(NamedTuple):
    """Content of a server's key files.

    Args:
        nodes: Path of the public node key of each trusted client, by its id.
    """

    identity: Identity
    trusted: TrustList
    nodes: dict[str, Path]


@dataclass(frozen=True)
class ClientKeyBundle(_KeyBundle):
    """Paths of what a client needs; each must exist.

    Args:
        authority: Certificate of the authority that signed the server's.
        node_key: Private key by which Flower knows the client.
        identity: The client's private identity.
        server: The server's public identity.
        trust: Trust list of all clients, this one among them.

    Raises:
        DeploymentError: One is missing.
    """

    authority: Path
    node_key: Path
    identity: Path
    server: Path
    trust: Path

    def open(self, passphrase: str | None = None) -> ClientKeys:
        """Read the keys; the client's id is the one under which the list has its identity.

        Raises:
            DeploymentError: The list does not have it, or no more.
            KeyFileError: An identity that is damaged or locked.
            TrustError: A trust list that is damaged.
        """
        identity = Identity.load(self.identity, passphrase=passphrase)
        trusted = TrustList.load(self.trust)
        for entry in trusted.entries:
            if entry.identity == identity.public:
                trusted.lookup(entry.client)  # refuses one that was revoked
                return ClientKeys(entry.client, identity, PublicIdentity.load(self.server), trusted)
        raise DeploymentError(
            f"{self.trust} does not have the identity in {self.identity}, {identity.fingerprint}",
            hint="get the list from the server; it trusts whom fedvtc-edge keys trust added",
        )


def make_test_keys(
    folder: Path,
    clients: int = 3,
    hosts: Sequence[str] = LOCAL_HOSTS,
    days: int = 30,
    *,
    passphrase: str | None = None,
) -> list[str]:
    """All keys of a deployment, made in one place: for trying it out.

    Whoever makes them sees all private keys. In earnest each is made where it is used.

    Args:
        folder: Of the kits: ``server``, ``client-00`` and so on, and the authority's own
            key in ``authority``. It appears as a whole, and must not exist. Its owner alone
            can enter any of them.
        clients: How many, 1 to :data:`MAX_CLIENTS`.
        hosts: By what names clients reach the server; :data:`LOCAL_HOSTS` always are among
            them, for the server's own processes.
        days: The certificates are valid for so long.
        passphrase: Locks identities and the authority's key; TLS and node keys, which
            Flower reads, have none.

    Returns:
        The clients' ids.

    Raises:
        DeploymentError: The folder exists or cannot be written; a value out of range.
    """
    if not 1 <= clients <= MAX_CLIENTS:
        raise DeploymentError(
            f"{clients} clients, expected 1 to {MAX_CLIENTS}", hint="set --clients"
        )
    authority = pki.new_authority("fedvtc-edge trial authority", days)
    server = pki.server_certificate(authority, [*hosts, *LOCAL_HOSTS], days)
    if not folder.name or os.path.lexists(folder):
        raise DeploymentError(
            f"{folder} exists", hint="choose another name: keys are neither replaced nor added to"
        )
    try:
        recover_folder(folder)
        with new_folder(folder, mode=0o700) as scratch:
            return _write(scratch, clients, authority, server, passphrase)
    except OSError as error:
        raise DeploymentError(
            f"cannot write {folder}: {error.strerror}",
            hint="choose a place that exists and can be written to",
        ) from None


def _write(
    folder: Path,
    clients: int,
    authority: pki.Credentials,
    server: pki.Credentials,
    passphrase: str | None,
) -> list[str]:
    names = [f"client-{index:02d}" for index in range(clients)]
    for name in ("authority", "server", "server/nodes", *names):
        (folder / name).mkdir(mode=0o700)
    _put(folder / "authority", {"ca.crt": authority.certificate_pem()})
    _put(folder / "authority", {"ca.key": authority.key_pem(passphrase)}, mode=0o600)
    home, trusted = folder / "server", TrustList()
    _put(home, {"ca.crt": authority.certificate_pem(), "server.crt": server.certificate_pem()})
    _put(home, {"server.key": server.key_pem()}, mode=0o600)
    identity = Identity.generate()
    identity.save(home / "identity.key", passphrase=passphrase)
    for name in names:
        own, node = Identity.generate(), pki.node_key()
        own.save(folder / name / "identity.key", passphrase=passphrase)
        signing.save_pair(folder / name / "node.key", node.private, node.public)
        _put(folder / name, {"ca.crt": authority.certificate_pem()})
        _put(folder / name, {"server.pub": identity.public.to_pem()})
        _put(home / "nodes", {f"{name}.pub": node.public})
        trusted.add(name, own.public)
    for name in ("server", *names):
        trusted.save(folder / name / "trust.json")
    return names


def _put(folder: Path, files: dict[str, bytes], mode: int = 0o644) -> None:
    for name, data in files.items():
        write_atomic(folder / name, data, mode=mode)


def _parts(kit: type[_KeyBundle]) -> Iterable[str]:
    return (field.name for field in fields(kit))  # type: ignore[arg-type]  # each is a dataclass

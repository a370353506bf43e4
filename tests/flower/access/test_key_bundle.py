"""Kits: complete, consistent, and never made over another."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fedvtc_edge.config import load_config
from fedvtc_edge.errors import DeploymentError, KeyFileError, TrustError
from fedvtc_edge.flower.access import pki
from fedvtc_edge.flower.access.checks import check_node_key, check_server
from fedvtc_edge.flower.access.keys import (
    LOCAL_HOSTS,
    MAX_CLIENTS,
    ClientKeyBundle,
    ServerKeyBundle,
    make_test_keys,
)
from fedvtc_edge.sealing import TrustList

CLIENT_FILES = {"ca.crt", "identity.key", "identity.key.pub", "node.key", "node.key.pub"}
SERVER_FILES = {"ca.crt", "identity.key", "identity.key.pub", "server.crt", "server.key"}
PRIVATE = {"ca.key", "identity.key", "node.key", "server.key"}


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    make_test_keys(tmp_path / "trial", 2, ["edge.example.org"])
    return tmp_path / "trial"


# ---------------------------------------------------------------- made


def test_what_lies_where(trial: Path) -> None:
    def names(folder: str) -> set[str]:
        return set(os.listdir(trial / folder))

    assert names(".") == {"authority", "client-00", "client-01", "server"}
    assert names("authority") == {"ca.crt", "ca.key"}
    assert names("server") == SERVER_FILES | {"nodes", "trust.json"}
    assert names("server/nodes") == {"client-00.pub", "client-01.pub"}
    assert names("client-01") == CLIENT_FILES | {"server.pub", "trust.json"}
    for path in trial.rglob("*"):
        if path.is_file() and os.name == "posix":
            mode = 0o600 if path.name in PRIVATE else 0o644
            assert stat.S_IMODE(path.stat().st_mode) == mode, path
        if path.is_dir() and os.name == "posix":  # other accounts see not even names
            assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
    assert os.name != "posix" or stat.S_IMODE(trial.stat().st_mode) == 0o700


def test_the_parties_fit_each_other(trial: Path) -> None:
    kit = ServerKeyBundle.load(trial / "server")
    keys = kit.open()
    assert check_server(kit.certificate, kit.private_key, kit.authority, LOCAL_HOSTS) == []
    assert check_server(kit.certificate, kit.private_key, kit.authority, ["edge.example.org"]) == []
    assert list(keys.nodes) == ["client-00", "client-01"]
    for name, public in keys.nodes.items():
        client = ClientKeyBundle.load(trial / name)
        check_node_key(client.node_key, public)
        check_node_key(client.node_key, client.node_key.with_name("node.key.pub"))
        party = client.open()
        assert (party.client, party.server) == (name, keys.identity.public)
        assert party.identity.public == keys.trusted.lookup(name)
        assert party.trusted is not None
        assert party.trusted.entries == keys.trusted.entries
        assert client.authority.read_bytes() == kit.authority.read_bytes()


@pytest.mark.parametrize("count", [1, 101])
def test_ids_are_those_of_a_run(tmp_path: Path, count: int) -> None:
    made = make_test_keys(tmp_path / "trial", count)
    assert made == load_config({"clients": {"count": count}}).client_ids
    assert list(ServerKeyBundle.load(tmp_path / "trial" / "server").open().nodes) == made


def test_a_passphrase_locks_what_flower_does_not_read(tmp_path: Path) -> None:
    make_test_keys(tmp_path / "trial", 1, passphrase="secret")
    kit = ServerKeyBundle.load(tmp_path / "trial" / "server")
    assert kit.open("secret").nodes
    with pytest.raises(KeyFileError, match="locked with a passphrase"):
        kit.open()
    client = ClientKeyBundle.load(tmp_path / "trial" / "client-00")
    assert client.open("secret").client == "client-00"
    check_node_key(client.node_key)
    assert check_server(kit.certificate, kit.private_key, kit.authority, ["localhost"]) == []
    assert b"ENCRYPTED" in (tmp_path / "trial" / "authority" / "ca.key").read_bytes()


def test_nothing_is_replaced(tmp_path: Path, trial: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trial.rglob("*")}
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("trial", "file", "link", "."):
        with pytest.raises(DeploymentError, match="exists") as caught:
            make_test_keys(tmp_path / name, 3)
        assert "neither replaced nor added to" in caught.value.hint
    assert {path: path.stat().st_mtime_ns for path in trial.rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clients": 0}, "0 clients, expected 1 to 1000"),
        ({"clients": MAX_CLIENTS + 1}, "1001 clients, expected 1 to 1000"),
        ({"hosts": ["a b"]}, "'a b' is neither a host name nor an address"),
        ({"days": 0}, "for 0 days"),
    ],
)
def test_values_out_of_range(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(DeploymentError, match=message):
        make_test_keys(tmp_path / "trial", **change)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match=r"cannot write .*No such file"):
        make_test_keys(tmp_path / "absent" / "trial", 1)


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise TrustError("no", hint="no")

    monkeypatch.setattr(TrustList, "save", fail)
    with pytest.raises(TrustError):
        make_test_keys(tmp_path / "trial", 2)
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- loaded


@pytest.mark.parametrize("part", ["ca.crt", "server.crt", "server.key", "identity.key"])
def test_a_server_without_a_part(trial: Path, part: str) -> None:
    (trial / "server" / part).unlink()
    with pytest.raises(DeploymentError, match=f"server/{part} is missing") as caught:
        ServerKeyBundle.load(trial / "server")
    assert "keys trial" in caught.value.hint


@pytest.mark.parametrize("part", ["ca.crt", "node.key", "identity.key", "server.pub", "trust.json"])
def test_a_client_without_a_part(trial: Path, part: str) -> None:
    (trial / "client-00" / part).unlink()
    with pytest.raises(DeploymentError, match=f"client-00/{part} is missing"):
        ClientKeyBundle.load(trial / "client-00")


def test_another_folder(trial: Path) -> None:
    with pytest.raises(DeploymentError, match="there is no folder"):
        ServerKeyBundle.load(trial / "nothing")
    with pytest.raises(DeploymentError, match=r"trial/ca\.crt is missing") as caught:
        ServerKeyBundle.load(trial)
    assert "DIR/server" in caught.value.hint
    with pytest.raises(DeploymentError, match=r"server\.crt is missing"):
        ServerKeyBundle.load(trial / "client-00")


def test_paths_one_by_one(trial: Path, tmp_path: Path) -> None:
    """An authority of one's own, kept where other programs have it."""
    kit = ServerKeyBundle.load(trial / "server")
    elsewhere = kit.authority.rename(tmp_path / "company.pem")
    with pytest.raises(DeploymentError, match=r"ca\.crt is missing"):
        dataclasses.replace(kit, identity=kit.identity)
    assert dataclasses.replace(kit, authority=elsewhere).open().nodes
    with pytest.raises(DeploymentError, match=r"company\.pem is missing"):
        dataclasses.replace(kit, authority=elsewhere, nodes=elsewhere)


# ---------------------------------------------------------------- a server's keys


def without_node(server: Path) -> None:
    (server / "nodes" / "client-01.pub").unlink()


def one_node_key(server: Path) -> None:
    (server / "nodes" / "client-01.pub").write_bytes(
        (server / "nodes" / "client-00.pub").read_bytes().rstrip() + b" another comment\n"
    )


def node_of_nobody(server: Path) -> None:
    (server / "nodes" / "client-07.pub").write_bytes(pki.node_key().public)


def no_node_key(server: Path) -> None:
    (server / "nodes" / "client-00.pub").write_text("garbage")


@pytest.mark.parametrize(
    ("spoil", "message", "hint"),
    [
        (without_node, "client client-01 is trusted but has no node key", "--revoke"),
        (one_node_key, "clients client-00 and client-01 have one node key", "ssh-keygen"),
        (node_of_nobody, r"client-07\.pub is of no client in .*trust\.json", "keys trust"),
        (no_node_key, r"client-00\.pub is not a node's public key", "keys trial"),
    ],
)
def test_keys_that_do_not_fit(
    trial: Path, spoil: Callable[[Path], None], message: str, hint: str
) -> None:
    spoil(trial / "server")
    with pytest.raises(DeploymentError, match=message) as caught:
        ServerKeyBundle.load(trial / "server").open()
    assert hint in caught.value.hint


@pytest.mark.parametrize("keep", [True, False])
def test_a_revoked_client_is_not_let_in(trial: Path, keep: bool) -> None:
    kit = ServerKeyBundle.load(trial / "server")
    known = TrustList.load(kit.trust)
    known.revoke("client-01")
    known.save(kit.trust)
    if not keep:
        (kit.nodes / "client-01.pub").unlink()
    assert list(kit.open().nodes) == ["client-00"]
    known.save(trial / "client-01" / "trust.json")
    with pytest.raises(TrustError, match="client-01 was revoked"):
        ClientKeyBundle.load(trial / "client-01").open()


def test_a_client_that_nobody_knows(trial: Path) -> None:
    TrustList().save(trial / "client-00" / "trust.json")
    with pytest.raises(DeploymentError, match=r"does not have the identity in .*SHA256:"):
        ClientKeyBundle.load(trial / "client-00").open()

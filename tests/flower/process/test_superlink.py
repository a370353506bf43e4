"""A SuperLink that does not start, and one that is asked; test_deployment.py kills one."""

from __future__ import annotations

import http.server
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flwr.common.constant import Status

from fedvtc_edge.errors import DeploymentError
from fedvtc_edge.flower.access import pki
from fedvtc_edge.flower.process import control, superlink
from fedvtc_edge.flower.process.superlink import Certificates, SuperLink, healthy


def fake(folder: Path, text: str) -> str:
    """A program that stands in for one of Flower's."""
    path = folder / "fake"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    authority = pki.new_authority("test", 2)
    server = pki.server_certificate(authority, ["127.0.0.1"], 2)
    paths = [tmp_path / name for name in ("server.crt", "server.key", "ca.crt")]
    contents = (server.certificate_pem(), server.key_pem(), authority.certificate_pem())
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return Certificates(*paths)


# ---------------------------------------------------------------- starting


def test_one_that_dies_says_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = fake(tmp_path, "echo an unheard-of reason; exit 3")
    monkeypatch.setattr(superlink, "executable", lambda name: program)
    link = SuperLink(tmp_path / "link")
    with pytest.raises(DeploymentError, match=r"status 3.*\n.*unheard-of") as caught, link:
        pass
    assert caught.value.hint == f"see {tmp_path / 'link' / 'superlink.log'}"
    assert not link.alive()


def test_a_known_reason_has_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = DeploymentError("known", hint="do this")
    monkeypatch.setattr(superlink, "executable", lambda name: fake(tmp_path, "echo why; exit 3"))
    monkeypatch.setattr(superlink, "explain", lambda text: known if text == "why" else None)
    with pytest.raises(DeploymentError, match="known"), SuperLink(tmp_path / "link"):
        pass


def test_one_that_does_not_answer_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(superlink, "executable", lambda name: fake(tmp_path, "exec sleep 600"))
    link = SuperLink(tmp_path / "link", timeout_s=0.3)
    with pytest.raises(DeploymentError, match=r"within 0\.3 s"), link:
        pass
    assert not link.alive()


@pytest.mark.parametrize(
    ("host", "address"),
    [("0.0.0.0", "127.0.0.1:8443"), ("::", "[::1]:8443"), ("192.0.2.1", "192.0.2.1:8443")],
)
def test_its_own_address(
    tmp_path: Path, certificates: Certificates, host: str, address: str
) -> None:
    assert SuperLink(tmp_path, tls=certificates, host=host, port=8443).address == address


# ---------------------------------------------------------------- health


class Health(http.server.BaseHTTPRequestHandler):
    """Well, at /health."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 500)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def serving(certificates: Certificates) -> Iterator[int]:
    server = http.server.HTTPServer(("127.0.0.1", 0), Health)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.private_key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_health_is_asked_without_a_proxy(
    serving: int, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert healthy("127.0.0.1", serving, certificates.authority)


def test_another_authority_is_no_health(serving: int, tmp_path: Path) -> None:
    other = tmp_path / "other.crt"
    other.write_bytes(pki.new_authority("other", 2).certificate_pem())
    with pytest.raises(ssl.SSLCertVerificationError):
        healthy("127.0.0.1", serving, other)


def test_nobody_there() -> None:
    with pytest.raises(ConnectionRefusedError):
        healthy("127.0.0.1", superlink.free_port(), None)


# ---------------------------------------------------------------- commands


@pytest.fixture
def asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], control.SuperLinkControl]:
    """A Control whose ``flwr`` writes down its arguments and prints what it is told to."""

    def make(output: str) -> control.SuperLinkControl:
        (tmp_path / "out").write_text(output)
        program = fake(tmp_path, f"printf '%s\\n' \"$@\" > {tmp_path}/args; cat {tmp_path}/out")
        monkeypatch.setattr(control, "executable", lambda name: program)
        made = control.SuperLinkControl(tmp_path / "state", "127.0.0.1:1", None)
        made.connect()
        return made

    return make


def test_a_known_node_is_registered_already(
    asked: Callable[[str], control.SuperLinkControl],
) -> None:
    said = {"success": False, "error-message": "x\n\n[code: 23] Public key already in use."}
    asked(json.dumps(said)).register(Path("node.pub"))


def test_a_refusal_is_an_error(asked: Callable[[str], control.SuperLinkControl]) -> None:
    said = {"success": False, "error-message": "x [code: 99] Something else."}
    with pytest.raises(DeploymentError, match=r"flwr supernode was refused: x .code: 99"):
        asked(json.dumps(said)).register(Path("node.pub"))


def test_no_json_is_an_error(asked: Callable[[str], control.SuperLinkControl]) -> None:
    with pytest.raises(DeploymentError, match="gibberish"):
        asked("gibberish").status(7)


def test_a_run_is_submitted_with_its_values_in_a_file(
    asked: Callable[[str], control.SuperLinkControl], tmp_path: Path
) -> None:
    link = asked('{"success": true, "run-id": "17"}')
    odd = {"path": 'it\'s "here"\n', "rounds": 3}
    assert link.submit(tmp_path / "app", odd, {"num-supernodes": 4, "backend": "ray"}) == 17
    arguments = (tmp_path / "args").read_text().splitlines()
    assert arguments[:4] == ["run", str(tmp_path / "app"), "fedvtc-edge", "--run-config"]
    assert superlink_toml(Path(arguments[4])) == odd
    assert arguments[5:] == [
        *("--federation-config", "num-supernodes=4"),
        *("--federation-config", 'backend="ray"'),
        *("--format", "json"),
    ]


def superlink_toml(path: Path) -> dict[str, object]:
    import tomllib

    return tomllib.loads(path.read_text("utf-8"))


def test_flowers_own_word_for_a_run_that_has_ended() -> None:
    assert Status.FINISHED == "finished"


def test_a_runs_status(asked: Callable[[str], control.SuperLinkControl]) -> None:
    said = {"success": True, "runs": [{"run-id": "17", "status": "finished:completed"}]}
    assert asked(json.dumps(said)).status(17) == "finished:completed"

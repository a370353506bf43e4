"""Values on Flower's command line arrive as they were."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvtc_edge.errors import DeploymentError
from fedvtc_edge.flower.process import supernode
from fedvtc_edge.flower.process.supernode import SuperNode, quoted

PATHS = {
    "plain": "/srv/data",
    "spaces": "/srv/my data/  x",
    "quotes": '/srv/it\'s "here"',
    "equals": "a=b c='d'",
    "backslash": "C:\\new\\table\\u0022",
    "lines": "a\nb\tc\r\x7f\x00",
    "umlaut": "/srv/Übung/µ/\U0001f40d",
    "toml": "x.toml",
    "empty": "",
    "true": "true",
}

PARSE = """
import json, sys
from flwr.common.config import parse_config_args
print(json.dumps([parse_config_args([line]) for line in json.load(sys.stdin)]))
"""


@pytest.mark.slow
def test_flowers_own_parser_reads_them_back() -> None:
    examples = [
        PATHS,
        {"count": 3, "share": 0.1, "tiny": 1e-300, "minus": -7, "on": True, "off": False},
        *({key: value} for key, value in PATHS.items()),
        {},
    ]
    done = subprocess.run(
        [sys.executable, "-c", PARSE],
        input=json.dumps([quoted(example) for example in examples]),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == examples


@given(st.dictionaries(st.from_regex(r"[A-Za-z0-9_-]{1,8}", fullmatch=True), st.text()))
def test_no_quote_and_no_line_end_is_left_bare(values: dict[str, str]) -> None:
    text = quoted(values)
    assert text.count('"') == 2 * len(values)
    assert text.isprintable() or all(char >= " " for char in text)


@pytest.mark.parametrize("key", ["", "a b", "a=b", "a.b", 'a"b', "ü"])
def test_a_key_is_a_bare_one(key: str) -> None:
    with pytest.raises(DeploymentError, match="expected letters"):
        quoted({key: 1})


def node(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> SuperNode:
    """A node whose program is the text of a shell script."""
    program = folder / "fake"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    monkeypatch.setattr(supernode, "executable", lambda name: str(program))
    monkeypatch.setattr(supernode, "lock_app", lambda app, home: "")
    monkeypatch.setattr(supernode, "_LOOK_S", 0.05)
    return SuperNode(
        folder / "node",
        superlink="server.example:8443",
        authority=folder / "ca.crt",
        node_key=folder / "node.key",
        node_config={"home": "/a b"},
        app=folder,
    )


def test_it_is_never_started_without_tls_and_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with node(tmp_path, monkeypatch, "printf '%s\\n' \"$@\"") as started:
        assert started.wait(30) == 0
        said = started.tail().splitlines()
    assert said == [
        *("--superlink", "server.example:8443"),
        *("--root-certificates", str(tmp_path / "ca.crt")),
        *("--auth-supernode-private-key", str(tmp_path / "node.key")),
        *("--node-config", 'home="/a b"'),
        *("--host", "127.0.0.1"),
        *("--port", str(started.port)),
    ]


# Seen from flower-supernode 1.42; its process went on.
GAVE_UP = """printf '\\033[92mINFO \\033[0m:      SuperNode ID: 7\\n'
printf '\\033[91mERROR \\033[0m:     %s\\n' "{}"
exec sleep 600"""


@pytest.mark.parametrize(
    "line",
    [
        "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local"
        " issuer certificate (_ssl.c:1006)",
        "Server error '500 Internal Server Error' for url 'https://x/v1/fleet/pull-messages'",
    ],
)
def test_one_that_gave_up_is_stopped_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    with node(tmp_path, monkeypatch, GAVE_UP.format(line)) as started:
        until = time.monotonic() + 30
        while started.alive():
            assert time.monotonic() < until
        with pytest.raises(DeploymentError):
            started.wait(30)
        assert not started._daemon.alive()


def test_one_that_its_server_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines of flower-supernode 1.42."""
    calling = "echo 'WARNING : Connection attempt failed, retrying in 3.00 seconds'; "
    heard = "echo 'INFO : Connection successful after 3.01 seconds and 2 tries.'; "
    for said, cut_off in (
        ("", False),
        (calling, True),
        (calling + heard, False),
        (calling + heard + calling, True),
    ):
        with node(tmp_path, monkeypatch, said + "echo ready; exec sleep 600") as started:
            until = time.monotonic() + 30
            while "ready" not in started.tail():
                assert time.monotonic() < until
            assert started.cut_off() is cut_off


def test_one_that_tries_again_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "Failed to receive message 7: Server error '500 Internal Server Error' for url 'x'"
    with node(tmp_path, monkeypatch, GAVE_UP.format(line)) as started:
        with pytest.raises(TimeoutError):
            started.wait(0.3)
        assert started.alive()


def test_a_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(DeploymentError, match="UTF-8"):
        quoted({"home": str(Path("/srv/\udcff"))})

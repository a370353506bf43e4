"""The app folder that holds no code, and a node on which no other app can run."""

from __future__ import annotations

import io
import os
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from fedvtc_edge.errors import DeploymentError
from fedvtc_edge.flower.process import app_bundle
from fedvtc_edge.flower.process.daemon import Daemon, environment

NAMES = {"serverapp": "tiny:server", "clientapp": "tiny:client"}

# What Flower does with a bundle that a node was sent, by the function that it does it with.
INSTALL = """
import sys
from flwr.cli.install import install_from_fab
print(install_from_fab(open(sys.argv[1], "rb").read(), skip_prompt=True))
"""


def written(folder: Path) -> dict[str, object]:
    return tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))


def test_the_folder_names_the_code_and_holds_none(tmp_path: Path) -> None:
    app_bundle.write_app(
        tmp_path / "app", config={"text": 'a "b"', "number": 1, "share": 0.5, "on": True}
    )
    assert [path.name for path in (tmp_path / "app").iterdir()] == ["pyproject.toml"]
    document = written(tmp_path / "app")
    assert document["project"]["version"] == metadata.version("fedvtc-edge")
    assert document["project"]["license"] == "Apache-2.0"
    assert document["project"]["dependencies"] == []
    flower = document["tool"]["flwr"]["app"]
    assert flower["publisher"] == document["project"]["name"] == "fedvtc-edge"
    assert flower["components"] == {
        "serverapp": app_bundle.SERVER_APP,
        "clientapp": app_bundle.CLIENT_APP,
    }
    assert flower["config"] == {"text": 'a "b"', "number": 1, "share": 0.5, "on": True}


def test_writing_again_replaces(tmp_path: Path) -> None:
    app_bundle.write_app(tmp_path / "app", config={"old": 1})
    app_bundle.write_app(tmp_path / "app", config={"new": 1})
    assert written(tmp_path / "app")["tool"]["flwr"]["app"]["config"] == {"new": 1}


def bundle(folder: Path) -> bytes:
    """Another app_bundle, as a stranger would make it: well-formed, with code."""
    files = {
        "pyproject.toml": (folder / "pyproject.toml").read_bytes(),
        "evil.py": b"raise SystemExit('ran')",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(".info/CONTENT", content(files))
    return buffer.getvalue()


def content(files: dict[str, bytes]) -> str:
    from hashlib import sha256

    return "\n".join(f"{k},{sha256(v).hexdigest()},{8 * len(v)}" for k, v in files.items())


def install(home: Path, fab: Path, log: Path) -> tuple[int, str]:
    command = [sys.executable, "-c", INSTALL, str(fab)]
    with Daemon(command, log=log, environ=environment(home)) as child:
        return child.wait(60), child.tail(1)


@pytest.mark.slow
def test_a_locked_node_takes_the_known_app_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "tiny.py").write_text("server = client = None\n")
    monkeypatch.setenv("PYTHONPATH", str(code))
    home = tmp_path / "home"
    app_bundle.write_app(tmp_path / "app", **NAMES, config={"key": ""})
    digest = app_bundle.lock_app(tmp_path / "app", home)
    [known] = (home / "apps").iterdir()
    assert known.name == f"fedvtc-edge.fedvtc-edge.{metadata.version('fedvtc-edge')}.{digest}"
    assert (known / "pyproject.toml").read_text() == (tmp_path / "app/pyproject.toml").read_text()

    evil = tmp_path / "evil.fab"
    evil.write_bytes(bundle(tmp_path / "app"))
    status, said = install(home, evil, tmp_path / "evil.log")
    assert status != 0
    assert "Permission denied" in said
    assert list((home / "apps").iterdir()) == [known]

    app_bundle.unlock_app(home)
    status, _ = install(home, evil, tmp_path / "evil.log")
    assert status == 0  # so it was the lock
    app_bundle.unlock_app(home)
    assert not (home / "apps").exists()


@pytest.mark.slow
def test_an_app_whose_code_is_not_installed_is_refused(tmp_path: Path) -> None:
    app_bundle.write_app(tmp_path / "app", **NAMES, config={})
    with pytest.raises(DeploymentError, match="Unable to load module tiny"):
        app_bundle.lock_app(tmp_path / "app", tmp_path / "home")


def test_a_lock_that_does_not_hold_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apps = tmp_path / "apps"
    apps.mkdir()  # open, as everything is on a file system without modes
    with pytest.raises(DeploymentError, match="cannot be closed"):
        app_bundle._try_lock(apps)
    assert not apps.exists()


def test_unlocking_what_was_never_locked(tmp_path: Path) -> None:
    app_bundle.unlock_app(tmp_path)
    assert os.listdir(tmp_path) == []

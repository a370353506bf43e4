"""A federation small enough to train in a tenth of a second."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker has a core to itself: threads of several would wait for one another, which
    # takes the suite 1.6 times as long. Read when numpy and torch are loaded, also by children.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Under nohup, or as a shell's background job, it is ignored, also by all that is started here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from fedvtc_edge import __main__ as front
from fedvtc_edge import plugins
from fedvtc_edge.config import Config, load_config

# How long an example takes is a matter of what else the machine does.
hypothesis_settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("any machine")

Tiny = Callable[..., Config]

TINY: dict[str, Any] = {
    "data": {"limit": 200, "test_limit": 60},
    "clients": {"count": 3, "architectures": ["mlp", "lenet"]},
    "method": {"rounds": 3, "latent": 8, "anchor": 12},
    "training": {
        "epochs": 1,
        "decoder_steps": 2,
        "finetune_steps": 2,
        "finetune_from": 2,
        "finetune_last": 2,
    },
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes longest first, so that no worker is left alone with it at the end."""
    items.sort(key=_length)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let a worker without work take over half of another's; modules stay together otherwise."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


def _length(item: pytest.Item) -> int:
    """Rank of a test: the deployment, which mostly waits, other slow ones, and the rest."""
    if "test_deployment" in item.nodeid:
        return 0
    return 2 if item.get_closest_marker("slow") is None else 1


@pytest.fixture(scope="session", autouse=True)
def no_power_cut() -> Iterator[None]:
    """Nobody waits for the disk: who is killed here leaves to the kernel what it had written."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def nobodys_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is remembered of releases is not written into the real user's state folder."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


NUMBER = "0123456789abcdef" * 2


@pytest.fixture(scope="session", autouse=True)
def one_number() -> Iterator[None]:
    """Every run has the same number, in place of a random one: equal runs are equal to the byte."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fedvtc_edge.runs.directory.new_number", lambda: NUMBER)
        yield


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    """``tiny(method={"share": "features"})``: the tiny settings with some keys changed."""
    return load_config(TINY).replace


@pytest.fixture(scope="session")
def quickly() -> Callable[[], AbstractContextManager[None]]:
    """Within it no report.html is drawn, which takes longer than training."""

    @contextmanager
    def context() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("fedvtc_edge.report.render", lambda directory: directory)
            yield

    return context


Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """``once("name", make)``: a folder that ``make`` fills, in one of all workers; read it only."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder = shared / "kept-by-pytest" / name
        folder.parent.mkdir(exist_ok=True)
        done = folder.with_name(f"{name}.done")
        with FileLock(f"{folder}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def tiny_run(tiny: Tiny, quickly: Callable[[], AbstractContextManager[None]], once: Once) -> Path:
    """The directory of a finished run of the tiny settings; read it only."""

    def make(folder: Path) -> None:
        from fedvtc_edge import run

        with quickly():
            run(tiny(), out=folder)

    return once("tiny", make)


@pytest.fixture(scope="session")
def exported(tiny_run: Path, once: Once) -> Path:
    """The folder with a bundle per client of the tiny run: int8 too, unsigned; read it only."""

    def make(folder: Path) -> None:
        from fedvtc_edge.export.exporting import export

        document = export(tiny_run, folder, int8=True)
        folder.with_name("bundles.json").write_text(json.dumps(document))

    return once("bundles", make)


@pytest.fixture
def quick(quickly: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """The whole test :func:`quickly`."""
    with quickly():
        yield


@dataclass
class Answer:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    def refuses(self, message: str, hint: str = "", code: int = 2) -> None:
        lines = self.err.splitlines()
        assert len(lines) == 2, self.err
        assert lines[0].startswith("fedvtc-edge: error: ")
        assert message in lines[0]
        assert lines[1].startswith("fedvtc-edge: hint: ")
        assert hint in lines[1]
        assert self.out == ""
        assert self.code == code


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Answer]:
    """``call("verify", folder)``: one command, in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)

    def invoke(*words: str | Path) -> Answer:
        with pytest.raises(SystemExit) as left:
            front.main([str(word) for word in words])
        captured = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return Answer(left.value.code, captured.out, captured.err)

    return invoke


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Every plug-in is forgotten after a test, and when it asks for that."""
    monkeypatch.setenv(plugins.VARIABLE, "")
    plugins.METHODS.names()  # what ships with the package is there before and after
    before = [dict(registry._known) for registry in plugins._REGISTRIES]
    loaded = set(plugins._loaded)

    def forget() -> None:
        os.environ[plugins.VARIABLE] = ""
        for registry, known in zip(plugins._REGISTRIES, before, strict=False):
            registry._known.clear()
            registry._known.update(known)
        plugins._loaded.clear()
        plugins._loaded.update(loaded)

    yield forget
    forget()


@pytest.fixture
def archive(tmp_path: Path) -> Callable[..., str]:
    """Writes an .npz data set of brightness-coded classes and returns its path."""

    def write(labels: Any, *, size: int = 8, channels: int = 1, classes: int | None = None) -> str:
        y = np.asarray(labels)
        classes = classes or int(y.max()) + 1
        rng = np.random.default_rng(5)
        patterns = rng.integers(0, 256, (classes, size, size, channels))

        def images(of: Any) -> Any:
            noise = rng.integers(-30, 31, (len(of), size, size, channels))
            return np.clip(patterns[of] + noise, 0, 255).astype(np.uint8)

        y_test = np.arange(2 * classes) % classes
        path = tmp_path / f"made-{size}-{channels}.npz"
        names = np.array([f"class {label}" for label in range(classes)])
        np.savez(
            path,
            x_train=images(y),
            y_train=y,
            x_test=images(y_test),
            y_test=y_test,
            class_names=names,
        )
        return str(path)

    return write


def strict_json(text: str) -> Any:
    """Parse JSON as the standard has it: NaN and Infinity are no numbers."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in JSON")

    return json.loads(text, parse_constant=refuse)


def all_finite(value: Any) -> bool:
    """Whether no number in a JSON document is NaN or infinite."""
    if isinstance(value, dict):
        return all(all_finite(inner) for inner in value.values())
    if isinstance(value, (list, tuple)):
        return all(all_finite(inner) for inner in value)
    return not isinstance(value, float) or math.isfinite(value)


def untimed(value: Any) -> Any:
    """A summary or a round's record without what a clock measured."""
    if isinstance(value, dict):
        clocks = ("seconds", "samples_per_second")
        return {key: untimed(inner) for key, inner in value.items() if key not in clocks}
    if isinstance(value, list):
        return [untimed(inner) for inner in value]
    return value


def contents(directory: Path) -> dict[str, Any]:
    """All that a run left, by path, comparable bit for bit: clocks and the report are left out."""
    found: dict[str, Any] = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_dir() or name.startswith("checkpoint/") or name == "report.html":
            continue
        if path.suffix == ".jsonl":
            found[name] = [untimed(strict_json(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".json":
            found[name] = untimed(strict_json(path.read_text()))
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                found[name] = {key: arrays[key].tobytes() for key in arrays.files}
        else:
            found[name] = path.read_bytes()
    return found


@pytest.fixture(name="contents", scope="session")
def _contents() -> Callable[[Path], dict[str, Any]]:
    return contents


@pytest.fixture(name="untimed", scope="session")
def _untimed() -> Callable[[Any], Any]:
    return untimed


@pytest.fixture(name="strict_json", scope="session")
def _strict_json() -> Callable[[str], Any]:
    return strict_json


@pytest.fixture(name="all_finite", scope="session")
def _all_finite() -> Callable[[Any], bool]:
    return all_finite

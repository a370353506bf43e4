"""The command line as its user meets it: words in, stdout, stderr and an exit code out.

``call`` goes through ``main`` itself, where errors become two lines; a few tests
start a fresh process, for what only a cold start can show.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import tomli_w
from click.testing import CliRunner

from fedvtc_edge import __main__ as front
from fedvtc_edge.commands import _common
from fedvtc_edge.config import Config
from fedvtc_edge.errors import FedVTCWarning, GateError, RunError
from fedvtc_edge.runs.records import OPERATING_POINTS

Tiny = Callable[..., Config]

COMMANDS = ["audit", "bench", "classify", "compare", "devices", "export"]
COMMANDS += [
    "extractors",
    "join",
    "keys",
    "plan",
    "refresh",
    "report",
    "run",
    "serve",
    "synthesize",
    "verify",
]

CLIENT = {
    "id": "00",
    "architecture": "lenet",
    "device": None,
    "samples": 120,
    "classes_present": 2,
    "accuracy": 0.9012,
    "accuracy_local_only": 0.38,
    "accuracy_absent_classes": 0.5,
    "accuracy_calibrated": 0.985,
    "upload_bytes": 38_400,
}
SUMMARY = {
    "schema": 1,
    "seed": 0,
    "method": "fedvtc",
    "data": "digits",
    "rounds": 10,
    "clients": [
        CLIENT,
        CLIENT | {"id": "01", "device": "rpi4", "accuracy_absent_classes": None},
    ],
    "accuracy_mean": 0.9012,
    "accuracy_local_only_mean": 0.38,
    "accuracy_calibrated_mean": 0.985,
    "accuracy_control": 0.994,
    **{key: None for keys in list(OPERATING_POINTS.values())[1:] for key in keys},
    "accuracy_home_mean": 0.971,
    "accuracy_home_calibrated_mean": 0.9804,
    "upload_bytes_total": 76_800,
    "seconds_virtual": None,
    "epsilon": None,
    "delta": None,
    "privacy_unit": None,
    "seconds": 61.04,
}
ENTRY = {
    "accuracy_mean": 0.901,
    "accuracy_std": 0.011,
    "accuracy_worst": 0.85,
    "accuracy_absent_classes": 0.896,
    "accuracy_calibrated": None,
    "accuracy_control": None,
    "accuracy_own_distribution": 0.95,
    "accuracy_home": 0.97,
    "accuracy_home_calibrated": None,
    "accuracy_home_control": 0.96,
    "upload_bytes_total": 1000,
    "upload_bytes_per_client": 167.0,
    "peak_memory_mb": 412.0,
    "rounds": 3,
    "knob": 0.1,
    "seconds": 3.0,
    "per_seed": [],
}


Call = Callable[..., Any]


@dataclass
class Result:
    summary: dict[str, Any]
    directory: Path | None


class Fakes:
    """Stand-ins for what the commands call, and what they were called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, dict[str, Any]]] = []
        self.error: BaseException | None = None
        self.summary: dict[str, Any] = dict(SUMMARY)
        self.draws_report = True

    def _finish(self, directory: Path | None, progress: Any) -> Result:
        progress.start(1, "rounds")
        progress.advance("accuracy 0.9")
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "config.toml").touch()
            if self.draws_report:
                (directory / "report.html").write_text("")
        if self.error is not None:
            raise self.error
        return Result(self.summary, directory)

    def run(
        self,
        config: Config,
        *,
        out: Path | None = None,
        progress: Any = None,
        spending: Any = None,
    ) -> Result:
        assert spending is not None  # what is released is remembered
        self.calls.append(("run", config, {"out": out}))
        return self._finish(out, progress)

    def resume(self, directory: Path, *, progress: Any = None) -> Result:
        self.calls.append(("resume", directory, {}))
        return self._finish(directory, progress)

    def compare(
        self,
        config: Config,
        methods: Sequence[str] | None,
        seeds: Sequence[int] | None,
        *,
        out: Path | None = None,
        progress: Any = None,
    ) -> dict[str, Any]:
        self.calls.append(("compare", config, {"methods": methods, "seeds": seeds, "out": out}))
        self._finish(out, progress)
        return {
            "schema": 1,
            "data": "digits",
            "alpha": 0.1,
            "seeds": list(seeds or config.compare.seeds),
            "methods": dict.fromkeys(methods or ["fedvtc"], ENTRY),
        }

    def render(self, directory: Path) -> Path:
        self.calls.append(("render", directory, {}))
        return directory / "report.html"

    def render_comparison(self, directory: Path) -> Path:
        self.calls.append(("render_comparison", directory, {}))
        return directory / "comparison.html"


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    fakes = Fakes()
    for name, contents in {
        "workflows.run": {"run": fakes.run, "resume": fakes.resume},
        "workflows.compare": {"compare": fakes.compare},
        "report": {"render": fakes.render, "render_comparison": fakes.render_comparison},
    }.items():
        module = ModuleType(f"fedvtc_edge.{name}")
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return fakes


# The front door.


def test_without_words_it_shows_its_commands(call: Call) -> None:
    answer = call()
    assert (answer.code, answer.err) == (0, "")
    assert answer == call("--help")
    assert re.findall(r"^  (\w+)  ", answer.out.partition("Commands:")[2], re.M) == COMMANDS


def test_version(call: Call) -> None:
    assert call("--version").out == f"fedvtc-edge {metadata.version('fedvtc-edge')}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(call: Call, command: str) -> None:
    answer = call(command, "--help")
    assert answer.code == 0
    assert answer.out.startswith(f"Usage: fedvtc-edge {command} ")
    assert "--json" in answer.out or command == "keys"  # whose own sub-commands take it


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ("rnu", "unknown command 'rnu'", "did you mean run?"),
        ("device", "unknown command 'device'", "did you mean devices?"),
        ("zzz", "unknown command 'zzz'", "commands: audit, bench, classify, compare, devices"),
        ("--verison", "unknown option --verison", "did you mean --version?"),
        ("--zzz", "unknown option --zzz", "see fedvtc-edge --help"),
        ("run --sed 1", "unknown option --sed", "did you mean --set?"),
        ("run --set", "'--set' requires an argument", "see fedvtc-edge run --help"),
        ("run a.toml b.toml", "unexpected extra argument", "see fedvtc-edge run --help"),
        ("run --engine flowr", "'flowr' is not one of 'local', 'flower'", "fedvtc-edge run --help"),
        (" run", "unknown command ''", "commands: audit, bench, classify"),
        ("report", "Missing argument 'RUN'", "see fedvtc-edge report --help"),
    ],
)
def test_misspelt_words(call: Call, words: str, message: str, hint: str) -> None:
    call(*words.split(" ")).refuses(message, hint)


def test_a_checkout_that_was_never_installed(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front.metadata, "entry_points", lambda **_: ())
    for words in (["run"], ["--help"], []):
        call(*words).refuses("not installed", 'pip install -e ".[train]"')

    def unknown(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(front.metadata, "version", unknown)
    call("--version").refuses("not installed", "pip install")


def entry(name: str, value: str) -> metadata.EntryPoint:
    return metadata.EntryPoint(name, value, front.GROUP)


def test_a_stale_registration_hides_no_other_command(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = entry("audit", "fedvtc_edge.commands.nowhere:command")
    wrong = entry("bench", "json:dumps")
    real = entry("devices", "fedvtc_edge.commands.devices:command")
    monkeypatch.setattr(front.metadata, "entry_points", lambda **_: (stale, wrong, real))
    call("audit").refuses("fedvtc_edge.commands.nowhere does not exist", "pip install")
    call("bench").refuses("expected a click.Command", "json:dumps")
    answer = call("--help")
    assert answer.code == 0
    assert "List the device profiles" in answer.out
    assert answer.out.count("cannot be loaded") == 2


def test_a_command_whose_own_import_fails_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(metadata.EntryPoint):
        def load(self) -> Any:
            raise ModuleNotFoundError("No module named 'numpi'", name="numpi")

    broken = Broken("run", "fedvtc_edge.commands.run:command", front.GROUP)
    monkeypatch.setattr(front.metadata, "entry_points", lambda **_: (broken,))
    with pytest.raises(ModuleNotFoundError, match="numpi"):
        front.main(["run"])


def test_it_is_an_ordinary_click_group() -> None:
    result = CliRunner().invoke(front.command_line, ["devices", "rpi4"])
    assert result.exit_code == 0
    assert result.output.startswith("rpi4: Raspberry Pi 4")


# The real thing, on a federation small enough to train at once.


@pytest.fixture
def settings(tmp_path: Path, tiny: Tiny) -> str:
    """Name, in the current directory of ``call``, of a tiny configuration."""
    (tmp_path / "tiny.toml").write_text(
        tomli_w.dumps(tiny().model_dump(mode="json", exclude_none=True))
    )
    return "tiny.toml"


@pytest.mark.usefixtures("quick")
def test_a_real_run(call: Call, settings: str, tmp_path: Path) -> None:
    answer = call("run", settings, "--set", "clients.devices=['rpi4']", "--out", "there")
    assert answer.code == 0
    summary = json.loads((tmp_path / "there" / "summary.json").read_text())
    lines = answer.out.splitlines()
    for line, client in zip(lines[1:4], summary["clients"], strict=True):
        shown = [client["id"], client["architecture"], "rpi4", str(client["samples"])]
        shown += [str(client["classes_present"]), f"{100 * client['accuracy_local_only']:.1f}"]
        assert line.split()[:6] == shown
    points = [lines[5 + row].rsplit(maxsplit=4) for row in range(4)]
    assert [row[0] for row in points[1:]] == ["global", "home, uniform prior", "home, own prior"]
    for row, keys in zip(points[1:], OPERATING_POINTS.values(), strict=False):
        assert row[1:] == [f"{100 * summary[key]:.1f}" for key in keys]
    assert lines[10].startswith("digits, fedvtc, 3 rounds, seed 0: ")
    assert lines[10].endswith(f"{summary['upload_bytes_total'] / 1000:.1f} kB up")
    simulated = f"modelled: {summary['seconds_virtual']:.1f} s; turns missed: "
    assert lines[11].startswith(f"simulated time on the devices, {simulated}")
    assert lines[12] == "privacy: none claimed (Not differentially private)"
    assert lines[13] == "run: there"
    progress = answer.err.splitlines()
    assert progress[0] == "rounds: 3 to do"
    assert [line.split(" own model ")[0] for line in progress[1:]] == [
        "rounds: 1/3",
        "rounds: 2/3",
        "rounds: 3/3",
    ]
    call("run", settings, "--out", "there").refuses("a finished run already", "another --out")
    call("run", "--resume", "there").refuses("finished already", "fedvtc-edge report there")


def test_a_real_report(call: Call, settings: str, tmp_path: Path) -> None:
    answer = call("run", settings, "--out", "there", "--quiet", "--set", "method.rounds=1")
    assert answer.out.splitlines()[-1] == "report: there/report.html"
    page = tmp_path / "there" / "report.html"
    drawn = page.read_bytes()
    page.unlink()
    answer = call("report", "there")
    assert (answer.code, answer.out, answer.err) == (0, "there/report.html\n", "")
    assert page.read_bytes() == drawn, "the same run is the same page"
    call("report", "nowhere").refuses("no run directory at 'nowhere'", "fedvtc-edge run")


@pytest.mark.usefixtures("quick")
def test_a_real_run_is_resumed(
    call: Call, settings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedvtc_edge.runs.directory import RunDirectory

    def stop(self: RunDirectory, records: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RunDirectory, "_append", stop)
        hint = "go on with: fedvtc-edge run --resume there"
        call("run", settings, "--out", "there", "--quiet").refuses("interrupted", hint, 130)
    answer = call("run", "--resume", "there", "--json")
    assert answer.code == 0
    assert json.loads(answer.out) == json.loads((tmp_path / "there/summary.json").read_text())
    assert "rounds: 3/3" in answer.err


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ("clients.architectures=['lent']", "unknown architecture 'lent'", "did you mean lenet?"),
        ("clients.devices=['rpi6']", "unknown device 'rpi6'", "did you mean rpi5?"),
        ("clients.count=99", "200 samples for 99 clients", "lower clients.count"),
        ("data.name=digit", "unknown data set 'digit'", "did you mean digits?"),
    ],
)
@pytest.mark.parametrize("command", ["run", "compare"])
def test_a_real_slip_leaves_no_run(
    call: Call, settings: str, tmp_path: Path, command: str, words: str, message: str, hint: str
) -> None:
    answer = call(command, settings, "--set", words, "--out", "new", "--quiet")
    answer.refuses(message, hint)
    assert not list(tmp_path.glob("new/*"))


@pytest.mark.usefixtures("quick")
def test_a_real_comparison(call: Call, settings: str, tmp_path: Path) -> None:
    words = ["compare", settings, "--methods", "fedvtc,local", "--seeds", "1,0", "--out", "new"]
    answer = call(*words)
    assert answer.code == 0
    document = json.loads((tmp_path / "new" / "comparison.json").read_text())
    assert list(document["methods"]) == ["fedvtc", "local"]
    lines = answer.out.splitlines()
    entry = document["methods"]["fedvtc"]
    shown = f"fedvtc {100 * entry['accuracy_mean']:.1f} ± {100 * entry['accuracy_std']:.1f} "
    assert re.sub(" +", " ", lines[1]).startswith(shown)
    assert lines[7] == "digits, alpha 0.1, 200 training images, seeds 1, 0"
    assert lines[-1] == "report: new/comparison.html"
    assert (tmp_path / "new" / "comparison.html").stat().st_size > 1000
    assert [line.split(":")[0] for line in answer.err.splitlines()] == ["runs"] * 5
    again = call(*words, "--quiet")
    assert again.out == answer.out, "what is done is not done again"
    assert call("compare", "--resume", "new", "--quiet").out == answer.out
    call(*words, "--set", "method.latent=9").refuses("other settings", "another --out")
    call("compare", "--resume", "new", "--seeds", "4").refuses(
        "--resume takes its settings", "compare --help"
    )
    call("compare", "--resume", "away").refuses("away holds no comparison", "compare --out DIR")
    call("compare", "--methods", "fedvtc-no-kd").refuses("'fedvtc-no-kd'", "fedvtc-no-kl?")


# What can go wrong while a command works.


@pytest.mark.parametrize(
    ("error", "code", "message", "hint"),
    [
        (RunError("runs/x is not empty", hint="choose another"), 2, "runs/x is not", "choose"),
        (GateError("no\n  good\x1b[2J", hint="look\tagain"), 1, "no good\\x1b[2J", "look\\tagain"),
        (MemoryError(), 2, "not enough memory", "training.batch"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            2,
            "not enough memory",
            "training.batch",
        ),
        (type("OutOfMemoryError", (RuntimeError,), {})(), 2, "not enough memory", "batch"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "No space left", "--resume"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 2, "x: Permission", "may write"),
    ],
)
def test_what_the_user_or_the_machine_refuses(
    call: Call, fakes: Fakes, error: Exception, code: int, message: str, hint: str
) -> None:
    fakes.error = error
    call("run", "--quiet").refuses(message, hint, code)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"),
        RuntimeError("a bug"),
        EOFError("a bug"),
        OSError(errno.EBADF, "a bug"),
        BrokenPipeError(errno.EPIPE, "a bug: stdout is whole, a pipe of the work broke"),
        PermissionError(errno.EPERM, "a bug: no file to name"),
        ModuleNotFoundError("a bug", name="fedvtc_edge.nowhere"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_our_own_mistakes_keep_their_traceback(
    fakes: Fakes, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fakes.error = error
    with pytest.raises(type(error), match="a bug"):
        front.main(["run", "--quiet"])


@pytest.mark.parametrize(
    ("module", "extra"), [("torch", "train"), ("sklearn.datasets", "train"), ("flwr", "flower")]
)
def test_a_part_that_is_not_installed(call: Call, fakes: Fakes, module: str, extra: str) -> None:
    fakes.error = ModuleNotFoundError(name=module)
    hint = f'pip install "fedvtc-edge[{extra}]"'
    call("run", "--quiet").refuses(f"needs {module.partition('.')[0]}", hint)


def test_ctrl_c_names_the_run_to_go_on_with(call: Call, fakes: Fakes) -> None:
    fakes.error = KeyboardInterrupt()
    hint = "go on with: fedvtc-edge run --resume 'my run'"
    call("run", "--quiet", "--out", "my run").refuses("interrupted", hint, 130)
    call("run", "--quiet", "--resume", "my run").refuses("interrupted", hint, 130)


def test_ctrl_c_before_and_beside_a_run(
    call: Call, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.error = KeyboardInterrupt()
    call("compare", "--quiet").refuses("interrupted", "start the comparison again", 130)

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(fakes, "_finish", stop)
    call("run", "--quiet", "--out", "new").refuses("interrupted", "nothing was written yet", 130)
    monkeypatch.setattr("fedvtc_edge.devices.profile_names", stop)
    call("devices").refuses("interrupted", "start again", 130)


# run


def test_run_prints_what_came_out(call: Call, fakes: Fakes) -> None:
    answer = call("run", "--out", "there")
    assert answer.code == 0
    assert answer.err.splitlines() == ["rounds: 1 to do", "rounds: 1/1 accuracy 0.9"]
    assert answer.out == (
        "client  architecture  device  samples  classes  local only %  own model %  unseen "
        "classes %  combined %  kB up\n"
        "00      lenet         -           120        2          38.0         90.1         "
        "     50.0        98.5   38.4\n"
        "01      lenet         rpi4        120        2          38.0         90.1         "
        "        -        98.5   38.4\n"
        "\n"
        "mean accuracy %  own model  combined  statistics only (no training)  local only\n"
        "global                90.1      98.5                           99.4        38.0\n"
        "home, own prior       97.1      98.0                              -           -\n"
        "\n"
        "digits, fedvtc, 10 rounds, seed 0: 61.0 s, 76.8 kB up\n"
        "privacy: none claimed (Not differentially private)\n"
        "run: there\n"
        "report: there/report.html\n"
    )
    assert fakes.calls == [("run", Config(), {"out": Path("there")})]


def test_run_names_its_folder_after_what_it_does(call: Call, fakes: Fakes) -> None:
    assert call("run", "--quiet").code == 0
    assert call("run", "--quiet", "--set", "data.name=/my data/ä/../Set 1.npz").code == 0
    first, second = (call_[2]["out"] for call_ in fakes.calls)
    assert re.fullmatch(r"runs/digits-fedvtc-\d{8}-\d{6}", first.as_posix())
    assert re.fullmatch(r"runs/Set-1-fedvtc-\d{8}-\d{6}", second.as_posix())


@pytest.mark.parametrize("words", [[], ["--resume", "old"]])
def test_json_is_one_document_and_nothing_else(call: Call, fakes: Fakes, words: list[str]) -> None:
    answer = call("run", "--json", *words)
    assert json.loads(answer.out) == SUMMARY
    assert "rounds: 1/1" in answer.err, "progress goes on, on stderr"
    answer = call("run", "--json", "--quiet", *words)
    assert json.loads(answer.out) == SUMMARY
    assert answer.err == ""


def test_nan_is_not_json(fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fakes.summary["accuracy_mean"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        front.main(["run", "--json", "--quiet"])


def test_run_says_how_private_it_was(call: Call, fakes: Fakes) -> None:
    fakes.summary |= {"epsilon": 3.98765, "delta": 1e-5, "privacy_unit": "example"}
    fakes.summary |= {"privacy_covers": "each upload", "privacy_mechanism": "noise"}
    claim = "privacy: epsilon 3.99 at delta 1e-05, per example; it covers each upload (noise)\n"
    assert claim in call("run").out


def test_run_draws_a_report_that_is_not_there(call: Call, fakes: Fakes) -> None:
    fakes.draws_report = False
    answer = call("run", "--out", "there")
    assert "report: there/report.html\n" in answer.out
    assert fakes.calls[-1] == ("render", Path("there"), {})


def test_run_reads_its_settings(call: Call, fakes: Fakes, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("seed = 4\n[method]\nrounds = 3\n")
    words = ["run", "c.toml", "--set", "method.rounds=5", "--set", "data.name=mnist"]
    assert call(*words, "--engine", "local").code == 0
    config = fakes.calls[0][1]
    assert (config.seed, config.method.rounds, config.data.name) == (4, 5, "mnist")


def test_engine_is_short_for_a_setting(call: Call, fakes: Fakes) -> None:
    assert call("run", "--set", "engine.name=flower").code == 0
    assert call("run", "--engine", "flower").code == 0
    engines = [call_[1].engine.name for call_ in fakes.calls if call_[0] == "run"]
    assert engines == ["flower", "flower"]


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ("--set method.alpha=1", "unknown key method.alpha", "did you mean data.alpha?"),
        ("--set method.rounds=0", "method.rounds = 0", "docs/configuration.md"),
        ("--set method.rounds", "has no value", "--set method.rounds=5"),
        ("missing.toml", "cannot read missing.toml", "path of a TOML file"),
    ],
)
def test_run_refuses_bad_settings(
    call: Call, fakes: Fakes, words: str, message: str, hint: str
) -> None:
    call("run", *words.split()).refuses(message, hint)
    assert fakes.calls == []


@pytest.mark.parametrize("words", ["c.toml", "--set seed=1", "--out x", "--engine local"])
def test_resume_takes_nothing_else(call: Call, fakes: Fakes, words: str) -> None:
    call("run", "--resume", "old", *words.split()).refuses("--resume", "fedvtc-edge run --help")
    assert fakes.calls == []


# compare


def test_compare_prints_a_table(call: Call, fakes: Fakes) -> None:
    answer = call("compare", "--methods", "local, fedvtc", "--seeds", "0,7", "--out", "there")
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert re.split(r" {2,}", lines[0]) == [
        *("method", "own model %", "combined", "statistics"),
        *("own distr.", "home", "unseen", "worst"),
    ]
    accuracies = ("90.1", "±", "1.1", "-", "-", "95.0", "97.0", "89.6", "85.0")
    assert lines[2].split() == ["fedvtc", *accuracies]
    assert re.split(r" {2,}", lines[4])[:3] == ["method", "kB up per client", "seconds"]
    assert lines[6].split() == ["fedvtc", "0.2", "3.0", "412", "3", "0.1", "not", "audited"]
    assert lines[7] == "digits, alpha 0.1, seeds 0, 7"
    assert lines[-1] == "report: there/comparison.html"
    assert max(map(len, lines)) <= 100
    expected = {"methods": ["local", "fedvtc"], "seeds": [0, 7], "out": Path("there")}
    assert fakes.calls[0] == ("compare", Config(), expected)


def test_compare_defaults(call: Call, fakes: Fakes) -> None:
    document = json.loads(call("compare", "--json", "--quiet", "--set", "seed=1").out)
    assert document["seeds"] == [0, 1, 2]
    asked = fakes.calls[0][2]
    assert (asked["methods"], asked["seeds"]) == (None, None), "what [compare] says"
    assert [name for name, *_ in fakes.calls] == ["compare"], "nothing is drawn without --out"


@pytest.mark.parametrize("name", ["quick", "full"])
def test_presets_are_files_to_read(call: Call, fakes: Fakes, name: str) -> None:
    from fedvtc_edge.commands.compare import PRESETS
    from fedvtc_edge.config import load_config

    words = ["--preset", name, "--audit", "--set", "seed=4", "--seeds", "1", "--json", "--quiet"]
    assert call("compare", *words).code == 0
    _, config, asked = fakes.calls[0]
    preset = load_config(PRESETS / f"{name}.toml")
    assert config == preset.replace(seed=4, compare={"audit": True})
    assert asked["seeds"] == [1]
    assert {one.name for one in preset.compare.datasets} >= {"digits", "mnist", "cifar10"}
    assert (preset.compare.seeds, preset.compare.alphas) == ((0, 1, 2), (0.1, 1.0))
    refused = call("compare", "own.toml", "--preset", name)
    refused.refuses("is a file of its own", "compare --help")


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ("--resume there --tune", "--resume takes its settings", "compare --help"),
        ("--resume there --preset quick", "--resume takes its settings", "compare --help"),
        ("--resume there --out here", "goes on in DIR", "compare --help"),
        ("--preset slow", "'slow' is not one of 'quick', 'full'", "compare --help"),
        ("--methods local,,local", "expected names between commas", "compare --help"),
        ("--methods local,local", "each only once", "compare --help"),
        ("--seeds 0,x", "'x' is not a whole number", "compare --help"),
        ("--seeds -1", "'-1' is not a whole number", "compare --help"),
        ("--seeds 9223372036854775808", "is not a whole number", "compare --help"),
        ("--seeds ٣", "is not a whole number", "compare --help"),
    ],
)
def test_compare_refuses(call: Call, fakes: Fakes, words: str, message: str, hint: str) -> None:
    call("compare", "--quiet", *words.split()).refuses(message, hint)
    assert fakes.calls == []


@pytest.mark.parametrize(
    ("words", "hint"),
    [("fedprot", "did you mean fedproto?"), ("zzz", "methods: fedvtc, statistics,")],
)
def test_compare_refuses_an_unknown_method(call: Call, words: str, hint: str) -> None:
    answer = call("compare", "--quiet", "--methods", f"local,{words}")
    answer.refuses(f"unknown method '{words}'", hint)
    assert "--plugin" in answer.err


# devices and report


def test_devices_list(call: Call) -> None:
    answer = call("devices")
    assert answer.code == 0
    names = [line.split()[0] for line in answer.out.splitlines()[1:11]]
    assert names[0] == "coral-dev-board"
    assert names == sorted(names)
    document = json.loads(call("devices", "--json").out)
    assert [device["name"] for device in document["devices"]] == names


def test_one_device_with_its_provenance(call: Call) -> None:
    answer = call("devices", "rpi4")
    assert "memory_gbps        2.2    published  sbc-bench" in answer.out
    assert "mobilenet_v2_224  ncnn     1        93   published  ncnn benchmark README" in answer.out
    document = json.loads(call("devices", "rpi4", "--json").out)
    assert document["memory_gbps"]["value"] == 2.2
    assert document["memory_gbps"]["kind"] == "published"
    assert "onnxruntime does not run here" in call("devices", "stm32h7").out


def test_devices_refuses(call: Call) -> None:
    call("devices", "rpi6").refuses("unknown device 'rpi6'", "did you mean rpi5?")
    call("devices", "./mine.toml").refuses("cannot read mine.toml", "path of a TOML file")


def test_report_draws_what_it_finds(call: Call, fakes: Fakes, tmp_path: Path) -> None:
    assert call("report", "there").out == "there/report.html\n"
    (tmp_path / "comparison.json").write_text("{}")
    assert call("report", ".").out == "comparison.html\n"
    assert json.loads(call("report", "there", "--json").out) == {
        "schema": 1,
        "report": "there/report.html",
    }


# A cold start.


def cold(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fedvtc_edge", *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )


@pytest.mark.parametrize("words", [["--help"], ["devices"], ["devices", "rpi4"], ["run", "--help"]])
def test_asking_never_imports_torch(words: list[str], tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from fedvtc_edge.__main__ import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as left:\n"
        "    assert left.code == 0\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'tqdm'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,  # what lies in the current folder would be found first
    )
    assert done.returncode == 0, done.stderr


def test_as_a_module() -> None:
    done = cold("rnu")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "fedvtc-edge: error: unknown command 'rnu'\nfedvtc-edge: hint: did you mean run?\n"
    )


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_real_ctrl_c_then_pure_json_and_the_same_run_in_any_process(
    settings: str,
    tmp_path: Path,
    quick: None,
    contents: Callable[[Path], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["run", settings, "--out", "my run", "--set", "method.rounds=8"]
    with subprocess.Popen(
        [sys.executable, "-m", "fedvtc_edge", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as process:
        assert process.stderr is not None
        while not process.stderr.readline().startswith("rounds: 1/8"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (130, "")
    lines = [line for line in err.splitlines() if not line.startswith("rounds: ")]
    assert lines == [
        "fedvtc-edge: error: interrupted",
        "fedvtc-edge: hint: go on with: fedvtc-edge run --resume 'my run'",
    ]
    done = cold("run", "--resume", "my run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "my run/summary.json").read_text())
    assert all(line.startswith("rounds: ") for line in done.stderr.splitlines()), done.stderr
    from fedvtc_edge.config import load_config
    from fedvtc_edge.runs.directory import number_of
    from fedvtc_edge.workflows.run import run

    config = load_config(tmp_path / settings, overrides=["method.rounds=8"])
    number = number_of(tmp_path / "my run")
    monkeypatch.setattr("fedvtc_edge.runs.directory.new_number", lambda: number)
    run(config, out=tmp_path / "whole")
    assert contents(tmp_path / "my run") == contents(tmp_path / "whole")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_a_full_disk() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fedvtc_edge", "devices"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "fedvtc-edge: error: No space left on device"
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
@pytest.mark.parametrize("words", [["devices"], ["--help"]])
def test_a_reader_who_has_seen_enough(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "fedvtc_edge", *words],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, "")


def test_a_terminal_without_the_sign_still_gets_its_table() -> None:
    program = (
        "from fedvtc_edge import __main__ as front\n"
        "front.command_line.invoke = lambda context: print('1 \\u00b1 2')\n"
        "front.main(['x'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": "iso8859-5", "PYTHONUTF8": "0"},
    )
    assert (done.returncode, done.stdout) == (0, "1 ? 2\n")


def test_tables_align() -> None:
    @click.command()
    def table() -> None:
        _common.emit_table(("a", "long"), [("wide", "1"), ("x", "22")])

    assert CliRunner().invoke(table).output == "a     long\nwide     1\nx       22\n"


def test_a_warning_of_ours_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warn(arguments: list[str]) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("the key is\nopen", FedVTCWarning, stacklevel=1)
            warnings.warn("somebody else's", UserWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(front, "_run", warn)
    with pytest.raises(SystemExit):
        front.main([])
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "fedvtc-edge: warning: the key is open"
    assert "UserWarning: somebody else's" in said[1]

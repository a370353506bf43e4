"""``fedvtc-edge export`` as its user meets it."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedvtc_edge import run
from fedvtc_edge.config import Config
from fedvtc_edge.errors import ParityError
from fedvtc_edge.sealing import signing

Call = Callable[..., Any]

COLUMNS = [
    ["client", "architecture", "run %", "ONNX %", "combined %", "rel. error", "pixels"],
    ["classifier kB", "synthesiser kB"],
    [
        "client",
        "fp32 %",
        "int8 %",
        "agrees %",
        "fp32 kB",
        "int8 kB",
        "synthesiser fp32 kB",
        "int8 kB",
        "PSNR dB",
    ],
]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, export_document: dict[str, Any]) -> dict[str, Any]:
    """A stand-in for export: what it answers or raises, and what it was called with."""
    state: dict[str, Any] = {"answer": json.loads(json.dumps(export_document)), "error": None}

    def export(run: Path, out: Path, **options: Any) -> dict[str, Any]:
        state.update(run=run, out=out, **options)
        if state["error"]:
            raise state["error"]
        answer: dict[str, Any] = state["answer"]
        return answer

    monkeypatch.setattr("fedvtc_edge.export.exporting.export", export)
    return state


def cells(line: str) -> list[str]:
    return re.split(r" {2,}", line.strip())


# What it prints.


def test_a_table_of_what_was_written(
    call: Call, tiny_run: Path, exported: Path, export_document: dict[str, Any]
) -> None:
    answer = call("export", tiny_run, "--out", exported, "--int8")
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert cells(lines[0]) == COLUMNS[0] + COLUMNS[1]
    assert cells(lines[5]) == COLUMNS[2]
    assert len(lines) == 13
    for index, entry in enumerate(export_document["bundles"]):
        row = dict(zip(cells(lines[0]), cells(lines[1 + index]), strict=True))
        accuracy, size = entry["accuracy"], entry["size_bytes"]
        worst = max(one["max_relative_error"] for one in entry["parity"]["classifier"].values())
        assert row["client"] == entry["client"]
        assert row["architecture"] == entry["architecture"]
        assert row["run %"] == row["ONNX %"] == f"{100 * accuracy['classifier']:.1f}"
        assert row["combined %"] == f"{100 * accuracy['calibrated']:.1f}"
        assert float(row["rel. error"]) == pytest.approx(worst, rel=0.1)
        assert row["pixels"].startswith("equal")
        assert row["classifier kB"] == f"{size['classifier'] / 1000:.1f}"
        small = cells(lines[6 + index])
        assert small[:3] == [
            entry["client"],
            f"{100 * accuracy['classifier']:.1f}",
            f"{100 * accuracy['classifier_int8']:.1f}",
        ]
        names = ("classifier", "classifier.int8", "synthesizer", "synthesizer.int8")
        assert small[4:8] == [f"{size[name] / 1000:.1f}" for name in names]
        assert float(small[8]) > 30
    assert lines[4] == lines[9] == ""
    assert lines[10] == "accuracy on the run's test images; kB of 1,000 bytes"
    assert lines[11] == "NOT signed: --sign KEY signs the manifests"
    assert lines[12] == f"bundles: {exported}"
    told = answer.err.splitlines()
    assert told[0] == "export: 3 to do"
    assert "client-02" in told[-1]


def test_a_table_without_int8_synthesiser_or_anchor(call: Call, fake: dict[str, Any]) -> None:
    entries = fake["answer"]["bundles"]
    for entry in entries:
        entry["int8"] = {}
    entries[0]["parity"]["synthesizer"]["rounding_ties"] = 3
    entries[1]["parity"]["synthesizer"]["rounding_ties"] = 0
    del entries[2]["parity"]["synthesizer"], entries[2]["size_bytes"]["synthesizer"]
    del entries[2]["accuracy"]["calibrated"]
    fake["answer"]["signed_by"] = "SHA256:abc"
    answer = call("export", "there", "--out", "new")
    lines = answer.out.splitlines()
    assert cells(lines[0]) == COLUMNS[0] + COLUMNS[1]
    rows = [dict(zip(cells(lines[0]), cells(line), strict=True)) for line in lines[1:4]]
    assert [row["pixels"] for row in rows] == ["equal but 3 ties", "equal", "-"]
    assert rows[2]["combined %"] == rows[2]["synthesiser kB"] == "-"
    assert "signed by SHA256:abc" in lines
    assert answer.code == 0


def test_one_json_document(
    call: Call,
    tiny_run: Path,
    exported: Path,
    export_document: dict[str, Any],
    strict_json: Callable[[str], Any],
) -> None:
    answer = call("export", tiny_run, "--out", exported, "--int8", "--json")
    document = strict_json(answer.out)
    assert answer.code == 0
    assert document == json.loads(json.dumps(export_document))
    assert {"schema", "version", "run", "out", "signed_by", "bundles"} <= set(document)
    assert "export: " in answer.err


@pytest.mark.parametrize("words", [["--quiet"], ["--quiet", "--json"]])
def test_quiet(call: Call, tiny_run: Path, exported: Path, words: list[str]) -> None:
    answer = call("export", tiny_run, "--out", exported, "--int8", *words)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out


# What it passes on.


def test_words_reach_the_exporter(call: Call, fake: dict[str, Any], tmp_path: Path) -> None:
    words = ["--client", "client-02", "--client", "client-00"]
    assert call("export", "runs/a", "--out", "new", *words).code == 0
    assert (fake["run"], fake["out"]) == (Path("runs/a"), Path("new"))
    assert fake["clients"] == ("client-02", "client-00")
    assert (fake["int8"], fake["signing_key"]) == (False, None)
    key = signing.generate()
    signing.save(key, tmp_path / "k", passphrase="open")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(signing.PASSPHRASE, "open")
        assert call("export", "runs/a", "--out", "new", "--int8", "--sign", "k").code == 0
    assert fake["int8"] is True
    assert fake["signing_key"].public_key() == key.public_key()
    assert not fake["clients"]


# What it refuses.


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ("export", "Missing argument 'RUN'", "see fedvtc-edge export --help"),
        ("export RUN", "Missing option '--out'", "see fedvtc-edge export --help"),
        ("export RUN --out new --clients", "unknown option --clients", "did you mean --client?"),
        ("export nowhere --out new", "nowhere holds no run", "fedvtc-edge run --out"),
        ("export RUN --out new --client x", "has no client 'x'", "client-00 to client-02"),
        ("export RUN --out new --sign none", "cannot read the key none", "check the path"),
        ("export RUN --out file", "file is a file", "choose a new folder for --out"),
        ("export RUN --out file/below", "cannot write file/below: Not a dir", "another --out"),
        ("export RUN --out full", "full is not empty: it holds letter", "choose a new folder"),
    ],
)
def test_wrong_words(
    call: Call, tiny_run: Path, tmp_path: Path, words: str, message: str, hint: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").write_text("dear")
    given = [str(tiny_run) if word == "RUN" else word for word in words.split()]
    call(*given).refuses(message, hint)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


@pytest.mark.usefixtures("quick")
def test_int8_of_a_run_that_synthesises_nothing(
    call: Call, tiny: Callable[..., Config], tmp_path: Path
) -> None:
    run(tiny(method={"name": "local", "rounds": 1}), out=tmp_path / "run")
    answer = call("export", "run", "--out", "new", "--int8")
    answer.refuses("'local' synthesises none", "leave out --int8")
    assert not (tmp_path / "new").exists()


def test_a_graph_that_disagrees_is_exit_code_1(call: Call, tiny_run: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny_run, tmp_path / "run")) / "summary.json"
    summary = json.loads(path.read_text())
    summary["clients"][0]["accuracy"] -= 0.05
    path.write_text(json.dumps(summary))
    message = f"the run's summary says {100 * summary['clients'][0]['accuracy']:.2f} %"
    call("export", "run", "--out", "new", "--quiet").refuses(message, "run it again", 1)
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize(
    ("error", "code", "message", "hint"),
    [
        (ParityError("no", hint="look"), 1, "no", "look"),
        (KeyboardInterrupt(), 130, "interrupted", "the same command makes the others"),
        (ModuleNotFoundError("x", name="onnxscript"), 2, "needs onnxscript", "fedvtc-edge[train]"),
        (OSError(28, "No space left on device"), 2, "No space left", "free some space"),
    ],
)
def test_what_may_happen_on_the_way(
    call: Call, fake: dict[str, Any], error: BaseException, code: int, message: str, hint: str
) -> None:
    fake["error"] = error
    call("export", "there", "--out", "new").refuses(message, hint, code)


@pytest.mark.slow
def test_ctrl_c_leaves_no_half_bundle(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [sys.executable, "-m", "fedvtc_edge", "export", str(tiny_run), "--out", str(out)]
    pipe = subprocess.PIPE
    child = subprocess.Popen(
        [*words, "--quiet"],
        stdout=pipe,
        stderr=pipe,
        text=True,
        cwd=tmp_path,
    )
    until = time.monotonic() + 300
    while not list(out.glob(".client-00.new-*/classifier.onnx")):
        assert child.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    stdout, stderr = child.communicate(timeout=300)
    assert (child.returncode, stdout) == (130, "")
    assert [line.split(": ")[:2] for line in stderr.splitlines()] == [
        ["fedvtc-edge", "error"],
        ["fedvtc-edge", "hint"],
    ]
    assert "interrupted" in stderr
    assert "the same command makes the others" in stderr
    assert not list(out.iterdir())

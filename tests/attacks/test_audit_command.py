"""``fedvtc-edge audit`` as a pipeline calls it: words, exit codes, files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from fedvtc_edge.attacks import auditing
from fedvtc_edge.attacks.inference import reconstruction
from fedvtc_edge.config import Config
from fedvtc_edge.workflows.run import run

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def finished(
    tiny: Callable[..., Config],
    quickly: Callable[[], AbstractContextManager[None]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("audited") / "run"
    with quickly():
        settings = tiny(
            data={"limit": 400, "test_limit": 200}, method={"rounds": 1, "anchor": 16, "latent": 8}
        )
        run(settings, out=folder)
    return folder


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditing, "STAGED", (1,))
    monkeypatch.setattr(reconstruction, "STEPS", 5)


def test_a_leak_is_exit_1_and_leaves_a_report(finished: Path, call: Call) -> None:
    answer = call("audit", finished, "--attacks", "membership,exact", "--trials", "20")
    assert answer.code == 1
    assert "verdict: leak" in answer.out
    assert "LEAK" in answer.out
    document = json.loads((finished / "audit" / "report.json").read_text())
    assert document["exit_code"] == 1
    assert (finished / "audit" / "report.html").stat().st_size > 10_000


def test_json_is_one_document(finished: Path, call: Call, tmp_path: Path) -> None:
    words = ("--attacks", "decode", "--view", "device", "--trials", "20", "--json", "--quiet")
    answer = call("audit", finished, *words, "--out", tmp_path / "out")
    assert json.loads(answer.out) == json.loads((tmp_path / "out" / "report.json").read_text())
    assert answer.err == ""
    assert answer.code == json.loads(answer.out)["exit_code"]


def test_a_claim_can_be_invalid_or_lenient(finished: Path, call: Call, tmp_path: Path) -> None:
    claim = tmp_path / "claim.toml"
    words = ("audit", finished, "--attacks", "membership", "--trials", "20", "--claim", claim)
    claim.write_text("epsilon = 4.0\n")
    answer = call(*words)
    assert answer.code == 4
    assert "does not say its delta" in answer.out
    claim.write_text("max_identification = 1.0\nmax_membership_tpr = 1.0\n")
    assert call(*words).code == 0
    claim.write_text("max_identifcation = 1.0\n")
    call(*words).refuses("unknown key max_identifcation", "did you mean max_identification?")


def test_nothing_to_decide_is_inconclusive(finished: Path, call: Call, tmp_path: Path) -> None:
    words = ("--attacks", "shadow", "--trials", "20", "--out", tmp_path / "out")
    answer = call("audit", finished, *words)
    assert answer.code == 3
    assert "verdict: inconclusive" in answer.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--attacks", "magic"], "unknown attack 'magic'"),
        (["--view", "god"], "no adversary 'god'"),
        (["--trials", "3"], "3 is not in the range"),
        (["--claim", "none.toml"], "cannot read"),
    ],
)
def test_wrong_words(finished: Path, call: Call, words: list[str], message: str) -> None:
    call("audit", finished, *words).refuses(message)


def test_what_is_no_run(call: Call, tmp_path: Path, finished: Path) -> None:
    call("audit", tmp_path / "none").refuses("holds no run", "fedvtc-edge run")
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy, ignore=shutil.ignore_patterns("audit"))
    (copy / "summary.json").unlink()
    call("audit", copy).refuses("is not finished", "--resume")
    shutil.copy(finished / "summary.json", copy)
    victim = next(copy.glob("server/*/client-01.anchor.upload"))
    victim.write_bytes(victim.read_bytes()[:-1])
    answer = call("audit", copy, "--attacks", "decode", "--trials", "20", "--quiet")
    assert answer.code == 2
    assert "bytes, expected" in answer.err
    assert not (copy / "audit").exists()


def test_statistics_alone_say_which_data(finished: Path, call: Call, tmp_path: Path) -> None:
    file = tmp_path / "statistics.safetensors"
    shutil.copy(finished / "statistics.safetensors", file)
    call("audit", file).refuses("which data", "--config")
    words = ("--config", finished / "config.toml", "--attacks", "decode", "--trials", "20")
    answer = call("audit", file, *words)
    assert answer.code in (0, 1)
    assert (tmp_path / "statistics-audit" / "report.html").exists()

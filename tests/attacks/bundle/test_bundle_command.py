"""``fedvtc-edge audit BUNDLE`` as a pipeline calls it: words, exit codes, report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_bundles import plant

from fedvtc_edge.attacks.bundle import auditing
from fedvtc_edge.attacks.bundle.reference import Reference
from fedvtc_edge.export.manifest import Manifest

Call = Callable[..., Any]
CLIENT = "client-01"


@pytest.fixture
def bundle(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy; its reference is the honest bundle itself, for what is tested here are words."""
    files = {path.name: path.read_bytes() for path in (exported / CLIENT).iterdir()}
    graphs = {name: data for name, data in files.items() if name.endswith(".onnx")}
    monkeypatch.setattr(auditing, "of_run", lambda run, manifest: Reference(files, True, {}))
    monkeypatch.setattr(auditing, "of_architecture", lambda manifest: Reference(graphs, False, {}))
    return Path(shutil.copytree(exported / CLIENT, tmp_path / CLIENT))


def report(answer: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(answer.out)
    return document


def test_without_knowledge_it_is_inconclusive(bundle: Path, call: Call, tmp_path: Path) -> None:
    answer = call("audit", bundle)
    assert answer.code == 3
    assert "verdict: inconclusive" in answer.out
    assert "only names and structure were checked" in answer.out
    assert "--run RUN or --data PATH" in answer.out
    page = (tmp_path / f"{CLIENT}-audit" / "report.html").read_text()
    assert "only names and structure were checked" in page


def test_with_the_run_it_passes_or_leaks(bundle: Path, call: Call, tiny_run: Path) -> None:
    answer = call("audit", bundle, "--run", tiny_run, "--json")
    assert (answer.code, report(answer)["verdict"]) == (0, "pass")
    assert report(answer)["subject"] == {"kind": "bundle", "name": CLIENT, "client": CLIENT}
    draw = np.random.default_rng(0)
    plant("metadata entry", bundle, draw.integers(0, 255, (9, 8, 8, 1), "u1"), np.arange(9) % 3)
    answer = call("audit", bundle, "--run", tiny_run, "--json")
    assert (answer.code, report(answer)["verdict"]) == (1, "leak")


def test_the_manifests_claim_is_shown(
    bundle: Path, call: Call, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = json.loads((bundle / "manifest.json").read_text())
    unit = "one training example of one client, added or removed"
    data["privacy"] = {"mode": "anchored", "epsilon": 2.0, "delta": 1e-05, "unit": unit}
    manifest = Manifest.from_bytes(json.dumps(data).encode())
    (bundle / "manifest.json").write_bytes(manifest.to_bytes())
    answer = call("audit", bundle, "--json")
    assert answer.code == 3
    claim = report(answer)["claim"]
    assert (claim["epsilon"], claim["unit"], claim["source"]) == (2.0, "example", "the manifest")
    answer = call("audit", bundle, "--run", tiny_run)
    assert answer.code == 4
    assert "the manifest says mode = 'anchored', the run's is 'none'" in answer.out


def test_wrong_words(bundle: Path, call: Call, tiny_run: Path, tmp_path: Path) -> None:
    words = ("--run", tiny_run, "--data", tmp_path / "x.npz")
    call("audit", bundle, *words).refuses("--run and --data", "give one of them")
    call("audit", bundle, "--data", tmp_path / "x.npz").refuses("no images at")
    call("audit", bundle, "--run", tmp_path).refuses("holds no run")
    call("audit", tiny_run, "--run", tiny_run).refuses("is no bundle", "manifest.json")

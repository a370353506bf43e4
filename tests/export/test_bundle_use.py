"""The fresh process that uses a bundle before it gets its name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvtc_edge.errors import BundleError, ParityError, VerificationError
from fedvtc_edge.export import Bundle, exporting
from fedvtc_edge.export.bundle import use_all


def fresh(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", exporting._USE_ALL, str(path)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


def test_a_good_bundle_is_used_in_silence(bundle_folder: Path) -> None:
    done = fresh(bundle_folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_bad_one_ends_the_process(bundle: Path) -> None:
    (bundle / "classifier.onnx").write_bytes(b"x")
    done = fresh(bundle, PYTHONOPTIMIZE="1")
    assert done.returncode != 0
    assert "classifier.onnx: 1 bytes, expected" in done.stderr.splitlines()[-1]
    with pytest.raises(VerificationError):
        use_all(bundle)
    with pytest.raises(BundleError):
        use_all(bundle / "nowhere")


def test_every_variant_of_every_graph_is_used(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: set[tuple[str, str]] = set()
    load = Bundle._load

    def watch(self: Bundle, name: Any, variant: Any) -> Any:
        used.add((name, variant))
        return load(self, name, variant)

    monkeypatch.setattr(Bundle, "_load", watch)
    for module in ("torch", "onnx"):  # this process has imported them
        monkeypatch.delitem(sys.modules, module)
    use_all(bundle_folder)
    manifest = json.loads((bundle_folder / "manifest.json").read_text())
    listed = {(name, v) for name, graph in manifest["graphs"].items() for v in graph["variants"]}
    assert used == listed
    assert len(listed) == 5


def test_torch_in_the_process_is_noticed(bundle_folder: Path) -> None:
    with pytest.raises(ParityError, match="torch imported"):
        use_all(bundle_folder)


@pytest.mark.parametrize(
    ("method", "result", "message"),
    [
        ("classify", np.full((2, 10), np.nan, np.float32), "fp32: scores are not finite"),
        ("synthesize", np.zeros((1, 8, 8, 1), np.uint8), r"fp32: images \(1, 8, 8, 1\)"),
    ],
)
def test_results_are_looked_at(
    bundle_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    result: Any,
    message: str,
) -> None:
    monkeypatch.setattr(Bundle, method, lambda *_, **__: result)
    with pytest.raises(ParityError, match=message):
        use_all(bundle_folder)

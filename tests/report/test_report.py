"""The report of a run: self-contained, escaped, honest about what is missing, repeatable."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvtc_edge.errors import RunError
from fedvtc_edge.report import render, render_comparison

CLIENTS = [
    ("ward-a", "lenet", "rpi4"),
    ("ward-b", "resnet8", "jetson-nano"),
    ("gate-1", "mobilenet", "rpi5"),
    ("gate-2", "shufflenet", "rpi4"),
    ("kiosk", "mlp", "rpi-zero-2"),
    ("lab", "resnet8", "orin-nano"),
]


def summary_of(clients: int = 6, classes: int = 10, anchored: bool = True) -> dict[str, Any]:
    """A made-up but lifelike summary; the last client holds every class."""
    rng = np.random.default_rng(3)
    records = []
    for index in range(clients):
        name, architecture, device = CLIENTS[index % len(CLIENTS)]
        held = max(1, int(rng.integers(2, 5)) * classes // 10)
        counts = np.zeros(classes, dtype=int)
        counts[rng.permutation(classes)[:held]] = rng.integers(4, 140, held)
        if index == clients - 1:
            counts = np.maximum(counts, 3)
        complete = bool(counts.all())
        local = 0.1 * np.count_nonzero(counts) * 10 / classes - 0.02
        own = float(rng.uniform(0.86, 0.95))
        records.append(
            {
                "id": name if index < len(CLIENTS) else f"{name}-{index}",
                "architecture": architecture,
                "device": device,
                "samples": int(counts.sum()),
                "class_counts": counts.tolist(),
                "classes_present": int(np.count_nonzero(counts)),
                "accuracy": own,
                "accuracy_local_only": float(min(local, 0.9)),
                "accuracy_absent_classes": None if complete else own - 0.05,
                "accuracy_absent_classes_local_only": None if complete else 0.012,
                "accuracy_calibrated": own + 0.04 if anchored else None,
                "upload_bytes": 91_000 + index * 700,
                "download_bytes": 143_000,
                "peak_memory_mb": 180.0 + 41 * index,
                "seconds": 12.5 + index * 2.25,
                "seconds_virtual": 44.0 + 130 * index,
                "parameters": 61_706 * (index % 4 + 1),
            }
        )
    own_mean = float(np.mean([record["accuracy"] for record in records]))
    local_mean = float(np.mean([record["accuracy_local_only"] for record in records]))
    return {
        "schema": 1,
        "version": "0.1.0",
        "seed": 0,
        "method": "fedvtc",
        "data": "digits",
        "share": "anchored" if anchored else "features",
        "moments": "covariance",
        "engine": "local",
        "device": "cpu",
        "rounds": 10,
        "alpha": 0.1,
        "partition": "dirichlet",
        "clients": records,
        "accuracy_mean": own_mean,
        "accuracy_worst": min(record["accuracy"] for record in records),
        "accuracy_local_only_mean": local_mean,
        "accuracy_absent_classes_mean": 0.861,
        "accuracy_calibrated_mean": own_mean + 0.04 if anchored else None,
        "accuracy_control": 0.992 if anchored else None,
        "gain": own_mean - local_mean,
        "upload_bytes_total": sum(record["upload_bytes"] for record in records),
        "download_bytes_total": sum(record["download_bytes"] for record in records),
        "epsilon": None,
        "delta": 1e-5,
        "privacy_unit": "example",
        "seconds": 87.4,
        "samples_per_second": 5120.0,
        "class_names": [str(label) for label in range(classes)],
    }


def round_of(number: int, summary: dict[str, Any]) -> dict[str, Any]:
    reached = 1 - np.exp(-number / 2.5)
    clients = []
    for client in summary["clients"]:
        start = client["accuracy_local_only"]
        clients.append(
            {
                "id": client["id"],
                "accuracy": start + reached * (client["accuracy"] - start),
                "accuracy_local_only": start,
                "accuracy_calibrated": client["accuracy_calibrated"],
                "accuracy_absent_classes": client["accuracy_absent_classes"],
                "upload_bytes": 9_100,
                "download_bytes": 14_300,
                "seconds": 1.25,
            }
        )
    return {
        "round": number,
        "accuracy_mean": float(np.mean([client["accuracy"] for client in clients])),
        "accuracy_calibrated_mean": summary["accuracy_calibrated_mean"],
        "accuracy_local_only_mean": summary["accuracy_local_only_mean"],
        "seconds": 8.7,
        "clients": clients,
    }


def samples_of(clients: int, classes: int, side: int = 8, channels: int = 1) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    ideal = rng.integers(0, 255, (classes, 1, side, side, channels))
    real = np.clip(ideal + rng.normal(0, 20, (classes, 8, side, side, channels)), 0, 255)
    noise = rng.normal(0, 50, (clients, classes, 8, side, side, channels))
    painted = np.clip(ideal[None] + noise, 0, 255)
    return {"painted": painted.astype(np.uint8), "real": real.astype(np.uint8)}


def write_run(
    directory: Path, summary: dict[str, Any], *, rounds: range = range(1, 11), **arrays: Any
) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    lines = [json.dumps(round_of(number, summary)) for number in rounds]
    (directory / "metrics.jsonl").write_text(
        "".join(f"{line}\n" for line in lines), encoding="utf-8"
    )
    if arrays:
        np.savez_compressed(directory / "samples.npz", **arrays)
    return directory


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path, summary_of(), **samples_of(6, 10))


def page_of(directory: Path) -> str:
    return render(directory).read_text(encoding="utf-8")


def test_is_one_file_that_loads_nothing(run: Path) -> None:
    page = page_of(run)
    assert not re.search(r"https?://", page)
    assert "<script" not in page
    assert "@import" not in page
    for value in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert value.startswith(("data:image/png;base64,", "#")), value
    for value in re.findall(r"url\(([^)]*)\)", page):
        assert value.startswith(("data:image/png;base64,", "#")), value
    assert len(page) < 3_000_000
    assert sorted(path.name for path in run.iterdir()) == [
        "metrics.jsonl",
        "report.html",
        "samples.npz",
        "summary.json",
    ]


def test_every_reference_inside_a_drawing_is_met_once(run: Path) -> None:
    page = page_of(run)
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', page)
    assert {a or b for a, b in used} <= set(ids)


def test_shows_every_client_and_every_kind_of_class(run: Path) -> None:
    page = page_of(run)
    for name, architecture, device in CLIENTS:
        assert f'<th scope="row" title="{name}">{name}<' in page
        assert architecture in page
        assert device in page
    assert "unseen by this client" in page
    assert re.search(r"present \(\d+\)", page)
    assert page.count("<details") == 6
    assert page.count('<details class="card" open') == 1
    assert page.count('<img class="strip"') == 60


def test_own_model_combined_and_statistics_only_stand_together(run: Path) -> None:
    page = page_of(run)
    for name in ("Own model", "Combined", "Statistics only", "Local only"):
        assert f"<dt>{name}</dt>" in page
    assert "below statistics only" in page
    assert "Not differentially private" in page
    assert "did not itemise its uploads" in page


def test_budget_of_privacy_is_told(tmp_path: Path) -> None:
    summary = summary_of() | {"epsilon": 4.0, "delta": 1e-5, "privacy_unit": "example"}
    page = page_of(write_run(tmp_path, summary))
    assert ">ε = 4</p>" in page
    assert "At δ = 1e-5." in page
    assert "one training example" in page
    assert "Not differentially private" not in page


def test_uploads_are_told_in_the_words_of_the_run(tmp_path: Path) -> None:
    summary = summary_of() | {"uploads": ["once: class <sums>", "each round: counts"]}
    page = page_of(write_run(tmp_path, summary))
    assert "<li>once: class &lt;sums&gt;</li><li>each round: counts</li>" in page


def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    summary = summary_of()
    hostile = "<script>alert(1)</script>"
    summary["class_names"][0] = hostile
    summary["clients"][0]["id"] = '"><svg onload=x>'
    summary["clients"][1]["id"] = "$\\frac{x$"
    summary["clients"][2]["id"] = "病院"
    summary["data"] = hostile
    page = page_of(write_run(tmp_path, summary, **samples_of(6, 10)))
    assert "<script" not in page
    assert "<svg onload" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "$\\frac{x$" in page
    assert "病院" in page


def test_torn_last_line_is_ignored_but_not_a_torn_middle(run: Path) -> None:
    before = page_of(run)
    metrics = run / "metrics.jsonl"
    whole = metrics.read_text(encoding="utf-8")
    metrics.write_text(whole + '{"round": 11, "accur', encoding="utf-8")
    assert page_of(run) == before
    metrics.write_text('{"round": 0, "acc\n' + whole, encoding="utf-8")
    with pytest.raises(RunError, match="line 1 is damaged: it is not JSON"):
        render(run)


def test_round_written_twice_counts_once(run: Path) -> None:
    before = page_of(run)
    metrics = run / "metrics.jsonl"
    whole = metrics.read_text(encoding="utf-8")
    stale = json.loads(whole.splitlines()[4]) | {"accuracy_mean": 0.01}
    metrics.write_text(json.dumps(stale) + "\n" + whole, encoding="utf-8")
    assert page_of(run) == before


def test_unfinished_run_reports_its_rounds(run: Path) -> None:
    (run / "summary.json").unlink()
    page = page_of(run)
    assert "This run is not finished." in page
    assert "10 rounds so far" in page
    assert "ward-a" in page
    assert "91.0 kB" in page  # ten rounds of 9,100 bytes
    assert "Not differentially private" not in page  # nobody knows yet


def test_modes_without_an_anchor_say_so(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, summary_of(anchored=False)))
    assert page.count("Not measured in this mode.") == 2
    assert "Statistics alone classify nothing here" in page
    assert ">statistics only (no training)<" not in page


def test_sharing_modes_say_what_of_the_paper_they_follow(tmp_path: Path) -> None:
    for share, words in (("features", "summary"), ("features+decoder", "reviews")):
        summary = {**summary_of(), "share": share}
        page = page_of(write_run(tmp_path / share, summary))
        assert f"{share}, after the paper&#39;s {words}" in page
        assert "as published" not in page


def test_heads_that_nothing_trained_are_not_called_trained(tmp_path: Path) -> None:
    summary = summary_of()
    assert "What each client trained, alone." in page_of(write_run(tmp_path / "own", summary))
    for client in summary["clients"]:
        client.update(architecture="extractor-head", parameters=None)
    page = page_of(write_run(tmp_path / "head", summary))
    assert "nothing was trained" in page
    assert "What each client trained, alone." not in page


def test_nearly_empty_summary_still_renders(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"schema": 1, "clients": [{"id": 7}]}')
    page = page_of(tmp_path)
    assert "No accuracy has been measured yet." in page
    assert '<th scope="row" title="7">7<' in page


def test_many_classes_and_large_images_stay_bounded(tmp_path: Path) -> None:
    arrays = samples_of(4, 30, side=32, channels=3)
    page = page_of(write_run(tmp_path, summary_of(4, 30), **arrays))
    assert "(10 of " in page
    assert "Of 30 classes, a few are shown" in page
    assert page.count('<img class="strip"') <= 4 * 15
    assert len(page) < 3_000_000


def test_many_clients_are_all_in_the_table(tmp_path: Path) -> None:
    summary = summary_of(30)
    page = page_of(write_run(tmp_path, summary, **samples_of(30, 10)))
    assert page.count('<th scope="row" title=') == 30
    assert "18 more clients are not shown" in page
    assert "How they spread" not in page


def test_same_run_same_bytes(run: Path) -> None:
    first = render(run).read_bytes()
    assert render(run).read_bytes() == first


def test_absent_run_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing to report") as caught:
        render(tmp_path)
    assert "fedvtc-edge run" in caught.value.hint
    with pytest.raises(RunError, match="no run directory"):
        render(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2"),
        ({"accuracy_mean": 92.0}, "accuracy_mean is 92.0"),
        ({"accuracy_mean": float("nan")}, "NaN is not JSON"),
        ({"data": "\ud800"}, "no sound document"),
        ({"clients": []}, "unlike ids"),
        ({"clients": [{"id": "a"}, {"id": "a"}]}, "unlike ids"),
        ({"clients": "six"}, "clients is 'six'"),
        ({"class_names": ["one"]}, "counts 10 classes, expected 1"),
    ],
)
def test_damaged_summary_is_an_error(run: Path, change: dict[str, Any], message: str) -> None:
    (run / "summary.json").write_text(json.dumps(summary_of() | change), encoding="utf-8")
    with pytest.raises(RunError, match=message) as caught:
        render(run)
    assert caught.value.hint


@pytest.mark.parametrize("text", ["{", "[]", "", "\x00"])
def test_summary_that_is_no_object_is_an_error(run: Path, text: str) -> None:
    (run / "summary.json").write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=r"summary\.json"):
        render(run)


@pytest.mark.parametrize(
    "arrays",
    [
        {"painted": np.zeros((6, 10, 2, 8, 8, 1), np.float32), "real": np.zeros(1)},
        {"painted": np.zeros((5, 10, 2, 8, 8, 1), np.uint8), "real": np.zeros(1, np.uint8)},
        {"painted": np.zeros((6, 10, 2, 8, 8, 2), np.uint8), "real": np.zeros(1, np.uint8)},
        {"painted": np.zeros((6, 10, 2, 8, 8, 1), np.uint8), "real": np.zeros(1, np.uint8)},
        {"painted": np.array([None]), "real": np.zeros(1, np.uint8)},
        {"painted": np.zeros(1, np.uint8)},
    ],
)
def test_images_that_do_not_fit_are_an_error(run: Path, arrays: dict[str, Any]) -> None:
    np.savez(run / "samples.npz", **arrays)
    with pytest.raises(RunError, match=r"samples\.npz") as caught:
        render(run)
    assert "samples.npz" in caught.value.hint


def test_damaged_images_are_an_error(run: Path) -> None:
    (run / "samples.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(RunError, match="cannot read images"):
        render(run)


COMPARISON = {
    "schema": 1,
    "data": "digits",
    "alpha": 0.1,
    "seeds": [0, 1, 2],
    "methods": {
        name: {
            "accuracy_mean": mean,
            "accuracy_std": std,
            "accuracy_worst": mean - 0.08,
            "accuracy_absent_classes": absent,
            "accuracy_calibrated": calibrated,
            "accuracy_control": control,
            "upload_bytes_total": size,
            "seconds": seconds,
            "per_seed": [mean - std, mean, mean + std],
        }
        for name, mean, std, absent, calibrated, control, size, seconds in [
            ("local", 0.381, 0.032, 0.013, None, None, 0, 31.0),
            ("fedproto", 0.352, 0.021, 0.02, None, None, 164_000, 44.2),
            ("fedavg", 0.712, 0.041, 0.64, None, None, 9_870_000, 52.0),
            ("fedvtc", 0.921, 0.011, 0.896, 0.985, 0.992, 546_000, 87.0),
        ]
    },
}


def test_comparison_ranks_methods_and_loads_nothing(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text(json.dumps(COMPARISON), encoding="utf-8")
    path = render_comparison(tmp_path)
    page = path.read_text(encoding="utf-8")
    assert path.name == "comparison.html"
    assert re.findall(r'<th scope="row" title="(\w+)"', page) == [
        "fedvtc",
        "fedavg",
        "local",
        "fedproto",
    ]
    assert "<strong>92.1%</strong> ± 1.1" in page
    assert not re.search(r"https?://|<script", page)
    first = path.read_bytes()
    assert render_comparison(tmp_path).read_bytes() == first


def test_comparison_with_gaps_renders_and_damage_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "comparison.json"
    with pytest.raises(RunError, match=r"no comparison\.json"):
        render_comparison(tmp_path)
    gaps = {"schema": 1, "methods": {"<b>": {}, "x": {"per_seed": [{"accuracy_mean": 0.5}, None]}}}
    path.write_text(json.dumps(gaps), encoding="utf-8")
    page = render_comparison(tmp_path).read_text(encoding="utf-8")
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    path.write_text('{"schema": 1, "methods": {}}', encoding="utf-8")
    with pytest.raises(RunError, match="compares no method"):
        render_comparison(tmp_path)


def _python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_draws_without_torch(run: Path) -> None:
    code = (
        "import sys, pathlib; from fedvtc_edge.report import render; "
        "render(pathlib.Path(sys.argv[1])); "
        "print('torch' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    assert _python(code, str(run)) == "False False"


def test_missing_drawing_library_is_named() -> None:
    code = (
        "import sys; sys.modules['jinja2'] = None\n"
        "from fedvtc_edge.errors import MissingExtra\n"
        "try:\n    import fedvtc_edge.report\n"
        "except MissingExtra as error:\n    print(error.hint)"
    )
    assert _python(code) == "pip install 'fedvtc-edge[train]'"

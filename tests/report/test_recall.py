"""Both operating points and recall per class on a page, for two classes and for two hundred."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvtc_edge.errors import RunError
from fedvtc_edge.report import render
from fedvtc_edge.report.recall import NAMED, recall_per_class
from fedvtc_edge.report.wording import operating_points
from fedvtc_edge.runs.records import Summary


def summary_of(classes: int, clients: int = 3, **more: Any) -> dict[str, Any]:
    rng = np.random.default_rng(classes)
    recalls = rng.uniform(0.2, 1.0, (clients, classes)).round(4)
    return {
        "schema": 1,
        "class_names": [f"kind <{label}>" for label in range(classes)],
        "clients": [
            {"id": f"client-{n:02d}", "accuracy": 0.9, "accuracy_home": 0.95, "recall": r.tolist()}
            for n, r in enumerate(recalls)
        ],
        "accuracy_mean": 0.9,
        "accuracy_control": 0.97,
        "accuracy_home_mean": 0.951,
        "accuracy_home_control_mean": 0.962,
        "accuracy_own_distribution_mean": 0.943,
        "recall_mean": recalls.mean(0).round(4).tolist(),
        "recall_control": rng.uniform(0.9, 1.0, classes).round(4).tolist(),
        **more,
    }


def page_of(folder: Path, summary: dict[str, Any]) -> str:
    (folder / "summary.json").write_text(json.dumps(summary))
    return render(folder).read_text("utf-8")


@pytest.mark.parametrize("classes", [2, NAMED, NAMED + 1, 200])
def test_every_class_is_drawn_and_named_where_there_is_room(tmp_path: Path, classes: int) -> None:
    summary = summary_of(classes)
    page = page_of(tmp_path, summary)
    assert page.count("<h3>Per class</h3>") == 1
    chart = recall_per_class(Summary.model_validate(summary))
    assert chart is not None
    named = sum(f"kind &lt;{label}&gt;" in chart.svg for label in range(classes))
    marks = chart.svg.count("<use ")
    assert marks >= 2 * classes  # one for own models and one for statistics only
    if classes <= NAMED:
        assert named == classes
    else:
        assert "sorted by the own models" in chart.caption
        weakest = int(np.argmin(summary["recall_mean"]))
        assert f"kind <{weakest}>" in chart.caption
    assert "kind <" not in page  # escaped


def test_a_class_without_test_images_is_left_out() -> None:
    summary = summary_of(3)
    summary["recall_mean"][1] = summary["recall_control"][1] = None
    for client in summary["clients"]:
        client["recall"][1] = None
    chart = recall_per_class(Summary.model_validate(summary))
    assert chart is not None
    assert "kind &lt;1&gt;" not in chart.svg
    summary["recall_mean"] = [None] * 3
    assert recall_per_class(Summary.model_validate(summary)) is None
    assert recall_per_class(Summary.model_validate(summary | {"recall_mean": None})) is None


def test_both_points_stand_in_a_table_and_unknown_ones_do_not(tmp_path: Path) -> None:
    summary = summary_of(4)
    names = [name for name, _, _ in operating_points(Summary.model_validate(summary))]
    assert names == ["Global", "At home, uniform prior", "At home, own prior"]
    page = page_of(tmp_path, summary)
    for figure in ("94.3%", "95.1%", "96.2%"):
        assert figure in page
    assert "Held-out" not in page
    held = summary | {"accuracy_held_out_mean": 0.88, "accuracy_held_out_local_only_mean": 0.8}
    assert "Held-out own images" in page_of(tmp_path, held)


def test_a_run_that_measured_nothing_has_neither(tmp_path: Path) -> None:
    page = page_of(tmp_path, {"schema": 1, "clients": [{"id": "a"}]})
    assert "Per class" not in page
    assert "Global and at home" not in page


@pytest.mark.parametrize("key", ["recall_mean", "recall_control"])
def test_recalls_of_other_classes_are_damage(tmp_path: Path, key: str) -> None:
    with pytest.raises(RunError, match="recalls of 3 classes, expected 4"):
        page_of(tmp_path, summary_of(4, **{key: [0.5] * 3}))


def test_a_clients_recalls_of_other_classes_are_damage(tmp_path: Path) -> None:
    summary = summary_of(4)
    summary["clients"][1]["recall"] = [0.5]
    with pytest.raises(RunError, match="recalls of 1 classes, expected 4"):
        page_of(tmp_path, summary)


def test_an_unfinished_run_has_what_its_last_round_says(tmp_path: Path) -> None:
    summary = summary_of(4)
    record = {
        "round": 1,
        "accuracy_mean": 0.9,
        "recall_control": summary["recall_control"],
        "clients": summary["clients"],
    }
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    page = render(tmp_path).read_text("utf-8")
    assert "At home, own prior" in page
    assert "<h3>Per class</h3>" in page

"""The page of a comparison: several tables, charts against costs, and no winner by chance."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from fedvtc_edge.report import render_comparison
from fedvtc_edge.report.comparison_charts import _name_beside
from fedvtc_edge.report.comparison_words import bounds, lead, stands
from fedvtc_edge.runs.comparisons import MethodRecord, TableRecord
from fedvtc_edge.runs.intervals import interval


def entry(*seeds: float, **more: Any) -> dict[str, Any]:
    low, high = interval(seeds) or (None, None)
    mean = sum(seeds) / len(seeds)
    known = {"accuracy_mean": mean, "accuracy_low": low, "accuracy_high": high}
    return {**known, "per_seed": list(seeds), **more}


def table(**methods: dict[str, Any]) -> TableRecord:
    records = {name.replace("_", "-"): one for name, one in methods.items()}
    return TableRecord.model_validate(
        {"data": "digits", "alpha": 0.1, "seeds": [0, 1, 2], "methods": records}
    )


def test_a_winner_is_named_only_where_seeds_tell() -> None:
    apart = table(fedvtc=entry(0.90, 0.80, 0.85), local=entry(0.40, 0.31, 0.36))
    assert lead(apart) == "fedvtc is most accurate at 85.0%; over the seeds no other comes as high."
    assert stands(apart) == "fedvtc is above local."
    close = table(
        fedvtc=entry(0.90, 0.80, 0.85),
        fedproto=entry(0.86, 0.84, 0.83),
        local=entry(0.4, 0.3, 0.35),
    )
    assert lead(close) == (
        "fedvtc has the highest mean, 85.0%, but fedvtc and fedproto cannot be told apart over 3 "
        "seeds."
    )
    assert stands(close) == "fedvtc is above local; cannot be told apart from fedproto."
    below = table(fedvtc=entry(0.5, 0.4, 0.45), statistics=entry(0.9, 0.8, 0.84))
    assert stands(below) == "fedvtc is below statistics."


def test_one_seed_is_no_order_and_a_ceiling_no_winner() -> None:
    one = table(fedvtc=entry(0.9), local=entry(0.4))
    assert lead(one) == "One seed says nothing of the spread: fedvtc reaches 90.0% in it."
    assert stands(one) == ""
    pooled = table(centralised=entry(0.95, 0.94, 0.96, ceiling=True), fedvtc=entry(0.9, 0.8, 0.7))
    assert lead(pooled) == "fedvtc reaches 80.0%."
    assert lead(table(fedvtc={"refused": "no"})) == "No method has a result here."


def test_an_interval_stays_within_what_can_be() -> None:
    assert bounds(MethodRecord(accuracy_low=-0.2, accuracy_high=0.514)) == "0.0–51.4"
    assert bounds(MethodRecord()) == "–"


@pytest.fixture
def page(tmp_path: Path) -> str:
    costs = {"upload_bytes_per_client": 2400.0, "seconds": 3.5, "peak_memory_mb": 610.0}
    methods = {
        "fedvtc": entry(0.9, 0.8, **costs, knob=0.3, tuning={"chosen": 0.3}, leakage="leak"),
        "local": entry(0.4, 0.3, upload_bytes_per_client=0.0, seconds=0.5, shares="nothing"),
        "<own>": {"refused": "what that method uploads is <not> noised"},
    }
    methods["fedvtc"] |= {"accuracy_absent_classes": 0.5, "decoder_seconds": 1.5}
    methods["fedvtc"] |= {"leakage_reason": "found", "std": {"accuracy_home": 0.02}}
    methods["fedvtc"] |= {"accuracy_home": 0.91}
    tables = [
        {"data": "digits", "alpha": alpha, "seeds": [0, 1], "samples": 1297, "methods": methods}
        for alpha in (0.1, 1.0)
    ]
    left_out = {"cifar10": "unknown data set 'cifar10'"}
    document = {"schema": 1, "seeds": [0, 1], "tables": tables, "left_out": left_out}
    (tmp_path / "comparison.json").write_text(json.dumps(document), encoding="utf-8")
    path = render_comparison(tmp_path)
    first = path.read_bytes()
    assert render_comparison(tmp_path).read_bytes() == first, "the same bytes"
    return path.read_text(encoding="utf-8")


def test_several_tables_on_one_page(page: str) -> None:
    assert re.findall(r"<summary>([^<]+) <span>1\u202f297 training", page) == [
        "digits, α 0.1",
        "digits, α 1",
    ]
    assert page.count('<tr><th scope="row" title="fedvtc">') == 2
    assert "91.0% ± 2.0" in page
    assert "0.3 (tuned)" in page
    assert page.count("not audited") == 2
    assert "leak<small>found</small>" in page
    assert "<strong>cifar10</strong> was left out: unknown data set" in page
    assert "&lt;own&gt;: what that method uploads is &lt;not&gt; noised" in page
    assert "<own>" not in page
    assert not re.search(r"https?://|<script", page)


def test_a_chart_for_each_question(page: str) -> None:
    for chart in (
        "Accuracy against bytes that a client uploads in the whole run. digits, α 0.1: fedvtc 85",
        "Accuracy against seconds of the whole run. digits",
        "Accuracy on unseen classes. digits, α 0.1: fedvtc 50.0%",
        "Accuracy over the Dirichlet α. digits",
    ):
        assert f'aria-label="{chart}' in page
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids)), "charts share one page"
    assert ">none<" in page, "what uploads nothing has a place on the log scale"


def test_names_never_stand_on_one_another() -> None:
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    axes.set_ylim(0, 100)
    points = [(1.0, 30.0 + index / 10, f"m{index}") for index in range(17)] + [(1.0, 0.0, "low")]
    _name_beside(axes, points)
    places = sorted(float(text.xyann[1]) for text in axes.texts)  # type: ignore[attr-defined]
    gaps = [b - a for a, b in itertools.pairwise(places)]
    assert min(gaps) >= 1 / 18 - 1e-9
    assert places[0] >= -1e-9

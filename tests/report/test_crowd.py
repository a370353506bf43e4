"""A page of more clients than can be shown one by one: spreads, ends, and a plain list."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from test_report import page_of, round_of, summary_of, write_run

from fedvtc_edge.report import crowd
from fedvtc_edge.report.crowd import ENDS, LEVELS, MANY, crowd_of
from fedvtc_edge.report.wording import lead
from fedvtc_edge.runs.records import RoundRecord, Summary

Document = dict[str, Any]


def of(document: Document, rounds: list[Document] | None = None) -> crowd.Crowd:
    found = crowd_of(
        Summary.model_validate(document), [RoundRecord.model_validate(one) for one in rounds or []]
    )
    assert found is not None
    return found


def test_few_clients_are_no_crowd() -> None:
    assert crowd_of(Summary.model_validate(summary_of(MANY)), []) is None
    of(summary_of(MANY + 1))


def test_a_spread_is_the_percentiles_of_those_who_have_the_figure() -> None:
    document = summary_of(201)
    for place, client in enumerate(document["clients"]):
        client["accuracy"] = place / 200 if place % 2 else None
    own = next(spread for spread in of(document).spreads if spread.name == "Own model")
    known = sorted(place / 200 for place in range(1, 201, 2))
    expected = [known[round(level / 100 * (len(known) - 1))] for level in LEVELS]
    assert own.clients == 100
    assert [float(text.rstrip("%")) / 100 for text in own.levels] == pytest.approx(
        expected, abs=0.011
    )


def test_figures_that_nobody_has_are_not_spread() -> None:
    names = {spread.name for spread in of(summary_of(31, anchored=False)).spreads}
    assert "Own model" in names
    assert "Combined" not in names
    assert not any("home" in name for name in names)


def test_the_ends_are_the_least_and_the_most_accurate() -> None:
    document = summary_of(60)
    document["clients"][7]["accuracy"] = None
    found = of(document)
    order = sorted(
        (one for one in document["clients"] if one["accuracy"] is not None),
        key=lambda one: one["accuracy"],
    )
    assert [one.id for one in found.weakest] == [one["id"] for one in order[:ENDS]]
    assert [one.id for one in found.strongest] == [one["id"] for one in order[::-1][:ENDS]]


def test_a_crowd_that_nobody_measured_has_no_ends(tmp_path: Path) -> None:
    document = summary_of(40) | {"accuracy_mean": None, "recall_mean": None}
    for client in document["clients"]:
        client |= dict.fromkeys((key for key in client if key.startswith("accuracy")), None)
    found = of(document)
    assert found.weakest == found.strongest == []
    page = page_of(write_run(tmp_path, document, rounds=range(0)))
    assert page.count("<tr><th>") == 40


def test_few_of_a_crowd_that_were_measured_stand_at_one_end_alone() -> None:
    document = summary_of(40)
    for client in document["clients"][5:]:
        client["accuracy"] = None
    found = of(document)
    ends = [one.id for one in (*found.weakest, *found.strongest)]
    assert len(ends) == len(set(ends)) == 4
    assert lead(Summary.model_validate(document)).startswith("5 of 40 clients took part; their ")


def test_the_list_has_every_client_in_order(tmp_path: Path) -> None:
    document = summary_of(50)
    page = page_of(write_run(tmp_path, document))
    assert re.findall(r"<tr><th>([^<]*)<td>", page) == [one["id"] for one in document["clients"]]
    assert page.count('<th scope="row" title=') == 2 * ENDS
    assert "All clients" in page
    assert "<script" not in page


def test_a_longer_list_is_a_sample_over_the_whole_ranking(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(crowd, "LISTED", 11)
    document = summary_of(41)
    for place, client in enumerate(document["clients"]):
        client["accuracy"] = (place * 17 % 41) / 41
    ids = re.findall(r"<tr><th>([^<]*)<td>", str(of(document).listed))
    ranks = sorted(
        int(one["accuracy"] * 41 + 0.5) for one in document["clients"] if one["id"] in ids
    )
    assert ranks == list(range(0, 41, 4))
    assert ids == [one["id"] for one in document["clients"] if one["id"] in ids]
    page = page_of(write_run(tmp_path, document))
    assert "A sample of the clients" in page
    assert "30 are left out" in page


def test_names_in_the_list_are_only_text() -> None:
    document = summary_of(40)
    document["clients"][3]["id"] = "<svg onload=x>"
    document["clients"][4]["device"] = "<b>"
    listed = str(of(document).listed)
    assert "<svg" not in listed
    assert "<b>" not in listed
    assert "&lt;svg onload=x&gt;" in listed


def test_who_took_part_is_counted_by_client_and_by_round() -> None:
    document = summary_of(40)
    rounds = [round_of(number, document) for number in (1, 2, 3)]
    for number, record in enumerate(rounds):
        # Only who was invited is told of; who came is counted.
        record["clients"] = record["clients"][number : number + 5]
        for place, client in enumerate(record["clients"]):
            client["took_part"] = place > 0
    found = of(document, rounds)
    assert found.took_part == "4 clients took part in each of 3 rounds; 6 took part at least once."
    turns = next(one for one in found.spreads if one.name == "Rounds taken part in")
    assert turns.clients == 40
    assert (turns.levels[0], turns.levels[-1]) == ("0", "3")
    assert of(document).took_part == ""


def test_a_crowd_is_drawn_in_bands_and_histograms(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, summary_of(MANY + 1)))
    assert "Bands: the middle 50 % and 90 % of the clients" in page
    assert "Each thin line is one client" not in page
    assert "31 clients by accuracy" in page
    assert "Clients by cost. Bytes up: 91.0 kB to 112 kB" in page


def test_thousands_of_clients_make_a_light_page(tmp_path: Path) -> None:
    few = len(page_of(write_run(tmp_path, summary_of(100), rounds=range(0))))
    many = len(page_of(write_run(tmp_path, summary_of(1100), rounds=range(0))))
    assert (many - few) / 1000 < 150  # bytes that a client adds: 1.5 MB at 10,000


def test_a_band_is_of_the_clients_that_a_round_measured() -> None:
    drawn: list[Any] = []

    class Axes:
        def fill_between(self, *place: Any, **_: Any) -> None:
            drawn.append(place)

    values = [0.0, 0.25, 0.5, 0.75, 1.0]
    record = {"round": 2, "clients": [{"id": str(v), "accuracy": v} for v in values]}
    empty = {"round": 1, "clients": [{"id": "x"}]}
    crowd.band(Axes(), [RoundRecord.model_validate(one) for one in (empty, record)])  # type: ignore[arg-type]
    assert drawn[1] == ([2], [25.0], [75.0])

"""The benchmark of secure aggregation: what it plays is the protocol, and it says so."""

from __future__ import annotations

import json

import pytest

from fedvtc_edge.benchmarks.studies import masking as benchmark


def test_one_document_with_the_promised_keys(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.STUDY.main(["--json", "--repeats", "1", "--clients", "3", "4"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["clients"] for row in rows] == [3, 4]
    for row in rows:
        for key in (
            *("floor_cpu_s", "cpu_s", "cpu_s_dropouts", "cpu_s_devices"),
            "sum_cpu_s",
            "ratio",
            "ratio_sum",
        ):
            assert row[key] > 0
        assert row["numbers"] == 10 + 10 * 64 + 10 * 64
        assert row["dropouts"] == 1


def test_bytes_are_those_of_the_layouts() -> None:
    row = benchmark.measure(10, 1, size=100)
    head, others, ids = 138, 9, 2
    assert row["bytes_up"] == 5 * head + 160 + 50 * others + 800 + 16 * others + 17 * 10
    assert row["bytes_down"] == 4 * (head + ids) + 160 * 10 + 50 * others + 16 * others


def test_people_get_a_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.STUDY.main(["--repeats", "1", "--clients", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("one sum of 1290 numbers, CPU ms of everybody together")
    assert lines[1].split()[:2] == ["clients", "floor"]
    assert lines[2].split()[0] == "3"

"""What clients say of a round is a stranger's JSON."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvtc_edge.distributed.messages import RequestError
from fedvtc_edge.distributed.server.registry import merged, read_report
from fedvtc_edge.federation.rounds import blank
from fedvtc_edge.runs.records import ACCURACIES

HONEST: dict[str, Any] = {
    **dict.fromkeys(ACCURACIES, 0.5),
    "recall": [0.5, None, 1],
    "accuracy_absent_classes": None,
    "seconds": 1.5,
    "samples_seen": 120,
    "parameters": 1000,
    "peak_memory_mb": 12.5,
}


def test_an_honest_report_is_read_and_entered() -> None:
    account = blank()
    merged(account, read_report(json.dumps(HONEST).encode(), classes=3))
    assert account == blank() | {
        "seconds": 1.5,
        "samples": 120,
        "parameters": 1000,
        "peak_memory_mb": 12.5,
    }
    untold = {"seconds": 2, "parameters": 1000}
    merged(account, read_report(json.dumps(untold).encode(), classes=3))
    assert (account["seconds"], account["samples"], account["peak_memory_mb"]) == (2, 120, 12.5)


def test_what_was_not_asked_for_is_left_out() -> None:
    more = HONEST | {"id": "client-07", "up": -5, "portrait": {}}
    read = read_report(json.dumps(more).encode(), classes=3)
    assert set(read) == set(HONEST)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"text"',
        "7",
        "[" * 100_000,
        '{"seconds": ' + "9" * 5000 + "}",
        '{"a": "' + "x" * 300_000 + '", "seconds": 1}',
        "{}",
    ],
)
def test_no_report_at_all(text: str) -> None:
    with pytest.raises(RequestError, match="its report is none"):
        read_report(text.encode(), classes=3)


@pytest.mark.parametrize("key", HONEST)
@pytest.mark.parametrize(
    "value",
    ["NaN", "Infinity", "-Infinity", "-1e-9", "1e300", "true", '"0.5"', "[0.5]", "{}", "1" * 60],
)
def test_a_number_that_none_can_be(key: str, value: str) -> None:
    text = json.dumps(HONEST | {key: 0}).replace(f'"{key}": 0', f'"{key}": {value}')
    with pytest.raises(RequestError):
        read_report(text.encode(), classes=3)


@pytest.mark.parametrize(
    "recall",
    [
        [0.5, 0.5],
        [0.5] * 4,
        [0.5, 0.5, 1.1],
        [0.5, 0.5, -0.1],
        [0.5, 0.5, True],
        [0.5, 0.5, "1"],
        [[0.5], [0.5], [0.5]],
        {"0": 0.5, "1": 0.5, "2": 0.5},
        "abc",
    ],
)
def test_recalls_that_none_can_be(recall: Any) -> None:
    with pytest.raises(RequestError):
        read_report(json.dumps(HONEST | {"recall": recall}).encode(), classes=3)


def test_ten_thousand_classes_fit_in_a_report() -> None:
    text = json.dumps(HONEST | {"recall": [0.1234] * 10_000})
    assert len(read_report(text.encode(), classes=10_000)["recall"]) == 10_000


def test_not_utf8() -> None:
    with pytest.raises(RequestError):
        read_report(b"\xff\xfe", classes=3)


@given(st.binary(max_size=200))
def test_bytes_are_refused_or_read(data: bytes) -> None:
    with suppress(RequestError):
        assert read_report(data, classes=3)["seconds"] is not None

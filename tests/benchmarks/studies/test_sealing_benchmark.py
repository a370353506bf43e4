"""The price of sealing: every suite and size in a document; no time is asserted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fedvtc_edge.benchmarks.studies import sealing as benchmark


def test_every_suite_and_size(
    capsys: pytest.CaptureFixture[str], strict_json: Callable[[str], Any]
) -> None:
    benchmark.main(["--sizes", "1,2000", "--repeats", "2", "--json"])
    document = strict_json(capsys.readouterr().out)
    rows = document["rows"]
    assert [(row["suite"], row["payload"], row["overhead"]) for row in rows] == [
        ("hybrid", 1, 1214),
        ("hybrid", 2000, 1214),
        ("x25519", 1, 126),
        ("x25519", 2000, 126),
    ]
    assert all(row[key] >= 0 for row in rows for key in ("seal_ms", "unseal_ms", "aes_ms"))
    assert document["repeats"] == 2


def test_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["--sizes", "10", "--repeats", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("hybrid        10 bytes: +1214 bytes, seal ")


@pytest.mark.parametrize("words", [["--sizes", "0"], ["--sizes", "x"], ["--repeats", "0"]])
def test_what_cannot_be_measured_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        benchmark.main(words)
    assert caught.value.code == 2


def test_what_no_envelope_holds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        benchmark.main(["--sizes", str(2**26), "--repeats", "1"])
    assert caught.value.code == 1
    assert "expected at most 67108864" in capsys.readouterr().err

"""TOML and JSON of anybody: one way to read them, and one error."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvtc_edge.config import load_config, read_toml
from fedvtc_edge.documents import DEEPEST, DocumentError, parse_json, parse_toml
from fedvtc_edge.errors import ConfigError

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_what_json_writes_is_read(value: Any) -> None:
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value).encode()) == value


BAD_JSON = {
    "empty": b"",
    "cut": b'{"a": ',
    "not UTF-8": b'"\xff"',
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "a little too deep": b"[" * (DEEPEST + 2) + b"]" * (DEEPEST + 2),
    "objects too deep": b'{"a":' * (DEEPEST + 2) + b"1" + b"}" * (DEEPEST + 2),
    "digits": b"9" * 5000,
    "integer": b'{"a": [18446744073709551616]}',
    "negative integer": b"-18446744073709551616",
    "surrogate": rb'["\ud800"]',
    "surrogate key": rb'{"\udfff": 1}',
    "NaN": b"[NaN]",
    "infinity": b"[-Infinity]",
    "infinite": b"[1e999]",
    "twice": b'{"a": 1, "a": 2}',
}
BAD_TOML = {
    "cut": b"a = ",
    "not UTF-8": b'a = "\xff"',
    "deep": b"a = " + b"[" * 20_000 + b"]" * 20_000,
    "a little too deep": b"a = " + b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1),
    "tables": b"[" + b".".join([b"a"] * (DEEPEST + 2)) + b"]",
    "integer": b"a = 18446744073709551616",
    "hexadecimal": b"a = 0x" + b"f" * 9000,
    "surrogate": rb'a = "\ud800"',
    "twice": b"a = 1\na = 2",
}


@pytest.mark.parametrize("kind", BAD_JSON)
def test_json_that_cannot_be_used_is_refused(kind: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_json(BAD_JSON[kind])
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", BAD_TOML)
def test_toml_that_cannot_be_used_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_toml(BAD_TOML[kind])
    assert str(caught.value).isprintable()
    path = tmp_path / "x.toml"
    path.write_bytes(BAD_TOML[kind])
    for read in (read_toml, load_config):
        with pytest.raises(ConfigError):
            read(path)


def test_words_of_toml_that_are_no_numbers_are_left_to_the_key() -> None:
    assert parse_toml("a = inf") == {"a": float("inf")}


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for parse in (parse_json, parse_toml):
        with suppress(DocumentError):
            parse(data)


@pytest.mark.parametrize(
    "override", ["a." * 40 + "a=1", "method.rounds=" + "[" * 70_000, "seed=0x" + "f" * 5000]
)
def test_settings_of_the_command_line_are_bounded_too(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides=[override])
    assert len(str(caught.value)) < 300

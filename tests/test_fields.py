"""Fields are checked by their types: strictly, as pydantic would, and without it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import pytest

from fedvtc_edge.fields import FieldError, Record, between, inside, matching, sized

Document = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Part(Record):
    size: Annotated[int, between(0, 9)]


@dataclass(frozen=True, kw_only=True)
class Whole(Record):
    name: Annotated[str, matching("[a-z]+"), sized(2, 3)]
    share: Annotated[float, inside(0, 1)] = 0.5
    kind: Literal["a", 1] = "a"
    parts: tuple[Part, ...] = ()
    table: dict[str, int | float | None] | None = None
    on: bool = False
    rest: Any = None


GOOD: Document = {
    "name": "ab",
    "share": 0.25,
    "kind": 1,
    "parts": [{"size": 3}, {"size": 0}],
    "table": {"x": 1, "y": 0.5, "z": None},
    "on": True,
    "rest": [{"x": 1}],
}


def test_a_record_is_the_document_that_it_was_read_from() -> None:
    record = Whole.read(GOOD | {"unknown": 1})
    assert record.document() == GOOD
    assert record.parts == (Part(size=3), Part(size=0))
    assert Whole.read(record.document()) == record
    assert Whole(name="ab") == Whole.read({"name": "ab"})
    assert json.loads(json.dumps(record.document())) == GOOD


def test_a_whole_number_is_a_number_and_kept_as_one() -> None:
    read = Whole.read(GOOD | {"table": {"x": 4}})
    assert read.table == {"x": 4}
    assert type((read.table or {})["x"]) is int  # where both are allowed, what was given
    with pytest.raises(FieldError, match=r"share: 1\.0, expected above 0 and below 1"):
        Whole.read(GOOD | {"share": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "name: 3, expected text"),
        ({"name": "A"}, "name: 'A', expected text like"),
        ({"name": "a\n"}, "name: 'a.n', expected text like"),
        ({"name": "abcd"}, "name: 'abcd', expected 2 to 3 of them"),
        ({"share": True}, "share: True, expected a number"),
        ({"share": float("nan")}, "share: nan, expected a number"),
        ({"share": 0}, "share: 0.0, expected above 0 and below 1"),
        ({"kind": True}, "kind: True, expected 'a' or 1"),
        ({"kind": 1.0}, "kind: 1.0, expected 'a' or 1"),
        ({"kind": ["a"]}, r"kind: \['a'\], expected 'a' or 1"),
        ({"parts": [{"size": 3}, {"size": 10}]}, "parts.1.size: 10, expected 0 to 9"),
        ({"parts": [{"size": -1}]}, "parts.0.size: -1, expected 0 to 9"),
        ({"parts": [{"size": True}]}, "parts.0.size: True, expected a whole number"),
        ({"parts": [{}]}, "parts.0.size: missing"),
        ({"parts": [[]]}, r"parts.0: \[\], expected an object"),
        ({"parts": {"size": 1}}, "parts: .*, expected a list"),
        ({"table": {"x": "y"}}, "table.x: 'y', expected a whole number or a number"),
        ({"table": {"x": True}}, "table.x: True, expected a whole number or a number"),
        ({"table": []}, r"table: \[\], expected an object"),
        ({"on": 1}, "on: 1, expected true or false"),
        ({"on": None}, "on: None, expected true or false"),
    ],
)
def test_what_a_type_does_not_allow_is_refused_by_its_place(change: Document, message: str) -> None:
    with pytest.raises(FieldError, match=f"^{message}"):
        Whole.read(GOOD | change)


def test_no_record_can_be_made_or_changed_into_a_wrong_one() -> None:
    with pytest.raises(FieldError, match="size: 10"):
        Part(size=10)
    with pytest.raises(FieldError, match="size: 'x'"):
        replace(Part(size=1), size="x")  # type: ignore[arg-type]
    with pytest.raises(FieldError, match="expected an object"):
        Whole.read([])
    with pytest.raises(FieldError, match="name: missing"):
        Whole.read({})


@pytest.mark.parametrize("hint", [set[int], list[int], complex])
def test_a_type_that_cannot_be_checked_is_the_programmers_mistake(hint: Any) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Odd(Record):
        value: int

    Odd.__annotations__["value"] = hint
    with pytest.raises(TypeError, match="no check for"):
        Odd(value=1)

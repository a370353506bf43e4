"""Fields are checked by their types: strictly, as pydantic would, and without it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError
from strict_manifest import Types

from fedvtc_edge.export.fields import FieldError, Record, between, inside, matching, sized
from fedvtc_edge.export.manifest import Manifest

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


# ---------------------------------------------------------------- the slow twin

PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-2, 300)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "N", "fp32", "int8", "uint8", "grey", "a" * 64, "0" * 64, "x" * 201])
)


@pytest.fixture(scope="module")
def whole(document: Callable[..., Document]) -> Document:
    """A manifest in which every part is there."""
    made = document(
        prior=[0.25, 0.25, 0.5],
        extractor={"name": "n", "sha256": None, "licence": "MIT", "origin": None, "file": None},
        noise={
            "algorithm": "numpy Generator(Philox(key=seed)).standard_normal([N, p], float32)",
            "golden": {"seed": 1, "count": 2, "sha256": "0" * 64},
        },
    )
    made["privacy"] |= {"relation": "replace", "covers": "all", "covers_models": True}
    return made


@hypothesis_settings(deadline=None, max_examples=300)
@given(st.data())
def test_types_are_as_strict_as_pydantics(whole: Document, data: st.DataObject) -> None:
    """One value changed anywhere: pydantic's types refuse what ours refuse, and nothing else."""
    made = copy.deepcopy(whole)
    place: Any = made
    while True:
        keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    if isinstance(place, dict) and data.draw(st.booleans()):
        del place[key]
    else:
        place[key] = data.draw(
            PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(st.text(max_size=3), PLAIN)
        )
    expected, first = twin(made)
    try:
        ours: Any = Manifest.read(made).document()
    except FieldError as error:
        ours = str(error)
    except ValueError:  # of what must hold between the parts; test_manifest has each
        ours = expected
    if expected is None:
        assert isinstance(ours, str)
        assert ours.startswith(first)
    elif ours != expected:  # stricter: two kinds of names, and True, which pydantic takes for 1
        assert any(words in ours for words in ("no class name", "no file of", "True, expected 1"))


def twin(made: Document) -> tuple[Document | None, str]:
    """What pydantic reads, or None and the key that it finds wrong first."""
    try:
        return Types.model_validate(made).model_dump(mode="json", by_alias=True), ""
    except ValidationError as error:
        return None, str(error.errors()[0]["loc"][0])


def test_the_twin_takes_the_whole_document(whole: Document) -> None:
    assert Manifest.read(whole).document() == whole
    assert Types.model_validate(whole).model_dump(mode="json", by_alias=True) == whole


def test_reading_a_manifest_imports_no_pydantic() -> None:
    code = (
        "import sys; from fedvtc_edge.export.manifest import Manifest;"
        "from fedvtc_edge.export.verification import verify;"
        "print({'pydantic', 'cryptography', 'click', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"

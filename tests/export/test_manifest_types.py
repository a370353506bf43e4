"""The types of a manifest beside the same types in pydantic, which a device does without."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError
from strict_manifest import Types

from fedvtc_edge.export.manifest import Manifest
from fedvtc_edge.fields import FieldError

Document = dict[str, Any]

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

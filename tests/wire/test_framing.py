"""What stands before the numbers: the same bytes as the library's, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.numpy import save

from fedvtc_edge.wire import WireError, context_of
from fedvtc_edge.wire.context import Context
from fedvtc_edge.wire.framing import HEADER, Form, MomentKind, Numbers, Payload, fitting

CONTEXT = Context("0" * 32, 7, "client-01", "decoder")

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
kinds = st.sampled_from([np.float32, np.float16, np.int64])
names = st.text(st.characters(codec="utf-8", exclude_characters="\x7f"), max_size=6)


def form(tensors: dict[str, Any]) -> Form:
    return Form(Payload.WEIGHTS, Numbers.FLOAT32, MomentKind.NONE, 0, 5, tensors)


@hypothesis_settings(deadline=None, max_examples=200)
@given(st.dictionaries(names, st.tuples(kinds, shapes), min_size=1, max_size=5))
def test_the_body_is_what_the_library_writes(tensors: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    arrays = {
        name: rng.integers(-9, 9, shape).astype(kind) for name, (kind, shape) in tensors.items()
    }
    mine = form(tensors)
    data = mine.write(arrays, CONTEXT)
    assert data[128:] == save(
        {k: np.ascontiguousarray(v).reshape(v.shape) for k, v in arrays.items()}
    )
    assert len(data) == mine.size
    for name, value in mine.read(data, CONTEXT, "-").items():
        np.testing.assert_array_equal(value, arrays[name])
        assert value.dtype == arrays[name].dtype


def test_the_header_has_128_bytes() -> None:
    assert HEADER.size == 128


def test_the_form_is_chosen_by_what_was_agreed_not_by_what_is_said() -> None:
    one, two = form({"a": (np.float32, (2,))}), form({"a": (np.float32, (3,))})
    data = two.write({"a": np.ones(3)}, None)
    assert fitting([one, two], data, "-") is two
    with pytest.raises(WireError, match=r"204 bytes, expected 200"):
        fitting([one], data, "-")
    # Of the right length, but of another form.
    other = Form(Payload.RELEASE, Numbers.INT64, MomentKind.NONE, 0, 5, two.tensors)
    with pytest.raises(WireError, match="header: payload 3, expected 2"):
        fitting([other], data, "-")
    with pytest.raises(WireError, match="header: its reserved byte is not zero"):
        fitting([two], data[:11] + b"\1" + data[12:], "-")


def test_whose_an_upload_says_it_is() -> None:
    plain = form({"a": (np.float32, (1,))})
    assert context_of(plain.write({"a": np.ones(1)}, CONTEXT)) == CONTEXT
    assert context_of(plain.write({"a": np.ones(1)}, None)) is None
    data = plain.write({"a": np.ones(1)}, CONTEXT)
    for bad in (b"", data[:127], b"X" + data[1:], data[:48] + b"\0" + data[49:]):
        with pytest.raises(WireError):
            context_of(bad)

import datetime
import json
import math

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_jax.data.sources import record_text

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_a_record_comes_back_exactly_with_its_fields_in_order(fields):
    found = json.loads(record_text(fields))
    # repr tells 1 from 1.0 and from True, and 0.0 from -0.0.
    assert repr(found) == repr(fields)


def test_the_form_is_canonical():
    assert record_text({"b": "é\n", "a": [1, None, 0.1]}) == '{"b":"é\\n","a":[1,null,0.1]}'


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.int64(2**53 + 1), 2**53 + 1),
        (np.float32(0.1), float(np.float32(0.1))),
        (np.float64(0.1), 0.1),
        (np.bool_(True), True),
        (np.array([[1, 2], [3, 4]], np.uint8), [[1, 2], [3, 4]]),
        (np.array(["é".encode(), b"x"], object), ["é", "x"]),
        ("é".encode(), "é"),
        ((1, {"x": np.arange(2)}), [1, {"x": [0, 1]}]),
        (pyarrow.scalar(7), 7),
        (pyarrow.array([["a"], None]), [["a"], None]),
        (datetime.datetime(2020, 1, 2, 3, 4), "2020-01-02T03:04:00"),
    ],
)
def test_arrays_scalars_and_bytes_become_plain_values(value, plain):
    assert json.loads(record_text({"x": value})) == {"x": plain}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (math.nan, "not JSON compliant"),
        ([{"deep": -math.inf}], "not JSON compliant"),
        (np.float32(math.nan), "not JSON compliant"),
        ({1, 2}, "it holds a set"),
        (np.complex64(1), "it holds a complex"),
    ],
)
def test_what_json_cannot_hold_is_refused_by_field_and_place(value, reason):
    with pytest.raises(ValueError, match=f"a.x:3: field 'bad' has no JSON: .*{reason}"):
        record_text({"fine": 1, "bad": value}, "a.x:3")


def test_nesting_deeper_than_python_writes_is_refused():
    value = []
    for _ in range(10**5):
        value = [value]
    with pytest.raises(ValueError, match="field 'deep' has no JSON: maximum recursion depth"):
        record_text({"deep": value})

"""JSON as the server reads it: numbers within range as they are, everything else refused, on the quick way or not."""

from __future__ import annotations

import json

import pytest

from gymcast.server.handlers.common import parse_json
from gymcast.server.problems import Problem

_IN_RANGE = [
    "0",
    "-0.0",
    "1e99",
    "1E+99",
    "1.5e-400",
    "9223372036854775807",
    "-9223372036854775807",
    "123456789012345678",
    "0.1234567890123456789012345",
    "1234567890123456789012345.5",
    "1e308",
    "1e0000000000000000000",
]
_OUT_OF_RANGE = [
    "1e309",
    "-1E+999",
    "1.5e00400",
    "9" * 400 + ".0",
    "9223372036854775808",
    "9" * 5000,
    "NaN",
    "-Infinity",
]


@pytest.mark.parametrize("text", _IN_RANGE)
def test_numbers_in_range_are_read_as_they_are(text: str) -> None:
    found = parse_json(f'{{"a": [{text}], "1e999": "NaN"}}'.encode())
    assert found == {"a": [json.loads(text)], "1e999": "NaN"}
    assert type(found["a"][0]) is type(json.loads(text))


@pytest.mark.parametrize("text", _OUT_OF_RANGE)
@pytest.mark.parametrize("place", ["{}", "[[{}]]", '{{"a":{},"b":1}}', "[1,{}]"])
def test_numbers_out_of_range_are_refused(text: str, place: str) -> None:
    with pytest.raises(Problem) as refused:
        parse_json(place.format(text).encode())
    assert refused.value.status == 422

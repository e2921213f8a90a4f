"""JSON of others."""

from __future__ import annotations

import pytest

from glmd_runtime.files.documents import parse_json


@pytest.mark.parametrize(
    "content", ['"\\ud83d\\ude00"', b'"\\uD83D\\uDE00"', '"\U0001f600"', '"\U0001f600"'.encode()]
)
def test_a_character_of_two_halves_is_one(content: str | bytes) -> None:
    assert parse_json(content) == "\U0001f600"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_every_encoding_of_json_is_read(encoding: str) -> None:
    assert parse_json('{"a": ["ä", 1]}'.encode(encoding)) == {"a": ["ä", 1]}


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "NaN", "[-Infinity]", "[" * 100_000, "1" * 5000,
        '"\\ud800"', '{"\\uDC00": 1}', '["\\ude00\\ud83d"]', '"\ud800"', b'"\xed\xa0\x80"', b'"\xff"',
    ],
)
def test_what_is_no_json_is_one_kind_of_error(content: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(content)

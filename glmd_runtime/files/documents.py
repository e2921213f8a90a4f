"""JSON that others wrote: within limits, and whatever is wrong with it is one kind of error."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20  # bytes that are read at a time
MOST_BYTES = 64 << 20  # of a document, unless its reader knows better
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


def parse_json(content: str | bytes) -> Any:
    """The value of a text.

    Raises: ValueError, for what is not JSON (NaN and Infinity are not), for a number of thousands of digits, for what
        is nested deeper than Python can follow, and for half a character, which no file or terminal can be given.
    """
    text = content if isinstance(content, str) else content.decode(json.detect_encoding(content))
    try:
        value = json.loads(text, parse_constant=_refuse)
        if _SURROGATE.search(text):  # two make a character, one does not
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def read_json(path: Path, most: int = MOST_BYTES) -> Any:
    """The value in a file. Raises: OSError; ValueError as `parse_json`, and for more than `most` bytes."""
    return parse_json(read_bytes(path, most))


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """A file's content. Raises: OSError; ValueError for more than `most` bytes, of which no more are read."""
    content = bytearray()  # as bytes, every block would be copied once more for each that follows
    with path.open("rb") as file:
        while block := file.read(_BLOCK):  # of all at once, Python would first make room for the most
            content += block
            if len(content) > most:
                raise ValueError(f"it has more than {most} bytes")
    return bytes(content)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")

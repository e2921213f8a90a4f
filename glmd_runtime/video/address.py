"""The addresses of sources: what this project reads of them, what the camera gets, and what people may see."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from glmd_runtime.errors import UsageError
from glmd_runtime.thermal import Radiometry

# Cameras that want a password in the path call it one of these.
_SECRETS = re.compile(r"\b(user|username|usr|password|passwd|pwd|pass|token|auth|key)=[^&/?#]*", re.I)

# What was meant as a camera's address, with a slip of the finger.
_MISTYPED = re.compile(r"(rtsps?|udp)[:;/]", re.I)

_HIDDEN = "://***"


@dataclass(frozen=True)
class Address:
    """One source: where it is, and how it is to be read.

    location  what is opened: a path, or a URL with its password and without the keys that are ours
    name      the same for people, without user, password and query
    values    the keys that were given, as values
    """

    location: str = field(repr=False)
    name: str
    values: dict[str, Any]


def parse_address(uri: str, keys: tuple[str, ...]) -> Address:
    """Take the keys of ours out of `uri`'s query. A URL's other keys are the camera's; a path has no others.

    Raises: UsageError for a value that is none, a path's unknown key, or a password of which the end cannot be told.
    """
    if redacted(uri).endswith(_HIDDEN):
        raise UsageError(
            f"Expected an address with no @ but the one before the host; got {redacted(uri)}. In user, password, path "
            "and query write @ as %40, and in a password / as %2F, ? as %3F, # as %23."
        )
    if "\0" in uri:
        raise UsageError(f"Expected an address without the character NUL; got {redacted(uri)!r}. Remove it.")
    base, mark, query = uri.partition("?") if "://" in uri else _split_path(uri)
    values: dict[str, Any] = {}
    others = []
    for item in filter(None, query.split("&")):
        key, _, text = item.partition("=")
        if key in keys:
            values[key] = _read(key, unquote(text))
        elif "://" in uri:
            others.append(item)
        else:
            shown = redacted(uri)
            raise UsageError(f"Expected the keys {', '.join(keys)}; got {key!r} in {shown!r}. Correct or remove it.")
    location = base + mark + "&".join(others) if others else base
    return Address(location, redacted(uri), values)


def redacted(uri: str) -> str:
    """`uri` as it may be shown: without user, password and, of a URL, the query, where cameras want them too.

    What is no URL may be one that was mistyped: of it is shown what cannot hold a password.
    """
    scheme, mark, rest = uri.partition("://")
    if not mark:
        mistyped = _MISTYPED.match(uri)
        return f"{mistyped[0]}***" if mistyped else _SECRETS.sub(r"\1=***", re.sub(r"^.*@", "***@", uri, flags=re.S))
    if scheme == "sim":
        return uri
    authority, path, others = re.match(r"([^/?#]*)([^?#]*)(.*)", rest, re.S).groups()  # type: ignore[union-attr]
    if "@" in path + others:  # a password that holds / or ? or #: where it ends cannot be told
        return f"{scheme}{_HIDDEN}"
    return f"{scheme}://{authority.rpartition('@')[2]}" + _SECRETS.sub(r"\1=***", path)


def _split_path(uri: str) -> tuple[str, str, str]:
    """A path's query begins at its last ?key=; another ? is part of a name or a pattern."""
    found = re.search(r"\?(?=\w+=[^?]*$)", uri)
    return (uri[: found.start()], "?", uri[found.end() :]) if found else (uri, "", "")


def _read(key: str, text: str) -> Any:
    read, example = _VALUES[key]
    try:
        return read(text)
    except ValueError:
        raise UsageError(f"Expected {key} like {key}={example}; got {key}={text}. Correct it.") from None


def _radiometry(text: str) -> Radiometry:
    gain, offset = (float(number) for number in text.split(","))
    return Radiometry(gain, offset)


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError
    return number


def _size(text: str) -> tuple[int, int]:
    width, height = (int(side) for side in text.lower().split("x"))
    return height, width


def _transport(text: str) -> str:
    if text not in ("tcp", "udp"):
        raise ValueError
    return text


def _format(text: str) -> str:
    if text not in ("Y16", "GREY"):
        raise ValueError
    return text


_VALUES: dict[str, tuple[Callable[[str], Any], str]] = {
    "celsius": (_radiometry, "0.01,-273.15"),
    "fps": (_positive, "9"),
    "timeout": (_positive, "5"),
    "transport": (_transport, "tcp (or udp)"),
    "format": (_format, "Y16 (or GREY)"),
    "size": (_size, "640x512"),
}

"""YAML and XML that others wrote: within limits, and whatever is wrong with them is one kind of error."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import yaml

from glmd_runtime.files.documents import read_bytes

MOST_BYTES = 1 << 20  # of a file; a configuration has a few thousand
XML_BYTES = 8 << 20  # the boxes of a picture, of some hundred each
_MOST_DEPTH = 100  # of elements in each other; Pascal VOC has five
_MOST_ALIASES = 10  # references to another place of the text: each can hold all that the ones before it hold, twice


class _Loader(yaml.SafeLoader):
    """Plain values alone, few aliases, and none within what it stands for."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._aliases, self._whole = 0, set[int]()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if is_alias and id(node) not in self._whole:
            raise ValueError("an alias (*name) stands within what it stands for")
        self._aliases += is_alias
        if self._aliases > _MOST_ALIASES:
            raise ValueError(f"it has more than {_MOST_ALIASES} aliases (*name)")
        self._whole.add(id(node))
        return node


def parse_yaml(text: str | bytes) -> Any:
    """The value of a text. Raises: ValueError, in one line, for whatever is no YAML of plain values."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:  # of values that are not what a tag says
        raise ValueError(f"a value is not what its tag says ({type(error).__name__})") from error


def read_yaml(path: Path) -> Any:
    """The value in a file. Raises: OSError; ValueError as `parse_yaml`, and for more than MOST_BYTES."""
    return parse_yaml(read_bytes(path, MOST_BYTES))


def parse_xml(content: bytes) -> Element:
    """The root of a text, whose reader has bounded its size.

    Raises: ValueError for what is no XML, declares a document type or entities, or is nested deeper than _MOST_DEPTH.
    """
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import iterparse

    parsed, depth = iterparse(BytesIO(content), ("start", "end"), forbid_dtd=True), 0
    try:
        for event, _ in parsed:
            depth += 1 if event == "start" else -1
            if depth > _MOST_DEPTH:
                raise ValueError("it is nested too deeply")
    except DefusedXmlException as error:
        raise ValueError("it declares a document type or entities, which are not read; remove them") from error
    except (ParseError, LookupError) as error:  # the second of an encoding that is none
        raise ValueError(str(error)) from error
    return parsed.root

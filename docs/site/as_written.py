"""Docstrings on the site as they are written: a sentence, then columns and lists whose line breaks mean something."""

from __future__ import annotations

from typing import Any

import griffe


class AsWritten(griffe.Extension):
    """All after a docstring's first paragraph is a block of text."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            first, _, rest = obj.docstring.value.partition("\n\n")
            obj.docstring.value = f"{first}\n\n```text\n{rest}\n```" if rest else first

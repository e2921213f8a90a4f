"""What mkdocs needs beside docs/*.md: other files of the repository that pages link to, and references from the code.

Pages are written for the forge, where `../models/thermal_lite0.md` leads somewhere. The site has only what lies below
docs/, so every file that is linked is taken along, as a page or as it is, and the links are put right.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS, HOME = ROOT / "docs", ROOT / "README.md"
LINK = re.compile(r"\[((?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\(([^)#:\s]+)(#[^)\s]*)?\)")

spec = importlib.util.spec_from_file_location("references", Path(__file__).with_name("references.py"))
assert spec and spec.loader
references = importlib.util.module_from_spec(spec)
spec.loader.exec_module(references)


def on_files(files: Files, *, config: Any) -> Files:
    """Take along the README as the first page, what pages link to, what those link to, and the two references."""
    for path in sorted(_taken_along()):
        files.append(File.generated(config, site_path(path), abs_src_path=str(path)))
    files.append(File.generated(config, "commands.md", content=references.commands()))
    files.append(File.generated(config, "api.md", content=references.api()))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Links as they lead on the site; of a link to a folder the text, as a site has no listing of it."""
    source = Path(page.file.abs_src_path or DOCS / page.file.src_uri)

    def on_site(link: re.Match[str]) -> str:
        text, target, anchor = link.groups()
        path = (source.parent / target).resolve()
        if path.is_dir():
            return text
        there = os.path.relpath(site_path(path), Path(page.file.src_uri).parent) if path.is_file() else target
        return f"[{LINK.sub(on_site, text)}]({there}{anchor or ''})"

    return LINK.sub(on_site, markdown)


def site_path(path: Path) -> str:
    """Where a file of the repository is on the site: docs/ is its root, and the README its first page."""
    if path == HOME:
        return "index.md"
    return path.relative_to(DOCS if path.is_relative_to(DOCS) else ROOT).as_posix()


def _taken_along() -> set[Path]:
    """Files outside docs/ that can be reached from its pages and the README by links."""
    found, new = {HOME}, {HOME, *DOCS.glob("*.md")}
    while new:
        new = {path for page in new if page.suffix == ".md" for path in _linked(page)} - found
        found |= new
    return {path for path in found if not path.is_relative_to(DOCS)}


def _linked(page: Path) -> set[Path]:
    links = {(page.parent / target).resolve() for _, target, _ in LINK.findall(page.read_text(encoding="utf-8"))}
    return {path for path in links if path.is_file() and path.is_relative_to(ROOT)}

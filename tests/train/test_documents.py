"""YAML and XML of others: plain values, within limits, and one kind of error for all else."""

from __future__ import annotations

from pathlib import Path

import pytest

from glmd_runtime.errors import DatasetError, UsageError
from glmd_runtime.files.documents import read_json
from glmd_train import documents
from glmd_train.config import load_config
from glmd_train.data.coco import read_coco
from glmd_train.data.formats import read_labels, voc
from glmd_train.documents import parse_xml, parse_yaml
from glmd_train.official.configuration import is_published_yaml, translate


def test_plain_values_and_a_few_aliases() -> None:
    assert parse_yaml("size: &hw [512, 640]\nother: *hw\nno:") == {"size": [512, 640], "other": [512, 640], False: None}


PAIRS = list(zip("abcdefgh", "bcdefghi", strict=True))
LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in PAIRS)
MERGES = "a: &a {k: 1}\n" + "".join(f"{b}: &{b}\n  <<: [*{a}, *{a}]\n" for a, b in PAIRS)
TRAPS = {
    LAUGHS: "more than 10 aliases",
    MERGES: "more than 10 aliases",
    "&a [*a]": "stands within what it stands for",
    "[" * 2000: "nested too deeply",
    "- " * 2000: "nested too deeply",
    "!!python/object/apply:os.system ['touch x']": "could not determine a constructor",
    "a: " + "1" * 5000: "4300 digits",
    "a: 2001-99-99": "month",
    "!!int ''": "not what its tag says",
    "!!bool x": "not what its tag says",
    "!!timestamp x": "not what its tag says",
    "\0": "not allowed",
    "a: b: c": "not allowed here",
}


@pytest.mark.parametrize("text", TRAPS, ids=range(len(TRAPS)))
def test_what_is_no_plain_yaml(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=TRAPS[text]):
        parse_yaml(text)
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"a\.yaml is not valid YAML"):
        load_config(tmp_path / "a.yaml")
    with pytest.raises(UsageError, match=r"a\.yaml is not valid YAML"):
        translate(tmp_path / "a.yaml")
    assert not is_published_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(("text", "says"), {
    "<a>" * 200 + "</a>" * 200: "nested too deeply",
    "<a>" * 300_000: "nested too deeply",
    "<a><b></a>": "mismatched tag",
    "": "no element found",
    "<!DOCTYPE a><a/>": "document type",
    '<?xml version="1.0" encoding="utf-77"?><a/>': "unknown encoding",
}.items())
def test_what_is_no_plain_xml(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_xml(text.encode())


def test_xml_of_any_encoding_is_whole() -> None:
    for encoding in ("utf-8", "utf-16"):
        root = parse_xml("<a><b>é</b><c/></a>".encode(encoding))
        assert root.tag == "a" and [(one.tag, one.text) for one in root] == [("b", "é"), ("c", None)]


def test_a_label_in_xml_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voc, "XML_BYTES", 1000)
    (tmp_path / "a.xml").write_text("<annotation>" + " " * 1000 + "</annotation>")
    with pytest.raises(DatasetError, match=r"a\.xml .*it has more than 1000 bytes"):
        read_labels(tmp_path / "a.xml", None)


def test_a_file_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MOST_BYTES", 100)
    (tmp_path / "a.yaml").write_text("#" * 101)
    with pytest.raises(UsageError, match="it has more than 100 bytes"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"images": ' + "1" * 5000 + "}", '{"images": NaN}', "\0", "\ud800"])
def test_what_is_no_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DatasetError, match=r"a\.json is not (JSON|a COCO)"):
        read_coco(tmp_path / "a.json")


def test_a_small_file_is_read_whatever_the_most_would_be(tmp_path: Path) -> None:
    """No room is made for the most."""
    (tmp_path / "a.json").write_text("[1]")
    assert read_json(tmp_path / "a.json", most=1 << 62) == [1]

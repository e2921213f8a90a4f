"""What the documents promise is run: Python snippets, commands, links, figures."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from benchmarks import readme
from benchmarks.common import between_marks
from glmd_runtime.bundle import open_bundle
from glmd_runtime.calibration import CalibrationSpec
from glmd_runtime.enroll import EnrolledSpec
from glmd_runtime.manifest import Manifest
from glmd_runtime.plans.plan import PlanRecord
from glmd_runtime.postprocess import PostprocessSpec
from glmd_runtime.preprocess import PreprocessSpec
from glmd_runtime.thermal import Intensity
from glmd_runtime.tuned import TunedSpec
from glmd_runtime.verify_report import VerifyRow
from tests.conftest import skip_unless

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")] + sorted(
    p for folder in ("docs", "models") for p in (ROOT / folder).glob("*.md")
)
EVERYTHING = "".join(document.read_text() for document in DOCUMENTS)
spec = spec_from_file_location("references", ROOT / "docs/site/references.py")
assert spec and spec.loader
references = module_from_spec(spec)
spec.loader.exec_module(references)
PARSERS = references.parsers()


def snippets(text: str) -> list[str]:
    """Blocks of Python but those that are marked, with the reason, as not to be run."""
    return re.findall(r"(?<!-->\n)```python\n(.*?)```", text, re.S)


@pytest.mark.parametrize("snippet", snippets(README), ids=lambda s: s.splitlines()[0])
def test_readme_snippets_run_unchanged(snippet: str) -> None:
    result = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "'name': 'person'" in result.stdout or "'name': 'car'" in result.stdout  # the model sees the simulated scene


def test_the_first_snippet_is_five_lines() -> None:
    assert len([line for line in snippets(README)[0].splitlines() if line]) <= 5


@pytest.mark.parametrize(
    "document", [d for d in DOCUMENTS[1:] if snippets(d.read_text())], ids=lambda p: str(p.relative_to(ROOT))
)
def test_python_in_documents_runs(document: Path, tmp_path: Path) -> None:
    """One block after the other, as a reader would, in a folder that has nothing but the models."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    code = "\n".join(snippets(document.read_text()))
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_what_is_not_run_says_why() -> None:
    marks = re.findall(r"(.*)\n```python\n", EVERYTHING)
    reasons = [mark for mark in marks if mark.endswith("-->")]
    assert reasons and all(re.fullmatch(r"<!-- not run: \w[\w ]+ -->", mark) for mark in reasons), reasons


def in_blocks(document: Path) -> list[str]:
    """Commands of this SDK in blocks of code of a document."""
    return sh_commands(document.read_text())


def installs(text: str) -> set[str]:
    """The extras that lines of blocks install."""
    return {extra for found in re.findall(r"(?m)^pip install '\.\[(.+?)\]'", text) for extra in found.split(",")}


def sh_commands(text: str) -> list[str]:
    """Whole: a line may go on in the next, and begin with others."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    lines = [line for kind, block in blocks if kind in ("", "sh") for line in block.replace("\\\n", " ").splitlines()]
    parts = [part.strip() for line in lines for part in re.split(r"&& |\| | > | # ", line)]
    return [part for part in parts if part.split(" ")[0] in PARSERS]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_in_documents_parse(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in in_blocks(document):
        command, *words = shlex.split(line, comments=True)
        try:
            PARSERS[command].parse_args(words)
        except SystemExit:
            pytest.fail(f"{line}: {capsys.readouterr().err}")


# What a command in a block of code asks for, and the extras any of which brings it.
NEEDS = (
    (r"glmd-train ", {"train", "export", "all"}),
    (r"glmd-(export|tune) ", {"export", "all"}),
    (r"glmd-run .*(--save|--record|\.mp4|rtsp://|udp://)", {"video", "all"}),
    (r"glmd-run .*--track", {"track", "all"}),
    (r"glmd-run .*--metrics", {"live", "all"}),
    (r"glmd-.*tensorrt_rtx", {"rtx"}),
)


def parts(document: Path) -> list[str]:
    """What one reader follows: a page from its beginning, but of devices.md the section of his device."""
    return re.split(r"(?m)^(?=## )", document.read_text()) if document.name == "devices.md" else [document.read_text()]


FOLLOWED = [(f"{path.stem} {n}", part) for path in DOCUMENTS for n, part in enumerate(parts(path)) if installs(part)]


@pytest.mark.parametrize("part", [part for _, part in FOLLOWED], ids=[name for name, _ in FOLLOWED])
def test_what_a_page_installs_is_what_its_commands_need(part: str) -> None:
    for line in sh_commands(part):
        for pattern, extras in NEEDS:
            assert not re.match(pattern, line) or extras & installs(part), line


def test_a_page_of_devices_that_lacks_an_extra_would_be_found() -> None:
    rtx = next(part for _, part in FOLLOWED if part.startswith("## GeForce"))
    assert installs(rtx) == {"export", "rtx", "video"}
    with pytest.raises(AssertionError, match=r"clip\.mp4"):
        test_what_a_page_installs_is_what_its_commands_need(rtx.replace(",video", ""))


@pytest.mark.parametrize("command", PARSERS)
def test_the_readme_shows_every_command(command: str) -> None:
    assert any(line.split(" ")[0] == command for line in in_blocks(ROOT / "README.md"))


def test_options_in_sentences_exist() -> None:
    """A part of a command in `...` need not be complete, but its options are those of the command."""
    for command, *words in (found.split() for found in re.findall(r"`(glmd-[a-z]+ [^`]*)`", EVERYTHING)):
        parser = PARSERS[command]
        while words and (below := references.subcommands(parser)) and words[0] in below:
            parser = below[words.pop(0)]
        known = {option for action in parser._actions for option in action.option_strings}
        below = references.subcommands(parser)
        if not below:
            assert not [word for word in words if word.startswith("--") and word not in known], f"{command} {words}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+?)\)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_what_security_promises_is_tested_where_it_says() -> None:
    from tests.trust.construction import PARTS

    text = (ROOT / "SECURITY.md").read_text()
    assert set(re.findall(r"`(construction\.\w+)`", text)) == {part.name for part in PARTS}
    named = set(re.findall(r"\b(test_\w+\.py)", text))
    assert named and named <= {path.name for path in (ROOT / "tests").rglob("test_*.py")}


@pytest.mark.parametrize("document", readme.tables(), ids=lambda path: path.name)
def test_figures_in_documents_are_those_of_the_committed_results(document: Path) -> None:
    text = document.read_text()
    for name, lines in readme.tables()[document].items():
        text = between_marks(text, name, "\n".join(lines))
    assert text == document.read_text(), "Make them with python -m benchmarks.readme"


BENCHMARKS = sorted(set(re.findall(r"python -m (benchmarks\.\w+)", EVERYTHING)))


def test_benchmarks_that_documents_name_start() -> None:
    """All in one process, as most of them import PyTorch and OpenVINO."""
    code = """
import runpy, sys
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, name
    else:
        raise AssertionError(f"{name} has no --help")
"""
    command = [sys.executable, "-c", code, *BENCHMARKS]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert result.returncode == 0, result.stderr
    assert len(BENCHMARKS) > 10 and result.stdout.count("usage: ") == len(BENCHMARKS)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it: a broken link or a page that is in no menu is an error."""
    skip_unless(find_spec("mkdocs") is not None, "mkdocs", "mkdocs is not installed: pip install '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, env=env)
    assert result.returncode == 0, result.stderr
    return out


def test_the_site_has_every_page_and_reads_offline(site: Path) -> None:
    pages = {str(page.parent.relative_to(site)) for page in site.rglob("index.html")}
    assert pages >= {document.stem for document in (ROOT / "docs").glob("*.md")} | {".", "models/thermal_lite0"}
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert re.findall(r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(?:https?:)?//', text) == []
        assert "../README.md" not in text and 'href="docs/' not in text


def test_the_site_has_the_references(site: Path) -> None:
    commands, api = ((site / name / "index.html").read_text() for name in ("commands", "api"))
    for option in ("--false-alarms N", "--budget-ms MS", "--tiles COLUMNS ROWS", "--prune"):
        assert f"<code>{option}</code>" in commands, option
    for name in ("glmd_runtime.detector.Detector.enroll", "glmd_runtime.zones.Line", "glmd_export.exporter.Recipe"):
        assert f'id="{name}"' in api, name


def test_the_page_of_the_bundle_names_every_key_and_file() -> None:
    page = (ROOT / "docs/bundle.md").read_text()
    bundle = open_bundle(ROOT / "models/thermal_lite0.glmd")
    names = {field.name for field in fields(Manifest)} | {"schema_version"}
    specs = (
        PreprocessSpec, PostprocessSpec, Intensity, CalibrationSpec, EnrolledSpec, TunedSpec, PlanRecord, VerifyRow,
    )
    for spec in specs:
        names |= {field.name for field in fields(spec)}
    assert [name for name in sorted(names) if not re.search(rf"[`.]{name}[`.]", page)] == []
    assert [name for name in bundle.manifest.sha256 if f"`{name}`" not in page] == []

"""What the documents promise is run: Python snippets, commands, links, figures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from itertools import takewhile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")] + sorted(
    p for folder in ("docs", "models") for p in (ROOT / folder).glob("*.md")
)
COMMANDS = {"glmd-run": "glmd_runtime.cli:glmd_run_main", "glmd-verify": "glmd_runtime.cli:glmd_verify_main",
            "glmd-doctor": "glmd_runtime.cli:glmd_doctor_main",
            "glmd-train": "glmd_train.cli:main", "glmd-export": "glmd_export.cli:main",
            "glmd-tune": "glmd_export.tune_cli:main"}


def snippets(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.S)


@cache
def help_of(command: str, *words: str) -> str:
    module, function = COMMANDS[command].split(":")
    code = f"import sys; sys.argv = {[command, *words, '--help']!r}; from {module} import {function} as m; m()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60).stdout


@pytest.mark.parametrize("snippet", snippets(README), ids=lambda s: s.splitlines()[0])
def test_readme_snippets_run_unchanged(snippet: str) -> None:
    result = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "'name': 'person'" in result.stdout or "'name': 'car'" in result.stdout  # the model sees the simulated scene


def test_the_first_snippet_is_five_lines() -> None:
    assert len([line for line in snippets(README)[0].splitlines() if line]) <= 5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_in_the_documents_exists(command: str) -> None:
    assert any(line.startswith(f"{command} ") for line in README.splitlines()), f"README shows no use of {command}"
    for document in DOCUMENTS:
        text = document.read_text().replace("\\\n", " ")  # a command may go on in the next line
        for line in re.findall(rf"^{command} [^#\n]*", text, re.M):
            words = line.split()[1:]
            known = help_of(command, *takewhile(re.compile("[a-z]+").fullmatch, words))
            assert not [w for w in words if w.startswith("--") and w not in known], f"{document.name}: {line}"


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


def test_figures_in_the_readme_are_those_of_the_committed_results() -> None:
    accuracy = json.loads((ROOT / "benchmarks/results/accuracy_thermal_lite0.json").read_text())
    for name in ("hit_uav", "air"):
        mean = accuracy["sets"][name]["mean"]
        row = next(line for line in README.splitlines() if line.startswith(f"| {name} "))
        assert f"{100 * mean['ap50']:.1f}" in row and f"{100 * mean['recall']:.1f}" in row


EVERYTHING = "".join(document.read_text() for document in DOCUMENTS)
BENCHMARKS = sorted(set(re.findall(r"python -m (benchmarks\.\w+)", EVERYTHING)))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_that_documents_name_start(name: str) -> None:
    command = [sys.executable, "-m", name, "--help"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert result.returncode == 0, result.stderr

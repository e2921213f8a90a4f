"""Every command, and each of its sub-commands, says what it does, with an example that its own options take."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from glmd_export.cli import parser as export_parser
from glmd_export.tune_cli import parser as tune_parser
from glmd_runtime import __version__, errors
from glmd_runtime.commands.command import loading_libraries, run_command
from glmd_runtime.commands.doctor import doctor_parser
from glmd_runtime.commands.run import run_parser
from glmd_runtime.commands.verify import verify_parser
from glmd_runtime.errors import EXIT_CODES
from glmd_train.cli import parser as train_parser

TOPS = (run_parser, verify_parser, doctor_parser, train_parser, export_parser, tune_parser)


def family(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its sub-commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from family(command)


EVERY = [(top, one) for top in TOPS for one in family(top())]


@pytest.mark.parametrize(("top", "parser"), EVERY, ids=[one.prog for _, one in EVERY])
def test_help_is_whole_and_its_example_can_be_given(top: object, parser: argparse.ArgumentParser) -> None:
    assert re.fullmatch(r"[A-Z][^.]*\..*", parser.description or ""), "a sentence says what it does"
    undocumented = [a.dest for a in parser._actions if not a.help and not isinstance(a, argparse._SubParsersAction)]
    assert undocumented == []
    takes = [action for action in parser._actions if action.nargs != 0 and action.option_strings and not action.choices]
    assert [action.dest for action in takes if not action.metavar] == [], "a word says what an option takes"
    codes, examples = parser.format_help().partition("exit codes:\n")[2].split("\n\nexample:\n")
    assert [int(line.split()[0]) for line in codes.splitlines()] == list(EXIT_CODES)
    commands = examples.replace("\\\n", " ").splitlines()
    assert commands and all(command.split()[: len(parser.prog.split())] == parser.prog.split() for command in commands)
    for command in commands:
        top().parse_args(shlex.split(command)[1:])


def test_an_exit_code_means_the_same_in_every_command_or_more() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.GlmdError)]
    assert {0, *(kind.exit_code for kind in kinds), 130} == set(EXIT_CODES)
    assert "  0    the default path works\n" in doctor_parser().format_help()
    assert "  2    a wrong option, value or configuration\n" in doctor_parser().format_help()


@pytest.mark.parametrize(
    ("top", "words", "said"),
    [
        (run_parser, "--engine x --sorce y", "glmd-run: error: --sorce is no option; did you mean --source[?]"),
        (run_parser, "--engine x --sorce=y", "glmd-run: error: --sorce is no option; did you mean --source[?]"),
        (run_parser, "--engine x --sourc y", "glmd-run: error: --sourc is no option; did you mean --source[?]"),
        (run_parser, "--engine x --source y --zzz", "glmd-run: error: --zzz is no option"),
        (train_parser, "teach --imags x", "glmd-train teach: error: --imags is no option; did you mean --images[?]"),
        (train_parser, "prepare lint --dat x", "glmd-train prepare lint: .*--dat is no option; did you mean --data[?]"),
        (train_parser, "--versoin teach", "glmd-train: error: --versoin is no option; did you mean --version[?]"),
        (train_parser, "tech", "glmd-train: error: .* 'tech' .*; did you mean teach[?]"),
        (verify_parser, "x --backend tensort", "glmd-verify: error: .* 'tensort' .*; did you mean tensorrt[?]"),
        (verify_parser, "x --backend abacus", "glmd-verify: error: .*: invalid choice: 'abacus' .*[)]"),
        (export_parser, "--fp16", "glmd-export: error: the following arguments are required: --ckpt/--checkpoint"),
    ],
)
def test_a_slip_is_named_without_the_whole_usage(
    top: object, words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_command(top(), lambda options: None, words.split())
    see, error = capsys.readouterr().err.splitlines()
    assert re.fullmatch(said, error)
    assert see == f"see {error.partition(':')[0]} --help"


BAD_PATHS = [
    ("glmd_export.cli", "--ckpt missing.pth", 1, "Checkpoint missing.pth does not exist"),
    ("glmd_export.cli", "--ckpt text.txt", 1, "A checkpoint is a .safetensors file"),
    ("glmd_export.cli", "--ckpt folder", 1, "Checkpoint folder is a folder"),
    ("glmd_export.cli", "--ckpt a.pth --config missing.yaml", 2, "missing.yaml does not exist"),
    ("glmd_export.cli", "--ckpt a.pth --classes missing.txt", 2, "--classes expects a text file"),
    ("glmd_export.cli", "--ckpt a.safetensors --data empty.json", 1, "empty.json is not JSON"),
    ("glmd_export.cli", "--ckpt a.safetensors --data none.json", 1, "none.json lists no picture"),
    ("glmd_export.tune_cli", "a.glmd --budget-ms 9 -o b.glmd --data empty.json", 1, "empty.json is not JSON"),
    ("glmd_train.cli", "teach --images missing --annotations none.json -o x", 1, "missing is no folder"),
    ("glmd_train.cli", "teach --images folder --annotations missing -o x", 1, "missing does not exist"),
    ("glmd_train.cli", "teach --images . --annotations x -o x --recipe glmnet", 2, "--recipe must be one of"),
    ("glmd_export.cli", "--checkpoint missing.pth", 1, "Checkpoint missing.pth does not exist"),
    ("glmd_train.cli", "convert --ckpt missing.pth -o x.pth", 1, "Checkpoint missing.pth does not exist"),
    ("glmd_train.cli", "convert --checkpoint missing.pth -o x.pth", 1, "Checkpoint missing.pth does not exist"),
    ("glmd_train.cli", "eval --checkpoint missing.pth --data none.json", 1, "Checkpoint missing.pth does not exist"),
    ("glmd_train.cli", "eval --engine missing.glmd --data none.json", 1, "missing.glmd is nothing"),
    ("glmd_train.cli", "eval --checkpoint a.safetensors --data empty.json", 1, "empty.json is not JSON"),
    ("glmd_train.cli", "prototypes --checkpoint a.safetensors --support empty.json -o x.safetensors", 1, "is not JSON"),
    ("glmd_train.cli", "thresholds --checkpoint a.safetensors --data empty.json -o x.safetensors", 1, "is not JSON"),
    ("glmd_train.cli", "fit --config missing.yaml", 2, "missing.yaml does not exist"),
]


def test_bad_paths_are_said_before_pytorch_is_loaded(tmp_path: Path) -> None:
    for name in ("text.txt", "a.pth", "a.safetensors", "empty.json"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "none.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    code = "import importlib, json, sys; sys.modules['torch'] = None\n"  # whoever imports it fails
    code += "for name, words, *_ in json.load(sys.stdin):\n"
    code += "  print('exit', importlib.import_module(name).main(words.split()), file=sys.stderr, flush=True)"
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(BAD_PATHS), capture_output=True, text=True, cwd=tmp_path
    )
    came = re.findall(r"^[\w-]+: error: (.*)\nexit (\d)$", done.stderr, re.MULTILINE)
    assert len(came) == len(BAD_PATHS), done.stderr
    for (_, words, code, said), (text, exit_code) in zip(BAD_PATHS, came, strict=True):
        assert said in text and int(exit_code) == code, words


def test_loading_says_so_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with loading_libraries():
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    with loading_libraries():
        pass
    assert "loading the libraries" in capsys.readouterr().err


def test_words_that_only_look_like_options_are_values() -> None:
    options = run_parser().parse_args(["--engine", "x", "--source", "-", "--score", "-1", "--json", "-"])
    assert (options.source, options.score, str(options.json)) == (["-"], -1, "-")
    assert str(export_parser().parse_args(["--ckpt", "x", "-oy.glmd"]).output) == "y.glmd"
    assert verify_parser().parse_args(["--", "--x"]).bundle.name == "--x"


@pytest.mark.parametrize("top", TOPS, ids=lambda top: top().prog)
def test_version(top: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run_command(top(), lambda options: None, ["--version"])
    assert capsys.readouterr().out == f"{top().prog} {__version__}\n"


@pytest.mark.parametrize("top", TOPS, ids=lambda top: top().prog)
def test_completion_is_a_script_that_bash_takes(top: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run_command(top(), lambda options: None, ["--print-completion", "bash"])
    script = capsys.readouterr().out
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    for parser in family(top()):
        assert all(option in script for action in parser._actions for option in action.option_strings)


def test_bash_completes_words_and_files(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run_command(run_parser(), lambda options: None, ["--print-completion", "bash"])
    script = capsys.readouterr().out
    (tmp_path / "thermal.glmd").mkdir()

    def completed(*words: str) -> list[str]:
        code = f"{script}\nCOMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}\n"
        code += "compopt() { :; }\n$(complete -p glmd-run | grep -o '_shtab[a-z_]*')\necho ${COMPREPLY[@]}"
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, cwd=tmp_path)
        return done.stdout.split()

    assert completed("glmd-run", "--pol") == ["--policy", "--polarity"]
    assert completed("glmd-run", "--policy", "f") == ["freshest"]
    assert completed("glmd-run", "--engine", "the") == ["thermal.glmd"]


def test_help_loads_nothing_that_it_does_not_need() -> None:
    code = "import sys, glmd_runtime.cli, glmd_train.cli, glmd_export.cli; print('shtab' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip() == "False", done.stderr

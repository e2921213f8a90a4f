"""The pages that are made from the code: every command with its options, and the public names of the runtime."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import distribution
from unittest.mock import patch

from glmd_runtime.commands.parser import Parser
from glmd_runtime.errors import EXIT_CODES

# What an application uses beside `glmd_runtime`'s own names: module -> names.
MODULES = {
    "glmd_runtime.pipeline": ("Pipeline",),
    "glmd_runtime.streams": ("Result", "Stream"),
    "glmd_runtime.tracking": ("Tracker",),
    "glmd_runtime.zones": ("Line", "Zone"),
    "glmd_runtime.video.sources": ("open_source",),
    "glmd_runtime.video.source": ("Source",),
    "glmd_runtime.video.frame": ("Frame",),
    "glmd_runtime.video.status": ("Status",),
    "glmd_runtime.video.recording": ("Recorder",),
    "glmd_runtime.draw": ("draw",),
    "glmd_runtime.sinks": ("Mp4Sink", "JsonlSink", "save_picture"),
    "glmd_runtime.backends": ("Backend",),
    "glmd_runtime.backends.fake": ("FakeBackend",),
    "glmd_train.teach": ("read_lesson", "teach", "save", "Lesson", "Taught"),
    "glmd_train.checkpoint": ("load_checkpoint", "save_checkpoint", "reshape"),
    "glmd_export.exporter": ("export_bundle", "Recipe"),
}


class _ParserError(Exception):
    """Carries a command's parser out of its entry point."""


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Command -> the parser that it would parse its options with."""
    commands = distribution("glmdnet-sdk").entry_points.select(group="console_scripts")
    return {entry.name: _parser_of(entry.load()) for entry in commands}


def _parser_of(main: Callable[[], object]) -> argparse.ArgumentParser:
    def stop(parser: argparse.ArgumentParser, *_: object) -> None:
        raise _ParserError(parser)

    with patch.object(argparse.ArgumentParser, "parse_args", stop):
        try:
            main()
        except _ParserError as found:
            return found.args[0]
    raise AssertionError(f"{main} parsed nothing")


def commands() -> str:
    """commands.md."""
    lines = [
        "# Commands", "",
        "What `--help` says, made from the code. Exit codes, where a command does not say more:", "",
        *_codes(EXIT_CODES),
    ]
    for parser in parsers().values():
        lines += _described(parser, parser.description or "", 2)
    return "\n".join(lines)


def _codes(meanings: Mapping[int, str]) -> list[str]:
    return ["| exit code | meaning |", "| --- | --- |", *(f"| {n} | {text} |" for n, text in meanings.items()), ""]


def _described(parser: argparse.ArgumentParser, text: str, level: int) -> Iterator[str]:
    yield from (f"{'#' * level} {parser.prog}", "", text, "")
    for one in subcommands(parser).values():
        yield from _described(one, one.description or _help_of(parser, one), level + 1)
    if not subcommands(parser):
        yield from ("```text", parser.format_usage().removeprefix("usage: ").rstrip(), "```", "")
        yield from ("| option | meaning |", "| --- | --- |", *map(_row, filter(_is_shown, parser._actions)), "")
        yield from (parser.epilog or "", "")
        if isinstance(parser, Parser):
            yield from _codes(parser.codes) if parser.codes else ()
            yield from ("```text", parser.example, "```", "")


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Name -> parser of what a command is divided in, if it is."""
    return next((dict(a.choices) for a in parser._actions if isinstance(a, argparse._SubParsersAction)), {})


def _help_of(parser: argparse.ArgumentParser, one: argparse.ArgumentParser) -> str:
    """What a command says of a part that does not describe itself."""
    [action] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    said = {choice.dest: choice.help for choice in action._choices_actions}
    return said.get(one.prog.split()[-1]) or ""


def _is_shown(action: argparse.Action) -> bool:
    return action.help != argparse.SUPPRESS and "--help" not in action.option_strings


def _row(action: argparse.Action) -> str:
    formatter = argparse.HelpFormatter("")
    default = action.dest.upper() if action.option_strings else action.dest
    value = "" if action.nargs == 0 else formatter._format_args(action, default)
    names = [f"{option} {value}".strip() for option in action.option_strings] or [value]
    meaning = formatter._expand_help(action) if action.help else ""
    if action.required and action.option_strings:
        meaning += " (required)"
    return f"| {', '.join(f'`{name}`' for name in names)} | {meaning} |"


def api() -> str:
    """api.md: directives of mkdocstrings."""
    import glmd_runtime
    from glmd_runtime import errors

    public = [getattr(glmd_runtime, name) for name in glmd_runtime.__all__]
    named = [one for one in public if not (isinstance(one, type) and issubclass(one, Exception))]
    lines = [
        "# Python", "",
        "Docstrings as they stand in the code: shapes, units, errors. What is not listed here is not meant for "
        "applications and may change.", "",
        "## glmd_runtime", "", *(f"::: {one.__module__}.{one.__name__}\n" for one in named),
        "## Errors", "", "```text", errors.__doc__ or "", "```", "",
    ]
    for module, names in MODULES.items():
        lines += [f"## {module}", "", *(f"::: {module}.{name}\n" for name in names)]
    return "\n".join(lines)

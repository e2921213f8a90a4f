"""What the real TensorRT-RTX says of ONNX files: built or refused, each in a process that it may take down with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from tests.conftest import skip_unless


def require_rtx() -> None:
    skip_unless(find_spec("tensorrt_rtx") is not None, "tensorrt_rtx", "tensorrt_rtx is not installed")


def builds(files: Sequence[Path]) -> dict[str, bool]:
    """File name -> whether an engine came out. One process builds them all; after a crash another one goes on."""
    came: dict[str, bool] = {}
    while left := [file for file in files if file.name not in came]:
        said = _run(*map(str, left))
        lines = said["result"]
        came |= {name: answer == "built" for name, answer in lines}
        if len(lines) < len(left):
            came[left[len(lines)].name] = False  # it crashed
    return came


def operators(names: Sequence[str]) -> list[str]:
    """Those of the ONNX operators that its parser has an importer for."""
    return _run("--operators", *names)["operators"][0]


def _run(*arguments: str) -> dict[str, list[list[str]]]:
    """This file as a program: the lines it printed, by their first word."""
    command = [sys.executable, "-m", "tests.export.rtx", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2])
    said: dict[str, list[list[str]]] = {"ready": [], "result": [], "operators": []}
    for line in done.stdout.splitlines():
        word, *rest = line.split("\t")
        if word in said:
            said[word].append(rest)
    assert said["ready"], done.stderr  # what dies before its first file says nothing of the files
    return said


def _build(trt, path: str) -> bool:
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network()
    parser = trt.OnnxParser(network, logger)
    return parser.parse(Path(path).read_bytes()) and bool(
        builder.build_serialized_network(network, builder.create_builder_config())
    )


def _main(arguments: list[str]) -> None:
    import tensorrt_rtx as trt

    print("ready", flush=True)
    if arguments[0] == "--operators":
        logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
        network = trt.Builder(logger).create_network()
        parser = trt.OnnxParser(network, logger)
        print("operators", *filter(parser.supports_operator, arguments[1:]), sep="\t")
        return
    for path in arguments:
        print("result", Path(path).name, "built" if _build(trt, path) else "refused", sep="\t", flush=True)


if __name__ == "__main__":
    _main(sys.argv[1:])

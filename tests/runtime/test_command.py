"""What a command makes of errors: one line and an exit code."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glmd_runtime.commands.command import run_command
from glmd_runtime.errors import OutputError

DENIED = PermissionError(13, "Permission denied", "secret.json")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OutputError("a.json could not be written"), 1, "a.json could not be written"),
        (DENIED, 1, "secret.json: Permission denied. Ask its owner for the right to it, or choose another path."),
        (MemoryError(), 1, "memory ran out (MemoryError). End other programs"),
        (MemoryError("Caught MemoryError in a worker.\nMemoryError: big"), 1, "memory ran out (big)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), 1, "memory ran out (DefaultCPU"),
    ],
)
def test_an_error_is_one_line(error: Exception, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: Any) -> None:
        raise error

    assert run_command(argparse.ArgumentParser("it"), fail, []) == code
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"it: error: {said}")


def test_our_own_bug_is_a_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(argparse.ArgumentParser("it"), lambda _: 1 / 0, [])  # type: ignore[arg-type,return-value]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_standard_output_on_a_full_disk_is_one_line() -> None:
    code = "import argparse, sys; from glmd_runtime.commands.command import run_command as run\n"
    code += "sys.exit(run(argparse.ArgumentParser('it'), lambda _: print('lines'), []))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("it: error: An output could not be written") and done.stderr.count("\n") == 1

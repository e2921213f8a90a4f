"""Libraries are tried in processes of their own, so that one that crashes is a finding and not the doctor's end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from glmd_runtime import errors
from glmd_runtime.errors import GlmdError, UnsupportedError
from glmd_runtime.files.documents import parse_json

TIMEOUT = 300.0  # seconds; TensorRT builds an engine of the tiny model in the meantime


def probe(task: str, *arguments: str, timeout: float = TIMEOUT, cache: Path | None = None) -> dict[str, Any]:
    """Run a function of `glmd_runtime.doctor.tasks` in a process of its own.

    Args: timeout, seconds; cache, a folder for what it would cache, in the user's place.
    Returns: what it returned. Raises: GlmdError of the kind that it raised; UnsupportedError when it died.
    """
    command = [sys.executable, "-m", "glmd_runtime.doctor.tasks", task, *arguments]
    # It imports what we import. Where OpenCV failed, its own folder is left here, and its `typing` would hide Python's.
    paths = [path for path in sys.path if path and Path(path).name != "cv2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    if cache is not None:
        environment["XDG_CACHE_HOME"] = str(cache)
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise UnsupportedError(f"no answer in {timeout:.0f} s") from None
    with suppress(ValueError, IndexError, KeyError, TypeError):
        return _outcome(parse_json(done.stdout.splitlines()[-1]))
    raise UnsupportedError(_how_it_died(done))


def _outcome(said: dict[str, Any]) -> dict[str, Any]:
    if "error" in said:
        kind, text = said["error"]
        error: type[GlmdError] = getattr(errors, kind, UnsupportedError)
        raise error(text)
    values: dict[str, Any] = said["values"]
    return values


def _how_it_died(done: subprocess.CompletedProcess[str]) -> str:
    last = "".join(done.stderr.strip().splitlines()[-1:]) or "nothing"
    with suppress(ValueError):
        return f"it crashed with {signal.Signals(-done.returncode).name}; it said last: {last}"
    return f"it ended with exit code {done.returncode}; it said last: {last}"

"""TensorRT engines, built where they run: from the bundle's ONNX file, in a process of their own, once."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import IO, Any

from glmd_runtime import errors
from glmd_runtime.backends import cuda
from glmd_runtime.errors import GlmdError, UnsupportedError
from glmd_runtime.plan import PlanRecord, log_path, record_path

_log = logging.getLogger(__name__)

INSTALL = {
    "tensorrt": "pip install 'tensorrt>=10.3,<12' (on a Jetson, the system's: python3 -m venv --system-site-packages)",
    "tensorrt_rtx": "pip install tensorrt-rtx-cu13==1.7.1.116",
}
WORKSPACE = 2 << 30  # bytes of device memory that a layer may use for intermediate results
_WATCH_S = 0.2  # how often a build's time and memory are looked at


def build_plan(
    onnx: Path,
    out: Path,
    *,
    library: str,
    precision: str,
    plugin: Path | None = None,
    device: int | None = None,
    workspace: int = WORKSPACE,
    host_memory: int | None = None,
    timeout: float = 3600,
    timing_cache: Path | None = None,
    progress: Callable[[str], None] = _log.info,
) -> PlanRecord:
    """Build a strongly typed TensorRT engine in a process of its own, and prove its precision.

    Beside `out` lie afterwards its record `out`.json and the log `out`.log; after a failure only the log.

    Args:
        onnx: the model; its casts and Q/DQ nodes are the precision.
        out: where the plan goes; its folder must exist.
        library: "tensorrt", which needs a CUDA device, or "tensorrt_rtx", which does not.
        precision: "fp32", "fp16" or "int8", what the convolutions must compute in.
        plugin: library of the custom operators, for the graph that has them.
        device: CUDA device to build for; None with "tensorrt_rtx" builds for its default range of GPUs.
        workspace: bytes of device memory that a layer may use.
        host_memory: bytes of host memory that the build may use; None is three quarters of what the machine has.
        timeout: seconds.
        timing_cache: a file in which "tensorrt" keeps what it measured, for faster builds of similar models.
        progress: told what the builder is at.
    Raises:
        UnsupportedError: the library is missing, or cannot build this model here, or crashed, or ran out of time or
            memory; PrecisionError: the engine does not compute in the precision asked for; BundleError: no model.
    """
    if find_spec(library) is None:
        raise UnsupportedError(f"{library} is not installed. Run: {INSTALL[library]}")
    if library == "tensorrt" and (reason := cuda.why_no_device()):
        raise UnsupportedError(f"tensorrt builds engines on the device that they will run on, but {reason}.")
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        plan = Path(scratch) / out.name
        request = {
            "onnx": str(onnx),
            "plan": str(plan),
            "library": library,
            "precision": precision,
            "plugin": str(plugin or ""),
            "workspace": workspace,
            "timing_cache": str(timing_cache or "") if library == "tensorrt" else "",  # RTX would ask for a GPU
            "device": device if library == "tensorrt_rtx" else device or 0,
        }
        with log_path(out).open("wb") as log:
            outcome = _run(request, log, timeout, host_memory or _host_memory(), progress)
        record = _record(outcome, log_path(out))
        record.write(plan)
        record_path(plan).replace(record_path(out))
        plan.replace(out)
    return record


def _run(
    request: dict[str, Any], log: IO[bytes], timeout: float, memory: int, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Run a build to its end. Returns: its last message, or {"error": [type, sentence]} when it could give none."""
    command = [sys.executable, "-m", "glmd_runtime.plan_builder", json.dumps(request)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # imports what we import
    messages: list[dict[str, Any]] = []
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True) as process:
        reader = Thread(target=_read, args=(process.stdout, messages, progress), daemon=True)
        reader.start()
        try:
            ended = _watch(process, timeout, memory)
        finally:
            process.kill()
        reader.join()
    if messages:
        return messages[-1]
    return {"error": ["UnsupportedError", ended or _how_it_died(process.returncode, Path(log.name))]}


def _read(lines: IO[str], messages: list[dict[str, Any]], progress: Callable[[str], None]) -> None:
    for line in lines:
        message = json.loads(line)
        if "progress" in message:
            progress(message["progress"])
        else:
            messages.append(message)


def _watch(process: subprocess.Popen[str], timeout: float, memory: int) -> str:
    """Wait for the end of a build, or end it. Returns: why it was ended, if it was.

    Resident memory is watched from outside: a limit on addresses would refuse the ranges that CUDA only reserves.
    """
    deadline = monotonic() + timeout
    while process.poll() is None:
        if monotonic() > deadline:
            return f"the build took more than {timeout:.0f} s and was stopped; give it more time or a smaller model"
        if _resident(process.pid) > memory:
            return f"the build used more than {memory >> 20} MiB of host memory and was stopped; end other programs"
        sleep(_WATCH_S)
    return ""


def _how_it_died(code: int, log: Path) -> str:
    last = "".join(log.read_text(errors="replace").strip().splitlines()[-1:])
    with suppress(ValueError):
        return f"the builder crashed with {signal.Signals(-code).name}; it said last: {last}"
    return f"the builder ended with exit code {code}; it said last: {last}"


def _record(outcome: dict[str, Any], log: Path) -> PlanRecord:
    if "built" in outcome:
        return PlanRecord(**outcome["built"])
    kind, text = outcome["error"]
    error: type[GlmdError] = getattr(errors, kind)
    raise error(f"{text.rstrip('.')}. The builder's log is {log}.")


def _resident(pid: int) -> int:
    """Bytes of memory that a process holds; 0 where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _host_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 3 // 4

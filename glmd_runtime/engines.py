"""TensorRT engines, built where they run: from the bundle's ONNX file, in a process of their own, once."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from fnmatch import fnmatch
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import IO, Any

from glmd_runtime import backends, errors
from glmd_runtime.backends import cuda
from glmd_runtime.backends.tensorrt import PLUGIN_VARIABLE, find_plugins
from glmd_runtime.bundle import Bundle
from glmd_runtime.comparison import TOLERANCES
from glmd_runtime.errors import GlmdError, ParityError, UnsupportedError, UsageError
from glmd_runtime.files.documents import parse_json
from glmd_runtime.files.scratch import scratch_folder, writing
from glmd_runtime.plans.cache import PLAN, engines_folder, entry_folder, lock, new_entry
from glmd_runtime.plans.plan import PlanRecord, log_path, record_path, sha256
from glmd_runtime.verify import check_engine

_log = logging.getLogger(__name__)

BUILD = ("auto", "never")
WORKSPACE = 2 << 30  # bytes of device memory that a layer may use for intermediate results
_WATCH_S = 0.2  # how often a build's time and memory are looked at


def open_engine(
    bundle: Bundle,
    engine: str,
    backend: str,
    *,
    threads: int | None = None,
    device: str | None = None,
    build: str = "auto",
    throughput: bool = False,
) -> backends.Backend:
    """Load one of a bundle's engine files; for "tensorrt", the engine built from it on this device.

    TensorRT engines are built when first used, checked against the bundle's reference before they are kept, and found
    in the cache afterwards. TensorRT-RTX engines, built elsewhere, are checked whenever they are opened.

    Args:
        engine: a file of the manifest's engines; backend, the name of one that reads it.
        threads, device, throughput: as in `backends.load`.
        build: "auto", or "never" to use only what is cached.
    Raises: what `backends.load` and `build_plan` do; ParityError when the answers are not the reference's;
        UnsupportedError when nothing is cached and nothing may be built.
    """
    if build not in BUILD:
        raise UsageError(f"build must be one of {', '.join(BUILD)}; got {build!r}.")
    backends.require(backend)
    if backend == "tensorrt":
        return _open_tensorrt(bundle, engine, threads, device, build, throughput)
    loaded = backends.load(backend, bundle.path / engine, threads, device, throughput, bundle.read)
    if backend == "tensorrt_rtx":
        _check(loaded, bundle, engine, backend)
    return loaded


def _open_tensorrt(
    bundle: Bundle, engine: str, threads: int | None, device: str | None, build: str, throughput: bool
) -> backends.Backend:
    def load(plan: Path) -> backends.Backend:
        return backends.load("tensorrt", plan, threads, device, throughput)

    index = cuda.use_device(device, "tensorrt")
    plugin = _plugins_for(engine)
    folder = _entry(bundle, engine, index, plugin)
    with lock(folder):
        if (loaded := _cached(folder / PLAN, load, build)) is not None:
            return loaded
        if build == "never":
            raise UnsupportedError(
                f"No TensorRT engine of {bundle.path / engine} is cached for this device, and build is 'never'. "
                "Run once with build='auto'."
            )
        _log.warning("Building a TensorRT engine of %s on cuda:%d; it takes minutes, once", bundle.path / engine, index)
        with new_entry(folder) as new:
            _build_cached(bundle, engine, new, folder, index, plugin)
            loaded = load(new / PLAN)
            _check(loaded, bundle, engine, "tensorrt")
        return loaded


def _cached(plan: Path, load: Callable[[Path], backends.Backend], build: str) -> backends.Backend | None:
    """The cached engine; None where there is none, or where it cannot be used and another may be built."""
    if not plan.exists():
        return None
    try:
        return load(plan)
    except GlmdError as error:
        if build == "never":
            raise
        _log.warning("A cached engine cannot be used and is built again: %s", error)
        return None


def _build_cached(bundle: Bundle, engine: str, new: Path, folder: Path, index: int, plugin: Path | None) -> None:
    """Build into the folder `new`, with the log beside `folder`."""
    build_plan(
        bundle.path / engine,
        new / PLAN,
        library="tensorrt",
        precision=bundle.manifest.engines[engine],
        expected=bundle.manifest.sha256[engine],
        plugin=plugin,
        device=index,
        timing_cache=engines_folder() / f"{_version()}-sm{cuda.capability(index)}.timings",
        log=folder.with_name(f"{folder.name}.log"),
    )


def needs_plugins(engine: str) -> bool:
    """Whether an engine file holds this project's custom operators."""
    return fnmatch(engine, "model.plugin.*")


def _plugins_for(engine: str) -> Path | None:
    """The plugin library, if the graph needs one. Raises: UnsupportedError when it is not there."""
    if not needs_plugins(engine):
        return None
    if library := find_plugins():
        return library
    raise UnsupportedError(
        f"{engine} needs this project's plugin library, and none was found. Build it as docs/tensorrt.md says, or name "
        f"it in {PLUGIN_VARIABLE}."
    )


def _entry(bundle: Bundle, engine: str, index: int, plugin: Path | None) -> Path:
    """The cache's folder for an engine: another for whatever would make another plan."""
    key = (
        bundle.manifest.sha256[engine],
        _version(),
        cuda.capability(index),
        bundle.manifest.engines[engine],
        json.dumps(bundle.manifest.graph.to_dict(), sort_keys=True),
        sha256(plugin) if plugin else "",
    )
    return entry_folder(bundle.manifest.name, key)


def _version() -> str:
    return str(import_module("tensorrt").__version__)


def _check(loaded: backends.Backend, bundle: Bundle, engine: str, backend: str) -> None:
    """Close an engine whose answers are not the reference's.

    Raises: ParityError; UnsupportedError when its precision has no tolerance; BundleError without a reference; whatever
        a library raises while it runs.
    """
    try:
        if (precision := bundle.manifest.engines[engine]) not in TOLERANCES:
            raise UnsupportedError(f"{engine} cannot be checked: no tolerance is defined for {precision}.")
        rows = check_engine(loaded, backend, engine, bundle.manifest, bundle.reference)
        if failed := "; ".join(f"{row.stage}: {row.reason}" for row in rows if row.status == "failed"):
            raise ParityError(f"{engine} on {backend} must give the reference's answers; got {failed}. Do not use it.")
    except BaseException:
        loaded.close()
        raise


def build_plan(
    onnx: Path,
    out: Path,
    *,
    library: str,
    precision: str,
    expected: str = "",
    plugin: Path | None = None,
    device: int | None = None,
    workspace: int = WORKSPACE,
    host_memory: int | None = None,
    timeout: float = 3600,
    timing_cache: Path | None = None,
    log: Path | None = None,
    progress: Callable[[str], None] = _log.info,
) -> PlanRecord:
    """Build a strongly typed TensorRT engine in a process of its own, and prove its precision.

    Beside `out` lies afterwards its record, `out`.json; both or neither. The log is kept in any case.

    Args:
        onnx: the model; its casts and Q/DQ nodes are the precision.
        out: where the plan goes; its folder must exist.
        library: "tensorrt", which needs a CUDA device, or "tensorrt_rtx", which does not.
        precision: "fp32", "fp16" or "int8", what the convolutions must compute in.
        expected: SHA-256 that the model must have when it is read; "" takes it as it is.
        plugin: library of the custom operators, for the graph that has them.
        device: CUDA device to build for; None with "tensorrt_rtx" builds for its default range of GPUs.
        workspace: bytes of device memory that a layer may use.
        host_memory: bytes of host memory that the build may use; None is three quarters of what the machine has.
        timeout: seconds.
        timing_cache: a file in which "tensorrt" keeps what it measured, for faster builds of similar models.
        log: where the library's words go; None is `out`.log.
        progress: told what the builder is at.
    Raises:
        UnsupportedError: the library is missing, or cannot build this model here, or crashed, or ran out of time or
            memory; PrecisionError: the engine does not compute in the precision asked for; BundleError: no model;
        OutputError: the disk is full.
    """
    _check_library(library)
    settings: dict[str, Any] = {"library": library, "precision": precision, "sha256": expected, "workspace": workspace}
    settings["device"] = device if library == "tensorrt_rtx" else device or 0
    timings = timing_cache if library == "tensorrt" else None  # TensorRT-RTX would ask for a GPU
    with writing(out), scratch_folder(out) as scratch:
        plan = scratch / out.name
        request = settings | _absolute(onnx=onnx, plan=plan, plugin=plugin, timing_cache=timings)
        log = log or log_path(out)
        with log.open("wb") as file:
            outcome = _run(request, scratch, file, timeout, host_memory or _host_memory(), progress)
        record = _record(outcome, log)
        _put_in_place(plan, record, out)
    return record


def _check_library(library: str) -> None:
    """Raises: UnsupportedError where it cannot build."""
    if find_spec(library) is None:
        raise UnsupportedError(f"{library} is not installed. Run: {backends.BACKENDS[library].install}")
    if library == "tensorrt" and (reason := cuda.why_no_device()):
        raise UnsupportedError(f"tensorrt builds engines on the device that they will run on, but {reason}.")


def _absolute(**paths: Path | None) -> dict[str, str]:
    """Paths as a process in another folder finds them; "" for none."""
    return {name: str(path.absolute()) if path else "" for name, path in paths.items()}


def _put_in_place(plan: Path, record: PlanRecord, out: Path) -> None:
    """A plan and its record to where they belong; the plan last, as whoever finds it looks for the record."""
    record.write(plan)
    record_path(plan).replace(record_path(out))
    plan.replace(out)


def _run(
    request: dict[str, Any], cwd: Path, log: IO[bytes], timeout: float, memory: int, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Run a build to its end, in an empty folder `cwd`, for Python imports what lies in the one that it is started in.

    Returns: its last message, or {"error": [type, sentence]} when it could give none.
    """
    command = [sys.executable, "-m", "glmd_runtime.plans.builder", json.dumps(request)]
    imported = os.pathsep.join(os.path.abspath(path) for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": imported}  # imports what we import
    messages: list[dict[str, Any]] = []
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
    with subprocess.Popen(command, cwd=cwd, env=environment, text=True, **pipes) as process:
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
        message = parse_json(line)
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
    if code == -signal.SIGKILL:
        return f"the builder was killed, as when memory runs out; end other programs. It said last: {last}"
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

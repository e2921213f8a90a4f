"""Which of a bundle's engines runs here: the fastest whose answers are known to be right."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from glmd_runtime import backends
from glmd_runtime.backends.cuda import parse_device
from glmd_runtime.backends.tensorrt import find_plugins
from glmd_runtime.bundle import Bundle
from glmd_runtime.engines import needs_plugins, open_engine
from glmd_runtime.errors import GlmdError, UnsupportedError, UsageError
from glmd_runtime.install import install_command
from glmd_runtime.verify_report import VerifyReport

_log = logging.getLogger(__name__)

# The fastest first: GPUs, then as measured on two CPU threads, where half is slower than float.
_FASTEST = (
    ("tensorrt", "int8"),
    ("tensorrt", "fp16"),
    ("tensorrt_rtx", "int8"),
    ("tensorrt_rtx", "fp16"),
    ("openvino", "int8"),
    ("onnxruntime", "int8"),
    ("openvino", "fp32"),
    ("onnxruntime", "fp32"),
    ("onnxruntime", "fp16"),
)
# Their answers are compared with the bundle's reference when they are opened, on the device that will give them.
_CHECKED_HERE = (("tensorrt", "fp16"), ("tensorrt_rtx", "fp16"))


class Opened(NamedTuple):
    """threads: that the backend was given; None leaves it to the library."""

    backend_name: str
    engine: str
    threads: int | None
    backend: backends.Backend


def open_best(
    bundle: Bundle,
    engines: Sequence[str],
    backend: str = "auto",
    *,
    threads: int | None = None,
    device: str | None = None,
    build: str = "auto",
    throughput: bool = False,
) -> Opened:
    """Open the fastest of some engine files that can run here and whose answers are right.

    They are right if they passed verification in the bundle; those of TensorRT in FP16 are compared when they are
    opened. One that then fails is passed over with a warning. A backend that was asked for by name runs nevertheless.
    In a bundle that was tuned to this machine, what was measured to be the best comes first, with its threads unless
    others are given.

    Args: engines, files of the manifest's engines; backend, a name or "auto"; the others as in `engines.open_engine`.
    Raises: UnsupportedError when there is none; of a named backend, what `engines.open_engine` raises; UsageError.
    """
    options = {"threads": threads, "device": device, "build": build, "throughput": throughput}
    if backend == "auto":
        return _open_fastest(bundle, engines, options)
    backends.require(backend)
    pairs = _fastest(bundle, engines, [backend]) or _readable(engines, [backend])
    if not pairs:
        raise UnsupportedError(
            f"{bundle.path} has no engine that {backend} can run; it has {', '.join(engines)}. Name another backend."
        )
    return _opened(bundle, pairs[0], options)


def _opened(bundle: Bundle, pair: tuple[str, str], options: dict[str, Any]) -> Opened:
    name, engine = pair
    tuned = bundle.manifest.tuned
    # Its threads are those of a single frame's shortest time, which is not what throughput is after.
    if tuned and options["threads"] is None and not options["throughput"] and pair == _tuned_pair(bundle):
        options = {**options, "threads": tuned.threads}
    return Opened(name, engine, options["threads"], open_engine(bundle, engine, name, **options))


def _tuned_pair(bundle: Bundle) -> tuple[str, str] | None:
    """(backend, engine) that was measured to be the best on this machine, where one was."""
    tuned = bundle.manifest.tuned
    return (tuned.backend, tuned.engine) if tuned and tuned.here else None


def _open_fastest(bundle: Bundle, engines: Sequence[str], options: dict[str, Any]) -> Opened:
    if not backends.available():
        raise UnsupportedError(f"No inference library is installed. Run: {install_command('cpu')}")
    passed_over = ""
    for pair in _fastest(bundle, engines, _on(options["device"])):
        try:
            return _opened(bundle, pair, options)
        except UsageError:
            raise
        except (GlmdError, OSError) as error:  # OSError: a cache that cannot be written is no reason not to run
            _log.warning("%s on %s is passed over: %s", pair[1], pair[0], error)
            passed_over += f" {pair[1]} on {pair[0]}: {error}"
    raise UnsupportedError(
        f"{bundle.path} has no engine that passed verification and can run here: engines {', '.join(engines)}, "
        f"installed {', '.join(backends.available())}.{passed_over}{_absences(engines)} Run glmd-verify on it, or name "
        "another backend."
    )


def _absences(engines: Sequence[str]) -> str:
    """Why backends that could read these files cannot run here."""
    names = {name: None for engine in engines for name in backends.readers(engine)}  # each once, in order
    return "".join(f" {why}" for name in names if (why := backends.why_not(name)))


def _on(device: str | None) -> list[str]:
    """The backends that are here and run on this kind of device; all of them for None. Raises: UsageError."""
    if device is None:
        return backends.available()
    without = ("openvino",) if parse_device(device) is not None else ("tensorrt", "tensorrt_rtx")
    return [name for name in backends.available() if name not in without]


def _readable(engines: Sequence[str], names: Sequence[str]) -> list[tuple[str, str]]:
    """(backend, engine) of these backends; of each backend, what it would rather read first."""
    pairs = [(name, engine) for name in names for engine in engines if name in backends.readers(engine)]
    return sorted(pairs, key=lambda pair: backends.preference(*pair))


def _fastest(bundle: Bundle, engines: Sequence[str], names: Sequence[str]) -> list[tuple[str, str]]:
    """Those of `_readable` whose answers are or will be checked, the fastest first."""
    report, precision = VerifyReport.from_dict(bundle.verify), bundle.manifest.engines
    trusted = [
        (name, engine)
        for name, engine in _readable(engines, names)
        if (name, precision[engine]) in _CHECKED_HERE or report.passed(engine, name)
    ]
    ranked = [p for kind in _FASTEST for p in trusted if (p[0], precision[p[1]]) == kind]
    best = _tuned_pair(bundle)
    ranked.sort(key=lambda pair: pair != best)  # what was measured here comes before what is usual
    return [pair for pair in ranked if not needs_plugins(pair[1]) or find_plugins()]

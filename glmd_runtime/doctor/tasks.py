"""What is done in a process of its own: `python -m glmd_runtime.doctor.tasks TASK ARGUMENT ...`, an answer as JSON."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from glmd_runtime.errors import GlmdError, ParityError


def version(module: str) -> dict[str, Any]:
    """Import a library."""
    return {"version": str(getattr(import_module(module), "__version__", ""))}


def cuda() -> dict[str, Any]:
    """The CUDA devices, or why there is none."""
    from glmd_runtime.backends.cuda import call, capability, why_no_device

    if reason := why_no_device():
        return {"why_not": reason}
    devices = [f"cuda:{i} of compute capability {capability(i)}" for i in range(call("cudaGetDeviceCount"))]
    return {"why_not": "", "devices": devices}


def detect(bundle: str, backend: str) -> dict[str, Any]:
    """A Detector on a bundle's first reference frame, and its engine's answers against the reference."""
    from glmd_runtime.bundle import open_bundle
    from glmd_runtime.detector import Detector
    from glmd_runtime.engines import open_engine
    from glmd_runtime.verify import engine_rows

    opened = open_bundle(Path(bundle))
    with Detector(bundle, backend=backend) as detector:
        found, info = detector.run(opened.reference.frames[0]), detector.info()
    rows = engine_rows(opened, info["engine"], info["backend"], open_engine)
    if wrong := "; ".join(f"{row.stage}: {row.reason}" for row in rows if row.status == "failed"):
        raise ParityError(f"{info['engine']} on {info['backend']} does not give the reference's answers ({wrong})")
    return {"detections": len(found), **{name: info[name] for name in ("engine", "backend", "device", "precision")}}


def encoders(*names: str) -> dict[str, Any]:
    """PyAV's version, FFmpeg's, and those of the encoders that it lacks."""
    import av

    return {
        "version": av.__version__,
        "ffmpeg": av.ffmpeg_version_info,
        "missing": [name for name in names if name not in av.codecs_available],
    }


TASKS = {task.__name__: task for task in (version, cuda, detect, encoders)}


def main() -> None:
    name, *arguments = sys.argv[1:]
    try:
        answer: dict[str, Any] = {"values": TASKS[name](*arguments)}
    except GlmdError as error:
        answer = {"error": [type(error).__name__, str(error)]}
    except Exception as error:  # whatever a broken library does
        answer = {"error": ["UnsupportedError", f"{type(error).__name__}: {error}"]}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()

"""Python, the processor, and how much of it this process may use; whether there is a driver for a GPU."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from glmd_runtime import __version__
from glmd_runtime.doctor.finding import Finding
from glmd_runtime.tuned import cores, processor

CPUINFO, CGROUP = Path("/proc/cpuinfo"), Path("/sys/fs/cgroup")
# What makes float and INT8 fast, as /proc/cpuinfo writes it: on x86 and on ARM.
_FEATURES = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "asimd", "asimddp", "i8mm", "bf16",
)  # fmt: skip
DRIVERS = (Path("/proc/driver/nvidia/version"), Path("/etc/nv_tegra_release"))  # the second on a Jetson
_SLOW_WITHOUT = {"x86_64": "avx2", "aarch64": "asimd"}


def check_python() -> list[Finding]:
    system = f"{platform.system()} {platform.machine()}"
    return [Finding("python", "ok", f"{platform.python_version()} on {system}, glmdnet-sdk {__version__}")]


def nvidia_drivers() -> list[str]:
    """What the drivers say of themselves, a line each; none where nothing of NVIDIA can run."""
    return [path.read_text().splitlines()[0] for path in DRIVERS if os.access(path, os.R_OK)]


def check_cpu() -> list[Finding]:
    has = [name for name in _FEATURES if name in _flags()]
    needed = _SLOW_WITHOUT.get(platform.machine())
    text = f"{processor()}, {' '.join(has) or 'no known vector features'}"
    if needed and needed not in has and CPUINFO.exists():
        return [Finding("cpu", "warn", f"{text}; without {needed} everything is several times slower")]
    return [Finding("cpu", "ok", text)]


def _flags() -> set[str]:
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    return {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split(":")[1].split()}


def check_cores() -> list[Finding]:
    allowed = cores()
    quota = _quota()
    if quota is not None and quota < allowed:
        text = f"{allowed}, but the container may use {quota:g} of them: more threads than that wait for each other"
        return [Finding("cores", "warn", text, f"glmd-run --threads {max(1, int(quota))} ...")]
    return [Finding("cores", "ok", str(allowed))]


def _quota() -> float | None:
    """Cores' worth of time that the control group allows, of version 2 or 1; None without a limit."""
    try:
        if (file := CGROUP / "cpu.max").exists():
            limit, period = file.read_text().split()
        else:
            limit, period = ((CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(limit) / int(period) if int(limit) > 0 else None
    except (OSError, ValueError):  # no such file, or "max"
        return None

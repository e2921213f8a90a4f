"""The GPU: its driver, and whether CUDA can use it."""

from __future__ import annotations

from dataclasses import dataclass

from glmd_runtime.doctor.finding import Finding, remedied
from glmd_runtime.doctor.machine import nvidia_drivers
from glmd_runtime.doctor.probe import probe
from glmd_runtime.errors import GlmdError


@dataclass(frozen=True)
class Gpu:
    """What the drivers say of themselves, CUDA's devices, and why there is none of these, "" where there is one."""

    drivers: str
    devices: str
    why_not: str

    @property
    def there(self) -> bool:
        """Whether what needs a GPU could be made to run here."""
        return bool(self.drivers or self.devices)


def look_for_gpu() -> Gpu:
    try:
        found = probe("cuda")
    except GlmdError as error:
        found = {"why_not": str(error)}
    return Gpu(", ".join(nvidia_drivers()), ", ".join(found.get("devices", ())), found["why_not"])


def check_gpu(gpu: Gpu) -> list[Finding]:
    if not gpu.there:
        return [Finding("gpu", "-", "no driver of NVIDIA")]
    if gpu.why_not:
        return [remedied("gpu", "warn", f"{gpu.drivers}, but {gpu.why_not}")]
    return [Finding("gpu", "ok", "; ".join(filter(None, (gpu.devices, gpu.drivers))))]

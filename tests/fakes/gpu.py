"""A machine with a GPU and TensorRT, on a machine without: see site/tensorrt and site/cuda."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SITE = Path(__file__).parent / "site"


class FakeGpu:
    """What can be changed about the machine, and what was built on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._monkeypatch = monkeypatch
        self._builds = folder / "builds.txt"
        self.cache = folder / "cache" / "glmdnet"
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        monkeypatch.setenv("GLMD_FAKE_BUILDS", str(self._builds))
        monkeypatch.delenv("GLMD_PLUGIN_LIBRARY", raising=False)
        monkeypatch.setattr("glmd_runtime.backends.tensorrt._BUILT_PLUGINS", folder / "libglmd_plugins.so")
        monkeypatch.syspath_prepend(SITE)
        self.become("10.3.0", "8.7")

    def become(self, tensorrt: str, devices: str) -> None:
        """Another version of TensorRT, or other devices (their compute capabilities), as after a restart."""
        self._monkeypatch.setenv("GLMD_FAKE_TENSORRT", tensorrt)
        self._monkeypatch.setenv("GLMD_FAKE_CUDA", devices)
        _forget()
        self._monkeypatch.setattr("glmd_runtime.backends.tensorrt._loaded_plugins", {})

    def fault(self, name: str) -> None:
        self._monkeypatch.setenv("GLMD_FAKE_FAULT", name)

    def plugins(self, library: Path, content: bytes = b"glmd plugins") -> None:
        library.write_bytes(content)
        self._monkeypatch.setenv("GLMD_PLUGIN_LIBRARY", str(library))

    @property
    def builds(self) -> int:
        return len(self._builds.read_text().splitlines()) if self._builds.exists() else 0


@contextmanager
def fake_gpu(folder: Path) -> Iterator[FakeGpu]:
    """The real modules come back when the block ends."""
    real = {name: module for name, module in sys.modules.items() if _is_nvidia(name)}
    with pytest.MonkeyPatch.context() as monkeypatch:
        try:
            yield FakeGpu(monkeypatch, folder)
        finally:
            _forget()
            sys.modules.update(real)
    importlib.invalidate_caches()


def _forget() -> None:
    for name in [name for name in sys.modules if _is_nvidia(name)]:
        del sys.modules[name]


def _is_nvidia(name: str) -> bool:
    return name.split(".")[0] in ("cuda", "tensorrt")

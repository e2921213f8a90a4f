"""Cameras of this machine, and video."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from glmd_runtime.doctor.finding import Finding
from glmd_runtime.doctor.probe import probe
from glmd_runtime.errors import GlmdError
from glmd_runtime.install import install_command

DEV, SYS = Path("/dev"), Path("/sys/class/video4linux")
_ENCODERS = {"mpeg4": "--save", "ffv1": "--record"}  # FFmpeg's own; of others it takes what it has
# struct v4l2_fmtdesc of <linux/videodev2.h>: index, type, flags, description, pixel format, the rest. VIDIOC_ENUM_FMT.
_FMTDESC, _ENUM_FMT, _CAPTURE = struct.Struct("III32s4s16s"), 0xC0405602, 1
_READ_AS = {"Y16 ": "Y16", "GREY": "GREY"}  # what `?format=` takes, of the formats that keep counts


def check_cameras() -> list[Finding]:
    nodes = sorted(DEV.glob("video*"))
    return [_camera(node) for node in nodes] or [Finding("cameras", "-", "no /dev/video*; network cameras need none")]


def _camera(node: Path) -> Finding:
    name_file = SYS / node.name / "name"
    name = name_file.read_text().strip() if name_file.exists() else "camera"
    if not os.access(node, os.R_OK | os.W_OK):
        mend = "sudo usermod -aG video $USER, and log in again; in a container: --device --group-add video"
        return Finding(str(node), "warn", f"{name}; not ours to open", mend)
    try:
        formats = list(_formats(node))
    except OSError as error:
        busy = "is in use" if error.errno == errno.EBUSY else f"cannot be asked: {error.strerror}"
        return Finding(str(node), "warn", f"{name}, {busy}", f"fuser -v {node}")
    if not formats:
        return Finding(str(node), "-", f"{name}; gives no pictures")
    keeps = [f"?format={_READ_AS[code]}" for code in formats if code in _READ_AS]
    return Finding(str(node), "ok", f"{name}; {' '.join(f.strip() for f in formats)}; v4l2://{node}{''.join(keeps[:1])}")


def _formats(node: Path) -> Iterator[str]:
    """Four-character codes of the pictures that a device gives. Raises: OSError."""
    device = os.open(node, os.O_RDWR | os.O_NONBLOCK)
    try:
        for index in range(64):
            request = _FMTDESC.pack(index, _CAPTURE, 0, b"", b"", b"")
            try:
                answer = fcntl.ioctl(device, _ENUM_FMT, request)
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.ENOTTY):  # no more of them, or no camera at all
                    return
                raise
            yield _FMTDESC.unpack(answer)[4].decode("ascii", "replace")
    finally:
        os.close(device)


def check_video() -> list[Finding]:
    mend = install_command("video")
    if find_spec("av") is None:
        return [Finding("video", "-", "not installed; pictures, recorded arrays and sim:// need none", mend)]
    try:
        found = probe("encoders", *_ENCODERS)
    except GlmdError as error:
        return [Finding("video", "fail", f"PyAV does not work: {error}", mend)]
    text = f"PyAV {found['version']}, FFmpeg {found['ffmpeg']}"
    if missing := found["missing"]:
        without = " and ".join(f"{name} ({_ENCODERS[name]})" for name in missing)
        return [Finding("video", "warn", f"{text}, without the encoder {without}", "pip install --force-reinstall av")]
    return [Finding("video", "ok", text)]

"""Where frames come from, by address."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from glmd_runtime.errors import UsageError
from glmd_runtime.video.address import parse_address, redacted
from glmd_runtime.video.cameras import DeviceCamera, NetworkCamera, SimulatedCamera
from glmd_runtime.video.files import KINDS, PICTURE_SUFFIXES, open_files, read_picture
from glmd_runtime.video.live import STALENESS, Camera, LiveSource, Policy, check_live
from glmd_runtime.video.simulator import SceneSpec, parse_sim_uri, simulate
from glmd_runtime.video.source import OnStatus, Source

__all__ = ["PICTURE_SUFFIXES", "is_live", "open_source", "read_picture"]


def open_source(
    uri: str | Path, *, policy: Policy = "freshest", staleness: float = STALENESS, on_status: OnStatus | None = None
) -> Source:
    """Open a file, a directory, a pattern, the simulator or a camera; docs/sources.md has every address.

    Args:
        policy, staleness: of live sources, see `LiveSource`; files give every frame, as they are asked for.
        on_status: called with the present status and every one to come; of a camera, from its thread.
    Raises: SourceError when there is no such file, or nothing readable; UsageError for a wrong address or value. A
        camera that is not there raises nothing: it is tried again, and `status` says so. A picture or packet of a file
        that cannot be read raises SourceError when its turn comes.
    """
    check_live(policy, staleness)
    scheme, uri = _scheme_of(str(uri))
    if scheme == "sim":
        spec = parse_sim_uri(uri)
        if spec.live:
            return LiveSource(SimulatedCamera(spec, uri), policy=policy, staleness=staleness, on_status=on_status)
        return _told(_simulation(uri, spec), on_status)
    if scheme in _CAMERAS:
        keys, make = _CAMERAS[scheme]
        address = parse_address(uri, ("celsius", *keys))
        radiometry = address.values.pop("celsius", None)
        timeout = {key: address.values[key] for key in ("timeout",) if key in address.values}
        camera = make(address.location, address.name, **address.values)
        return LiveSource(
            camera, policy=policy, staleness=staleness, radiometry=radiometry, on_status=on_status, **timeout
        )
    if scheme:
        raise UsageError(f"A source is {KINDS}; got {redacted(uri)}.")
    return _told(open_files(uri), on_status)


def is_live(uri: str) -> bool:
    """Whether an address is a camera's, or that of a simulated one; Raises: UsageError for a wrong sim:// address."""
    scheme, uri = _scheme_of(uri)
    return scheme in _CAMERAS or (scheme == "sim" and parse_sim_uri(uri).live)


def _scheme_of(uri: str) -> tuple[str, str]:
    """In small letters, empty without one, and the address with it so."""
    given, mark, rest = uri.partition("://")
    return (given.lower(), f"{given.lower()}://{rest}") if mark else ("", uri)


def _told(source: Source, on_status: OnStatus | None) -> Source:
    if on_status:
        source.listen(on_status)
    return source


def _simulation(uri: str, spec: SceneSpec) -> Source:
    return Source(uri, spec.fps, spec.frames or None, simulate(spec))


def _network(location: str, name: str, **values: object) -> Camera:
    try:
        parts = urlsplit(location)
        whole = bool(parts.hostname if parts.scheme == "rtsp" and parts.port != 0 else parts.port)
    except ValueError:  # a port that is no number
        whole = False
    if not whole:
        raise UsageError(f"Expected rtsp://user:password@host:554/path or udp://@:5000; got {name}. Correct it.")
    return NetworkCamera(location, name, **values)  # type: ignore[arg-type]


def _device(location: str, name: str, **values: object) -> Camera:
    path = location.removeprefix("v4l2://")
    if not path.startswith("/"):
        raise UsageError(f"Expected v4l2:///dev/video0; got {location}. Correct it.")
    values["size_hw"] = values.pop("size", None)
    return DeviceCamera(path, name, **values)  # type: ignore[arg-type]


_CAMERAS: dict[str, tuple[tuple[str, ...], Callable[..., Camera]]] = {
    "rtsp": (("timeout", "transport"), _network),
    "udp": (("timeout",), _network),
    "v4l2": (("format", "size", "fps"), _device),
}

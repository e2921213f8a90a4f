"""The simulator by the clock, and V4L2 through a stand-in for OpenCV's capture."""

from __future__ import annotations

import time

import cv2
import numpy as np
import pytest

from glmd_runtime.errors import SourceError, UnsupportedError
from glmd_runtime.thermal import Radiometry
from glmd_runtime.video.cameras import DeviceCamera
from glmd_runtime.video.sources import open_source
from tests.runtime.test_live import PICTURE, wait_until
from tests.streams.cameras import FakeCapture


def test_the_simulator_as_a_camera() -> None:
    with open_source("sim://ground?seed=1&live=1&frames=20&fps=50&size=96x64", policy="every") as source:
        assert source.live and source.fps == 50
        began = time.monotonic()
        frames = list(source)
        assert time.monotonic() - began > 0.3  # paced by the clock
    assert frames[0].truth is not None and frames[0].image.dtype == np.uint16
    assert [f.index for f in frames] == list(range(len(frames)))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> type[FakeCapture]:
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    monkeypatch.setattr(FakeCapture, "opened", [])
    monkeypatch.setattr(FakeCapture, "pictures", [])
    monkeypatch.setattr(FakeCapture, "present", True)
    return FakeCapture


def test_a_thermal_core_on_usb(device: type[FakeCapture]) -> None:
    device.pictures = [PICTURE, PICTURE + 1]
    uri = "v4l2:///dev/null?format=Y16&size=160x120&fps=9&celsius=0.01,-273.15"
    with open_source(uri, policy="every") as source:
        stream = iter(source)
        frames = [next(stream), next(stream)]
        wait_until(lambda: source.status.state == "lost")  # unplugged
        wait_until(lambda: len(device.opened) > 1)
    assert [f.image[0, 0] for f in frames] == [7000, 7001] and frames[0].radiometry == Radiometry()
    first = device.opened[0]
    assert first.device == "/dev/null" and first.released
    assert first.set_to[cv2.CAP_PROP_FOURCC] == int.from_bytes(b"Y16 ", "little")
    assert first.set_to[cv2.CAP_PROP_CONVERT_RGB] == 0
    assert (first.set_to[cv2.CAP_PROP_FRAME_WIDTH], first.set_to[cv2.CAP_PROP_FRAME_HEIGHT]) == (160, 120)


def test_a_device_that_gives_another_format(device: type[FakeCapture]) -> None:
    device.pictures = [np.zeros((4, 6, 3), np.uint8)]
    with (
        pytest.raises(UnsupportedError, match=r"asked for Y16; got \(4, 6, 3\) uint8.*v4l2-ctl"),
        open_source("v4l2:///dev/null?format=Y16") as source,
    ):
        list(source)


def test_a_device_that_hands_on_an_empty_buffer_loses_a_frame(device: type[FakeCapture]) -> None:
    device.pictures = [PICTURE, PICTURE[:0], PICTURE + 1]
    with open_source("v4l2:///dev/null?format=Y16", policy="every") as source:
        stream = iter(source)
        assert [next(stream).image[0, 0] for _ in range(2)] == [7000, 7001] and source.drops["corrupt"] == 1


@pytest.mark.parametrize(("path", "expected"), [("/dev/video99", "not there"), ("/dev/null", "cannot be opened")])
def test_a_device_that_is_none(path: str, expected: str) -> None:
    """The real OpenCV, without a device."""
    with pytest.raises(SourceError, match=expected):
        next(DeviceCamera(path, path).shots())

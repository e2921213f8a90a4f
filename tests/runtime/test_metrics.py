"""What Prometheus reads."""

from __future__ import annotations

import socket
import sys
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from urllib.request import urlopen

import pytest

from glmd_runtime.errors import UnsupportedError, UsageError
from glmd_runtime.metrics import Metrics
from glmd_runtime.pipeline import Pipeline
from glmd_runtime.video.source import Source
from glmd_runtime.web.listen import Address, parse_address
from tests.runtime.streams import Camera, clip, detector, frame

HERE = Address("127.0.0.1", 0)


def test_what_was_counted_is_served(tiny_bundle: Path) -> None:
    prometheus = pytest.importorskip("prometheus_client.parser")
    camera = Camera('yard "1"\n', [frame(0)])
    camera.drops["corrupt"] = 3
    camera.end()
    sources = [camera, clip("clip", 4)]
    # A busy machine may be late for the camera's frame.
    with Pipeline(sources, detector(tiny_bundle), on_result=lambda r: metrics.add(r), policy="every") as pipeline:
        metrics = Metrics(pipeline.streams, HERE)
        with metrics:
            pipeline.run()
            with urlopen(f"http://127.0.0.1:{metrics.port}/metrics", timeout=20) as answer:
                text = answer.read().decode()
    values = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in prometheus.text_string_to_metric_families(text)
        for sample in family.samples
    }
    name = 'yard "1"\n'
    assert values["glmd_frames_total", "clip"] == 4 and values["glmd_frames_total", name] == 1
    assert values["glmd_drops_total", "corrupt", name] == 3
    assert values["glmd_detections_total", "clip", "person"] == 4
    assert values["glmd_source_state", "clip", "ended"] == 1 and values["glmd_source_state", "clip", "running"] == 0
    for stage in ("prepare", "detect", "total"):
        assert values["glmd_latency_seconds_count", "clip", stage] == 4
        assert values["glmd_latency_seconds_bucket", "+Inf", "clip", stage] == 4
        assert values["glmd_latency_seconds_sum", "clip", stage] > 0
    assert values["glmd_latency_seconds_count", "wait", name] == 1  # only cameras have one
    assert ("glmd_latency_seconds_count", "clip", "wait") not in values


def test_frames_of_a_closed_shutter_are_not_counted_as_detected_in(tiny_bundle: Path) -> None:
    prometheus = pytest.importorskip("prometheus_client.parser")
    frozen = Source("clip", 25.0, 4, (replace(frame(0), index=i, time=i / 25) for i in range(4)))
    with Pipeline([frozen], detector(tiny_bundle), on_result=lambda r: metrics.add(r)) as pipeline:
        metrics = Metrics(pipeline.streams, HERE)
        with metrics:
            pipeline.run()
            text = answer_to(metrics.port, "/metrics")[2]
    values = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in prometheus.text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert values["glmd_frames_total", "clip"] == 1 and values["glmd_held_total", "clip", "frozen"] == 3
    assert values["glmd_detections_total", "clip", "person"] == 1
    assert values["glmd_latency_seconds_count", "clip", "detect"] == 1


def answer_to(port: int, path: str, **headers: str) -> tuple[int, str, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.getheader("Content-Type") or "", answer.read().decode()


def test_who_may_read_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reaches the address, by a name that no one else can have given it."""
    pytest.importorskip("prometheus_client")
    monkeypatch.setenv("GLMD_VIEW_TOKEN", "which is of the page")
    with Metrics([], HERE) as metrics:
        assert answer_to(metrics.port, "/metrics")[0] == 200
        assert answer_to(metrics.port, "/metrics", Host="localhost:9100")[0] == 200
        assert answer_to(metrics.port, "/metrics", Host="evil.example")[0] == 403
        assert answer_to(metrics.port, "/metrics", Host="192.168.1.5")[0] == 403
        assert answer_to(metrics.port, "/")[0] == 404


def test_elsewhere_a_token_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("prometheus_client")
    everywhere, token = Address("0.0.0.0", 0), "sixteen characters"
    monkeypatch.delenv("GLMD_METRICS_TOKEN", raising=False)
    with pytest.raises(UsageError, match=r"0\.0\.0\.0:0, so it needs a token: set GLMD_METRICS_TOKEN.*--metrics 0\."):
        Metrics([], everywhere)
    monkeypatch.setenv("GLMD_METRICS_TOKEN", token)
    with Metrics([], everywhere) as metrics:
        for said, status in [(f"Bearer {token}", 200), (f"bearer {token}", 200), ("Bearer wrong", 403),
                             (f"Basic {token}", 403), ("Bearer", 403), ("", 403)]:
            assert answer_to(metrics.port, "/metrics", Authorization=said)[0] == status
        right = {"Authorization": f"Bearer {token}"}
        for host, status in [("192.168.1.5:9100", 200), (socket.gethostname(), 200), ("evil.example", 403)]:
            assert answer_to(metrics.port, "/metrics", Host=host, **right)[0] == status


def test_both_formats_of_prometheus() -> None:
    pytest.importorskip("prometheus_client")
    with Metrics([], HERE) as metrics:
        for accept, kind in [("", "text/plain"), ("application/openmetrics-text", "application/openmetrics-text")]:
            status, came, text = answer_to(metrics.port, "/metrics", Accept=accept)
            assert (status, came.split(";")[0]) == (200, kind) and text.endswith("# EOF\n") == (kind != "text/plain")


def test_an_address_that_is_taken() -> None:
    pytest.importorskip("prometheus_client")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"free address; 127\.0\.0\.1:{port}: .*Choose another"):
            Metrics([], Address("127.0.0.1", port))


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(UnsupportedError, match=r"pip install '/.*\[live\]'"):
        Metrics([], HERE)


@pytest.mark.parametrize(
    ("text", "host", "port", "local"),
    [
        ("8080", "127.0.0.1", 8080, True),
        ("localhost:0", "localhost", 0, True),
        ("127.0.0.2:80", "127.0.0.2", 80, True),
        ("[::1]:8080", "::1", 8080, True),
        ("0.0.0.0:9100", "0.0.0.0", 9100, False),
        ("[::]:9100", "::", 9100, False),
        ("camera.example:80", "camera.example", 80, False),
    ],
)
def test_addresses(text: str, host: str, port: int, local: bool) -> None:
    address = parse_address(text)
    assert (address.host, address.port, address.local) == (host, port, local)
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text", ["", "host", ":80", "host:", "host:port", "host:99999", "-1", "a@b:80", "h:80/path", "h:80?a", "[::1"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="Expected PORT or HOST:PORT"):
        parse_address(text)

"""What Prometheus reads: frames, drops, states and latencies of a pipeline's streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, get_args

from glmd_runtime.errors import UnsupportedError, UsageError
from glmd_runtime.install import install_command
from glmd_runtime.streams import Result, Stream
from glmd_runtime.video.status import State
from glmd_runtime.web.listen import Address
from glmd_runtime.web.server import WebHandler, WebServer, given_token

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

TOKEN_VARIABLE = "GLMD_METRICS_TOKEN"
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)  # seconds


class Metrics:
    """Serves `http://HOST:PORT/metrics` from threads of its own until `close`.

    Args:
        streams: of a Pipeline; give its results to `add`.
        address: where to listen.
        token: that is wanted, as "Authorization: Bearer ..."; None takes GLMD_METRICS_TOKEN from the environment. On an
            address that others can reach there must be one.

    glmd_frames_total{source}                     frames that were detected in
    glmd_drops_total{source,cause}                frames that were not
    glmd_detections_total{source,name}            objects found, by class
    glmd_latency_seconds{source,stage}            histogram; the stages of `Result.seconds`
    glmd_held_total{source,cause}                 frames of a closed shutter
    glmd_source_state{source,state}               1 for the state that the source is in, 0 for the others

    Raises: UnsupportedError without prometheus_client; UsageError where the address cannot be had, and for a token that
        is short, or lacking.
    """

    def __init__(self, streams: Sequence[Stream], address: Address, token: str | None = None) -> None:
        client = import_client()
        token = given_token(token, TOKEN_VARIABLE)
        if token is None and not address.local:
            raise UsageError(
                f"Others can reach --metrics {address}, so it needs a token: set {TOKEN_VARIABLE}, and give it to "
                f"Prometheus as its `authorization`; or let it listen on this machine alone: --metrics {address.port}."
            )
        registry = client.CollectorRegistry()
        registry.register(_StreamCollector(streams))
        self._latency = client.Histogram(
            "glmd_latency_seconds", "Seconds by stage.", ["source", "stage"], registry=registry, buckets=BUCKETS
        )
        self._detections = client.Counter(
            "glmd_detections", "Objects found.", ["source", "name"], registry=registry
        )
        self._server = _Server(address, registry, token)
        self.port = self._server.server_port

    def add(self, result: Result) -> None:
        if result.frame.held:  # nothing was detected in it: its detections are those of the frame before
            return
        for stage, seconds in result.seconds.items():
            self._latency.labels(result.stream, stage).observe(seconds)
        for name in result.detections.names:
            self._detections.labels(result.stream, name).inc()

    def close(self) -> None:
        self._server.close()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Server(WebServer):
    def __init__(self, address: Address, registry: CollectorRegistry, token: str | None) -> None:
        self.registry = registry
        super().__init__(address, _Handler, "--metrics", token)


class _Handler(WebHandler):
    server: _Server

    def get(self, path: str, query: dict[str, str]) -> None:
        from prometheus_client.exposition import choose_encoder

        if path != "/metrics":
            super().get(path, query)
        encode, kind = choose_encoder(self.headers.get("Accept", ""))
        self.send(HTTPStatus.OK, kind, encode(self.server.registry))


class _StreamCollector:
    """What streams count themselves, read when Prometheus asks."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._streams = streams

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        frames = CounterMetricFamily("glmd_frames", "Frames that were detected in.", labels=["source"])
        drops = CounterMetricFamily("glmd_drops", "Frames that were not.", labels=["source", "cause"])
        held = CounterMetricFamily("glmd_held", "Frames of a closed shutter.", labels=["source", "cause"])
        states = GaugeMetricFamily("glmd_source_state", "1 for the state of a source.", labels=["source", "state"])
        for stream in self._streams:
            frames.add_metric([stream.name], stream.frames)
            for cause, count in stream.drops.items():
                drops.add_metric([stream.name, cause], count)
            for cause, count in stream.held.items():
                held.add_metric([stream.name, cause], count)
            now = stream.state
            for state in get_args(State):
                states.add_metric([stream.name, state], state == now)
        yield from (frames, drops, held, states)


def import_client() -> Any:
    """prometheus_client, or an error that says how to get it."""
    try:
        import prometheus_client
    except ModuleNotFoundError as error:
        remedy = install_command("live")
        raise UnsupportedError(f"--metrics needs prometheus_client. Run: {remedy}") from error
    return prometheus_client

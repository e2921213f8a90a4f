"""A live source gives fresh frames, says what became of the others, comes back, and lets go at once."""

from __future__ import annotations

import random
import threading
import time
import tracemalloc
from itertools import pairwise, repeat
from typing import Any

import numpy as np
import pytest

from glmd_runtime.errors import UsageError
from glmd_runtime.thermal import Radiometry
from glmd_runtime.video.live import BACKOFF, CORRUPT_IN_A_ROW, Delay, LiveSource, Shot
from glmd_runtime.video.sources import open_source
from glmd_runtime.video.status import Status
from tests.streams.cameras import LOST, FastClock, ScriptedCamera, unsteady

PICTURE = np.full((4, 6), 7000, np.uint16)
BAD = Shot(None)


def wait_until(condition: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.005)


def run(*connections: list[Any], policy: Any = "every", **options: Any) -> tuple[list[Any], list[Status], LiveSource]:
    """All frames of a scripted camera, by a fast clock, and what was said."""
    clock, said = FastClock(), []
    camera = ScriptedCamera(*connections, clock=clock)
    with LiveSource(camera, policy=policy, clock=clock, on_status=said.append, **options) as source:
        frames = list(source)
    assert camera.opened == camera.closed
    return frames, said, source


def test_a_camera_from_its_first_frame_to_its_last() -> None:
    frames, said, source = run([PICTURE, 0.1, PICTURE + 1])
    assert [(f.index, f.time, f.image[0, 0]) for f in frames] == [(0, 0.0, 7000), (1, 0.1, 7001)] and source.live
    assert [s.state for s in said] == ["connecting", "running", "ended"]
    assert source.drops == {"late": 0, "stale": 0, "corrupt": 0} and source.status.state == "ended"


def test_no_frame_at_all() -> None:
    frames, said, _ = run([])
    assert frames == [] and said[-1].state == "ended"


def test_a_lost_camera_is_news_and_no_picture() -> None:
    frames, said, _ = run([PICTURE, LOST], [LOST], [PICTURE + 1])
    assert [(f.index, f.image.min()) for f in frames] == [(0, 7000), (1, 7001)]
    states = ["connecting", "running", "lost", "connecting", "lost", "connecting", "running", "ended"]
    assert [s.state for s in said] == states
    assert said[2].detail.startswith("the cable is out; again in 0.")
    assert said[2].attempt == 1 and said[4].attempt == 2


def test_a_frame_says_what_its_source_was_doing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmd_runtime.video.live.BACKOFF", (60.0, 60.0))
    never = threading.Event()
    with LiveSource(ScriptedCamera([PICTURE, never]), policy="every") as source:
        assert next(iter(source)).state == "running"
        never.set()
    with LiveSource(ScriptedCamera([PICTURE, PICTURE, LOST]), policy="every") as source:
        wait_until(lambda: source.status.state == "lost")
        stream = iter(source)
        assert [next(stream).state, next(stream).state] == ["lost", "lost"]
    with open_source("sim://air?frames=2&size=80x64") as scene:
        assert [frame.state for frame in scene] == ["running", "running"]


def test_time_goes_on_while_a_camera_is_lost() -> None:
    frames, said, _ = run([PICTURE, LOST], [3.0, PICTURE])
    pause = said[3].since - said[2].since
    assert frames[1].time == pytest.approx(3.0 + pause) and frames[1].captured == pytest.approx(3.0 + pause)


def test_pauses_double_up_to_the_most_and_vary() -> None:
    _, said, _ = run(*([LOST] for _ in range(12)))
    lost = [(a, b) for a, b in pairwise(said) if a.state == "lost"]
    first, most = BACKOFF
    for number, (before, after) in enumerate(lost):
        full = min(most, first * 2**number)
        assert full / 2 <= after.since - before.since <= full
    assert len({after.since - before.since for before, after in lost[-4:]}) == 4


def test_a_camera_that_ran_well_is_tried_soon_again() -> None:
    well = [item for _ in range(80) for item in (PICTURE, 0.1)]
    _, said, _ = run([LOST], [LOST], [LOST], [*well, LOST], [PICTURE])
    assert [s.attempt for s in said if s.state == "connecting"] == [1, 2, 3, 4, 1]


def test_a_camera_that_dies_after_each_first_frame_is_given_longer_and_longer_pauses() -> None:
    _, said, _ = run(*([PICTURE, LOST] for _ in range(6)))
    assert [s.attempt for s in said if s.state == "lost"] == [1, 2, 3, 4, 5, 6]


def test_what_cannot_be_decoded_is_counted_and_has_its_index() -> None:
    frames, _, source = run([BAD, PICTURE, BAD, BAD, PICTURE])
    assert [f.index for f in frames] == [1, 4] and frames[0].time == 0 and source.drops["corrupt"] == 3


def test_too_much_that_cannot_be_decoded_is_a_lost_camera() -> None:
    _, said, source = run([PICTURE, *[BAD] * CORRUPT_IN_A_ROW], [PICTURE])
    assert "what it sends cannot be decoded" in next(s.detail for s in said if s.state == "lost")
    assert source.drops["corrupt"] == CORRUPT_IN_A_ROW


def test_now_and_then_something_that_cannot_be_decoded_for_too_long() -> None:
    _, said, _ = run([PICTURE, *[BAD, 1.0] * 7, PICTURE], [PICTURE])
    assert [s.state for s in said].count("lost") == 1


def test_packets_that_never_become_a_picture_are_a_lost_camera() -> None:
    frames, said, source = run([*[..., 1.0] * 20, PICTURE], [..., PICTURE])
    assert len(frames) == 1 and frames[0].index == 0
    assert [s.state for s in said] == ["connecting", "lost", "connecting", "running", "ended"]
    assert sum(source.drops.values()) == 0


def test_a_camera_that_is_slow_to_connect_gets_its_time() -> None:
    _, said, _ = run([4.9, ..., 0.5, PICTURE])
    assert [s.state for s in said] == ["connecting", "running", "ended"]


def test_another_size_is_news_and_the_frames_have_it() -> None:
    frames, said, _ = run([PICTURE, PICTURE, PICTURE[:2, :3], PICTURE[:2, :3]])
    assert [f.image.shape for f in frames] == [(4, 6), (4, 6), (2, 3), (2, 3)]
    assert [s.detail for s in said if s.state == "running"] == ["6x4 uint16", "3x2 uint16, before 6x4 uint16"]


def test_temperatures_travel_with_the_frames() -> None:
    frames, _, _ = run([PICTURE], radiometry=Radiometry(0.1, -273.15))
    assert frames[0].radiometry.celsius(frames[0].image)[0, 0] == pytest.approx(700 - 273.15)


@pytest.mark.parametrize(
    "lie", [PICTURE[:0], PICTURE[:0, :0], PICTURE.astype(np.float32), np.zeros((4, 6, 2), np.uint8), PICTURE.tobytes()]
)
def test_what_is_no_picture_is_as_good_as_damaged(lie: Any) -> None:
    frames, _, source = run([PICTURE, Shot(lie), PICTURE + 1])
    assert [f.index for f in frames] == [0, 2] and source.drops["corrupt"] == 1
    _, said, _ = run([Shot(lie)] * CORRUPT_IN_A_ROW)
    assert any("cannot be decoded" in status.detail for status in said)


def test_a_camera_that_turns_to_eight_bits_has_no_temperatures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be those of intensities, below -270 degrees."""
    with pytest.raises(UsageError, match="needs 16-bit counts"):
        run([PICTURE, PICTURE.astype(np.uint8)], radiometry=Radiometry())


def test_temperatures_of_an_eight_bit_camera_are_refused_not_tried_again() -> None:
    with pytest.raises(UsageError, match="16-bit counts"):
        run([PICTURE.astype(np.uint8)], [PICTURE], radiometry=Radiometry())


def test_any_other_mistake_reaches_the_one_who_iterates() -> None:
    with pytest.raises(ZeroDivisionError):
        run([PICTURE, ZeroDivisionError()])


def test_a_listener_that_fails_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []  # not caplog: libraries that other tests load change how logging is set up
    monkeypatch.setattr("glmd_runtime.video.source._log.exception", lambda text, *values: said.append(text % values))

    def fail(status: Status) -> None:
        raise RuntimeError(status.state)

    clock = FastClock()
    with LiveSource(ScriptedCamera([PICTURE]), policy="every", on_status=fail, clock=clock) as source:
        assert len(list(source)) == 1
    assert said and said[0].startswith("on_status failed for Status(")


@pytest.mark.parametrize(
    ("options", "expected"), [({"policy": "newest"}, "freshest, every"), ({"staleness": 0}, "above 0")]
)
def test_a_wrong_policy(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        open_source("sim://ground?frames=1", **options)


# Fresh frames


def test_the_newest_frame_waits_and_the_others_are_late() -> None:
    taken, go = threading.Event(), threading.Event()
    pictures = [PICTURE + i for i in range(10)]
    with LiveSource(ScriptedCamera([PICTURE, taken, *pictures, go])) as source:
        stream = iter(source)
        next(stream)
        taken.set()
        wait_until(lambda: source.drops["late"] == 9)
        assert next(stream).image[0, 0] == 7009
        go.set()
    assert source.drops == {"late": 9, "stale": 0, "corrupt": 0}


def test_a_frame_that_waited_too_long_is_stale() -> None:
    clock, go = FastClock(), threading.Event()
    with LiveSource(ScriptedCamera([PICTURE, go, PICTURE + 1], clock=clock), clock=clock) as source:
        wait_until(lambda: source._waiting)  # it lies there while its reader does something else
        clock.advance(0.6)
        go_later = threading.Timer(0.05, go.set)
        go_later.start()
        assert [f.image[0, 0] for f in source] == [7001]
    assert source.drops == {"late": 0, "stale": 1, "corrupt": 0}


def held_up(delays: list[float]) -> list[Any]:
    """Pictures stamped every 0.1 s that arrive `delays` late."""
    script, at = [], 0.0
    for i, delay in enumerate(delays):
        arrival = max(0.1 * i + delay, at)
        script += [arrival - at, Shot(PICTURE + i, stamp=5000.0 + 0.1 * i)]
        at = arrival
    return script


def shown_fresh(script: list[Any]) -> tuple[list[Any], LiveSource]:
    """What would wait for its reader, without a reader's own pace."""
    clock, seen, go = FastClock(), [], threading.Event()
    with LiveSource(ScriptedCamera([go, *script], clock=clock), clock=clock) as source:
        source._put = seen.append
        go.set()
        source._thread.join(10)
    return seen, source


def test_a_burst_after_a_stall_is_old_whatever_time_it_comes() -> None:
    delays = [0.0] * 10 + [2.0 - 0.1 * i for i in range(20)] + [0.0] * 5
    seen, source = shown_fresh(held_up(delays))
    shown = [f.index for f in seen]
    assert set(shown).isdisjoint(range(10, 24)) and {1, 9, 26, 34} <= set(shown)
    assert source.drops["stale"] == 35 - len(shown)
    assert all(b.captured > a.captured for a, b in pairwise(seen))


def test_what_a_relay_stored_before_we_came_is_not_fresh() -> None:
    seen, source = shown_fresh(held_up([2.0 - 0.1 * i for i in range(20)] + [0.0] * 5))
    assert [f.index for f in seen] == list(range(21, 25)) and source.drops["stale"] == 21


def test_a_stream_that_stays_late_is_read_anew() -> None:
    late = [0.0] * 10 + [3.0] * 100
    _, said, _ = run_fresh(held_up(late), held_up([0.0] * 3))
    assert [s.detail.split(";")[0] for s in said if s.state == "lost"] == ["no fresh frame came for too long"]


def run_fresh(*connections: list[Any]) -> tuple[None, list[Status], LiveSource]:
    clock, said = FastClock(), []
    with LiveSource(ScriptedCamera(*connections, clock=clock), clock=clock, on_status=said.append) as source:
        source._thread.join(10)
    return None, said, source


def test_time_goes_on_where_a_camera_turns_out_to_have_been_late_from_the_start() -> None:
    frames, _, _ = run(held_up([1.0, 0.5, 0.0, 0.0]))
    assert all(b.time > a.time for a, b in pairwise(frames))
    assert frames[3].time - frames[2].time <= 0.1 + 1e-3


@pytest.mark.parametrize("drift", [-5e-4, 0.0, 5e-4])
def test_clocks_that_drift_apart_make_nothing_late(drift: float) -> None:
    delay = Delay()
    assert max(delay(arrived, 777 + arrived * (1 - drift)) for arrived in range(86400)) < 1e-3


def test_a_camera_whose_clock_starts_anew_is_not_late() -> None:
    delay = Delay()
    assert delay(10.0, 5000.0) == 0 and delay(10.1, 0.0) == 0 and delay(10.3, 0.1) == pytest.approx(0.1, abs=1e-3)


# Every frame


def test_every_frame_is_given_and_the_camera_waits_for_its_reader() -> None:
    pictures = [np.full((2, 2), i, np.uint16) for i in range(200)]
    with LiveSource(ScriptedCamera(pictures), policy="every") as source:
        time.sleep(0.05)
        assert len(source._waiting) == 32  # the bound
        assert [f.image[0, 0] for f in source] == list(range(200))
    assert sum(source.drops.values()) == 0


# Closing


def stuck(*_: object) -> Any:
    threading.Event().wait(5)  # as a library's call that nothing interrupts
    yield Shot(PICTURE)


@pytest.mark.parametrize("state", ["connecting", "empty", "running", "full", "lost", "stuck", "ended"])
def test_close_returns_within_a_second(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    script: dict[str, Any] = {
        "connecting": [never],
        "empty": repeat(...),
        "running": [PICTURE, never],
        "full": [PICTURE] * 100,
        "lost": [LOST],
    }
    camera = ScriptedCamera(script.get(state, []))
    if state == "stuck":
        monkeypatch.setattr(camera, "shots", stuck)
    if state == "lost":
        monkeypatch.setattr("glmd_runtime.video.live.BACKOFF", (60.0, 60.0))
    source = LiveSource(camera, policy="every")
    wanted = {"full": "running", "stuck": "connecting", "empty": "connecting"}.get(state, state)
    wait_until(lambda: source.status.state == wanted)
    began = time.monotonic()
    source.close()
    assert time.monotonic() - began < 1.0
    assert source.status.state == "ended" and list(source) == []
    assert source.status.detail == ("the camera has no more" if state == "ended" else "closed")
    never.set()
    source._thread.join(10)
    assert not source._thread.is_alive()
    source.close()


def test_close_from_another_thread_ends_the_iteration() -> None:
    never = threading.Event()
    source = LiveSource(ScriptedCamera([PICTURE, never]))
    threading.Timer(0.1, source.close).start()
    assert len(list(source)) == 1
    never.set()


def test_close_from_the_listener() -> None:
    made: list[LiveSource] = []
    never = threading.Event()

    def on_status(status: Status) -> None:
        if status.state == "running":
            wait_until(lambda: made)
            made[0].close()

    made.append(LiveSource(ScriptedCamera([PICTURE, never]), policy="every", on_status=on_status))
    assert len(list(made[0])) <= 1
    never.set()


# Long runs


def test_a_day_in_a_moment() -> None:
    clock, said = FastClock(), []
    camera = ScriptedCamera(*unsteady(24, 2, random.Random(1)), clock=clock)
    count, last = 0, -1.0
    with LiveSource(camera, policy="every", clock=clock, on_status=said.append) as source:
        for frame in source:
            assert frame.time > last
            count, last = count + 1, frame.time
    assert 24 * 3600 < clock.now() < 25 * 3600
    assert count + source.drops["corrupt"] == frame.index + 1 and count > 24 * 3600 * 2 * 0.99
    states = [s.state for s in said]
    assert states.count("lost") >= 10 and states[-1] == "ended"
    assert all(b.since - a.since <= 30 for a, b in pairwise(said) if a.state == "lost")


def test_memory_stays_flat_over_fifty_thousand_frames() -> None:
    pictures = (np.full((120, 160), i % 65536, np.uint16) for i in range(50_000))
    sizes = {}
    with LiveSource(ScriptedCamera(pictures), policy="every") as source:
        tracemalloc.start()
        try:
            for frame in source:
                if frame.index in (1_000, 49_000):
                    sizes[frame.index] = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
    assert frame.index == 49_999
    assert sizes[49_000] - sizes[1_000] < 33 * 160 * 120 * 2  # no more than what may wait

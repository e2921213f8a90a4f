"""What the benchmarks are to reach, and what they reached: one row an aim, from the committed results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.common import RESULTS

Row = Mapping[str, Any]
Results = Mapping[str, Sequence[Row]]
NAMES = ("latency", "roofline", "startup", "scaling", "published", "peers")
SCORE, PIXELS = 1e-3, 0.05  # how far detections of the same network may be apart


class Reached(NamedTuple):
    """met: None where nothing was measured that could be judged."""

    said: str
    met: bool | None


class Aim(NamedTuple):
    what: str
    wanted: str
    reached: Callable[[Results], Reached]


NOT_MEASURED = Reached("not measured", None)


def load_results() -> Results:
    """The rows of every benchmark by its name; none of what was not measured yet."""
    files = {name: sorted(RESULTS.glob(f"{name}_*.json")) for name in NAMES}
    return {name: [row for path in files[name] for row in json.loads(path.read_text())["rows"]] for name in NAMES}


def engines(results: Results, precision: str = "") -> list[Row]:
    """Engines that ran, the fastest first; of one precision, or of all."""
    rows = [row for row in results["latency"] if row.get("engine") and row["status"] == "run"]
    return sorted((row for row in rows if precision in ("", row["precision"])), key=lambda row: row["run"]["p50_ms"])


def rate(results: Results, wanted: float) -> Reached:
    """The fastest INT8 engine; it counts only if its accuracy was measured, and is within a point."""
    if not (fastest := engines(results, "int8")):
        return NOT_MEASURED
    row = fastest[0]
    fps, cost = 1000 / row["run"]["p50_ms"], ap50_cost(results, row)
    said = f"{fps:.1f} ({row['subject']}), AP50 " + ("not measured" if cost is None else f"{-cost:+.2f} points")
    if (sets := changes(results, row)):
        said += f" on the mean of {', '.join(f'{name} {change:+.1f}' for name, change in sets.items())}"
    return Reached(said, fps >= wanted and cost is not None and cost <= 1)


def ap50_cost(results: Results, row: Row) -> float | None:
    """Points of AP50 that an engine finds less than the float32 one does."""
    exact = [one["accuracy"]["ap50"] for one in engines(results, "fp32") if one["accuracy"]]
    return max(exact) - row["accuracy"]["ap50"] if exact and row["accuracy"] else None


def changes(results: Results, row: Row) -> dict[str, float]:
    """Set -> points of AP50 that an engine finds more than a float32 one does."""
    exact = next((one["accuracy"] for one in engines(results, "fp32") if one["accuracy"]), {})
    before, after = exact.get("sets", {}), row["accuracy"].get("sets", {})
    return {name: after[name] - before[name] for name in before if name in after}


def over_eager(results: Results) -> Reached:
    if not (fastest := engines(results, "int8")):
        return NOT_MEASURED
    gain = fastest[0]["faster"]["run"]
    return Reached(f"{spread(gain)} ({fastest[0]['subject']})", gain["median"] >= 6)


def published(results: Results) -> Reached:
    rows = [row for row in results["published"] if row["subject"].endswith(" fp32")]
    if not rows:
        return NOT_MEASURED
    row = max(rows, key=lambda one: one["faster"]["median"])
    same = not row["unmatched"] and row["score_difference"] <= SCORE and row["box_difference_px"] <= PIXELS
    apart = f"{row['score_difference']:.1e} in score, {row['box_difference_px']:.3f} px, {row['unmatched']} unpaired"
    return Reached(f"{spread(row['faster'])}, {apart}", row["faster"]["median"] >= 1.3 and same)


def outside(results: Results) -> Reached:
    """Of the fastest engine: the share is the largest there."""
    if not (fastest := engines(results)):
        return NOT_MEASURED
    row = fastest[0]
    ms, share = row["outside"]["p50_ms"], row["outside_share"]["median"]
    return Reached(f"{ms:.2f} ms, {100 * share:.1f}% ({row['subject']})", ms <= 2 and share <= 0.05)


def roofline(results: Results) -> Reached:
    rows = [row for row in results["roofline"] if row["stage"] == "dense parts"]
    if not rows:
        return NOT_MEASURED
    said = ", ".join(f"{row['precision']} {100 * row['roofline_share']:.0f}%" for row in rows)
    return Reached(said, all(row["roofline_share"] >= 0.85 for row in rows))


def started(key: str, limit_ms: float) -> Callable[[Results], Reached]:
    """The slowest subject's median."""
    def reached(results: Results) -> Reached:
        values = {row["subject"]: row[key]["p50_ms"] for row in results["startup"] if key in row}
        if not values:
            return NOT_MEASURED
        slowest = max(values, key=lambda name: values[name])
        return Reached(f"{values[slowest] / 1000:.2f} s ({slowest})", values[slowest] < limit_ms)

    return reached


def memory(results: Results) -> Reached:
    peaks = {row["subject"]: row["peak_mib"] for row in results["startup"] if "peak_mib" in row}
    if not peaks:
        return NOT_MEASURED
    largest = max(peaks, key=lambda name: peaks[name])
    megabytes = peaks[largest] * 2**20 / 1e6
    return Reached(f"{megabytes:.0f} MB ({largest})", megabytes < 400)


def spread(gain: Mapping[str, float]) -> str:
    return f"{gain['median']:.2f} times ({gain['p10']:.2f} to {gain['p90']:.2f})"


_LIGHT = "thermal_lite0, 640x512, `Detector.run`, two threads, INT8, AP50 within a point of float32"
AIMS = (
    Aim(_LIGHT, ">= 30 frames/s", lambda results: rate(results, 30)),
    Aim("the same, later", ">= 60 frames/s", lambda results: rate(results, 60)),
    Aim("the same against its own PyTorch eager, in one run", ">= 6 times", over_eager),
    Aim("ResNet-101, 800x1000, 1000 proposals, float32, the same detections, against our PyTorch eager", ">= 1.3 times",
        published),
    Aim("everything that is not the network", "<= 2 ms, <= 5%", outside),
    Aim("the dense parts of the network against the roofline", ">= 85%", roofline),
    Aim("`import glmd_runtime`", "< 0.3 s", started("import", 300)),
    Aim("first frame of a cold `Detector`", "< 1 s", started("first_frame", 1000)),
    Aim("peak memory of thermal_lite0", "< 400 MB", memory),
)

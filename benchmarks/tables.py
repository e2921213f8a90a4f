"""The committed results as tables of a Markdown document."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.aims import AIMS, Results, Row, spread

Lines = list[str]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Lines:
    if not rows:
        return ["Not measured yet."]
    return [_line(header), _line(["---"] * len(header)), *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def aims(results: Results) -> Lines:
    said = {True: "met", False: "**missed**", None: ""}
    reached = [(aim, aim.reached(results)) for aim in AIMS]
    return table(["aim", "wanted", "reached", ""], [[a.what, a.wanted, r.said, said[r.met]] for a, r in reached])


def latency(results: Results) -> Lines:
    header = ["subject", "precision", "`Detector.run` p50, p90, p99 ms", "network p50 ms", "not the network, ms",
              "as fast as eager", "AP50"]
    return table(header, [_latency_cells(row) for row in results["latency"] if "network" in row or "reason" in row])


def _latency_cells(row: Row) -> list[str]:
    named = [row["subject"], row["precision"]]
    if row["status"] == "not_run":
        return [*named, f"not run: {row['reason']}", "", "", "", ""]
    run, outside = row["run"], row["outside"]
    share = 100 * row["outside_share"]["median"]
    points = f"{row['accuracy']['ap50']:.1f}" if row["accuracy"] else ""
    return [*named, f"{run['p50_ms']:.1f}, {run['p90_ms']:.1f}, {run['p99_ms']:.1f}", f"{row['network']['p50_ms']:.1f}",
            f"{outside['p50_ms']:.2f} ({share:.1f}%)", spread(row["faster"]["run"]), points]


def host(results: Results) -> Lines:
    """What a Detector does beside the network, each part alone."""
    rows = [row for row in results["latency"] if "network" not in row and "run" in row]
    return table(["part", "p50 ms", "p90 ms"],
                 [[row["subject"], f"{row['run']['p50_ms']:.2f}", f"{row['run']['p90_ms']:.2f}"] for row in rows])


def roofline(results: Results) -> Lines:
    rows = [row for row in results["roofline"] if row["stage"] != "peak"]
    header = ["engine", "stage", "GMAC", "MB", "ms", "GFLOP/s", "roofline, ms", "of the roofline", "INT8"]
    return table(header, [_stage_cells(row) for row in rows])


def _stage_cells(row: Row) -> list[str]:
    numbers = [f"{row['gmac']:.3f}", f"{row['mb']:.1f}", f"{row['ms']:.2f}"]
    head = [f"{row['engine']}, {row['precision']}", row["stage"], *numbers]
    if not row["gmac"]:
        return [*head, "", "", "", ""]
    rates = [f"{row['gflops']:.0f}", f"{row['roofline_ms']:.2f}", f"{100 * row['roofline_share']:.0f}%"]
    return [*head, *rates, f"{100 * row['int8_share']:.0f}%"]


def peaks(results: Results) -> Lines:
    rows = [row for row in results["roofline"] if row["stage"] == "peak"]
    header = ["fp32, GFLOP/s", "bf16, GFLOP/s", "int8, GOP/s", "memory in the cache, GB/s", "beyond it, GB/s"]
    return table(header, [[*(f"{row['gflops'][name]:.0f}" for name in ("fp32", "bf16", "int8")),
                           f"{row['cached_gb_s']:.0f}", f"{row['memory_gb_s']:.0f}"] for row in rows])


def startup(results: Results) -> Lines:
    header = ["subject", "import, s", "open, s", "first frame, s", "both, s", "peak memory, MiB"]
    keys = ("import", "open", "first", "first_frame")
    return table(header, [
        [row["subject"], *(f"{row[key]['p50_ms'] / 1000:.2f}" if key in row else "" for key in keys),
         f"{row['peak_mib']:.0f}" if "peak_mib" in row else ""]
        for row in results["startup"]
    ])


def scaling(results: Results) -> Lines:
    header = ["grows", "to", "engine", "p50, p90 ms a frame"]
    return table(header, [
        [row["grows"], row["subject"], row["engine"], f"{row['run']['p50_ms']:.1f}, {row['run']['p90_ms']:.1f}"]
        for row in results["scaling"]
    ])


def published(results: Results) -> Lines:
    header = ["subject", "p50 s", "as fast as eager", "unpaired of detections", "largest difference of pairs",
              "error of trunk, neck, objectness, deltas", "accuracy"]
    return table(header, [
        [row["subject"], f"{row['run']['p50_ms'] / 1000:.2f}", spread(row["faster"]),
         f"{row['unmatched']} of {row['detections']}",
         f"{row['score_difference']:.1e} in score, {row['box_difference_px']:.3f} px",
         ", ".join(f"{error:.0e}" for error in row["stages"].values()), row["accuracy"]]
        for row in results["published"]
    ])


def peers(results: Results) -> Lines:
    header = ["detector", "licence", "p50, p90 ms", "GLMDNet's eager is as fast"]
    return table(header, [_peer_cells(row) for row in results["peers"]])


def _peer_cells(row: Row) -> list[str]:
    named = [row["subject"], row["licence"]]
    if row["status"] == "not_run":
        return [*named, f"not run: {row['reason']}", ""]
    return [*named, f"{row['run']['p50_ms']:.1f}, {row['run']['p90_ms']:.1f}", spread(row["slower"])]


# Below a table its plot, once there is one.
CAPTIONS = {
    "latency": "Bars of the median milliseconds of PyTorch and of each engine",
    "roofline": "Rate of each stage over its operations a byte, under the roofs of memory and of each precision",
    "scaling": "Milliseconds a frame over proposals, megapixels and cameras",
}


def section(name: str, results: Results) -> Lines:
    """A table and its plot."""
    lines = TABLES[name](results)
    plotted = name in CAPTIONS and results[name]
    return [*lines, "", f"![{CAPTIONS[name]}](images/{name}.svg)"] if plotted else lines


TABLES: dict[str, Callable[[Results], Lines]] = {
    function.__name__: function
    for function in (aims, latency, host, roofline, peaks, startup, scaling, published, peers)
}

"""What an engine costs in accuracy: AP on labelled pictures, or what INT8 finds again on pictures without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from glmd_export.quantize import CalibrationImages, agreement_row
from glmd_runtime.bundle import Bundle
from glmd_runtime.detections import Detections
from glmd_runtime.detector import Detector
from glmd_runtime.verify_report import VerifyRow
from glmd_runtime.video.sources import read_picture
from glmd_train.checkpoint import Checkpoint
from glmd_train.data.coco import Record, load_coco
from glmd_train.evaluate import EVAL_SCORE, detect, score, torch_predict
from glmd_train.scores.intervals import ap_difference

Step = Callable[[str], None]
# Points of AP that a change of library or of precision may cost; INT8 has a bound of the user's.
MAX_DROP = 0.2


def accuracy_rows(
    bundle: Bundle, checkpoint: Checkpoint, rows: Sequence[VerifyRow], annotations: Sequence[Path], max_drop: float,
    step: Step,
) -> Iterator[VerifyRow]:
    """AP of each engine that ran here against PyTorch's, on each COCO file.

    Args: bundle, its verification may still be missing; rows, what was compared so far; max_drop, points of AP that
        INT8 may cost; step, told what begins.
    Returns: rows with AP and AP50 in points (0..100), the drop, and its 95% interval over the pictures. Failed when AP
        drops by more than `max_drop`, or MAX_DROP in other precisions.
    """
    for path in annotations:
        name = f"{path.absolute().parent.name}/{path.stem}"
        step(f"run PyTorch on {name}")
        records = load_coco(path, checkpoint.class_names)
        expected = detect(torch_predict(checkpoint), records)
        for engine, backend in ran(rows):
            step(f"run {engine} on {backend} on {name}")
            with Detector(bundle.path / engine, backend=backend, score_threshold=EVAL_SCORE) as detector:
                came = detect(detector.run, records)
            precision = bundle.manifest.engines[engine]
            allowed = max_drop if precision == "int8" else MAX_DROP
            row = _accuracy(records, expected, came, checkpoint.class_names, allowed)
            yield VerifyRow(engine, backend, precision, f"accuracy {name}", *row)


def _accuracy(
    records: list[Record], expected: list[Detections], came: list[Detections], names: tuple[str, ...], max_drop: float
) -> tuple[str, str, dict[str, float]]:
    """(status, reason, metrics) of one engine on one set."""
    before, after = (score(records, found, names) for found in (expected, came))
    change = ap_difference(records, expected, came)
    ap, drop = 100 * after.mean("ap"), 100 * (before.mean("ap") - after.mean("ap"))
    metrics = {"ap_pytorch": 100 * before.mean("ap"), "ap": ap, "ap50": 100 * after.mean("ap50"), "drop": drop,
               "drop_low": -100 * change.high, "drop_high": -100 * change.low}
    said = [f"AP {ap:.2f} instead of {metrics['ap_pytorch']:.2f}, expected a drop <= {max_drop:g}"]
    dropped = drop > max_drop
    left_out = f"left out, as the model does not have them: {', '.join(after.left_out)}" if after.left_out else ""
    reason = "; ".join(filter(None, (*(said if dropped else ()), left_out)))
    return "failed" if dropped else "passed", reason, metrics


def agreement_rows(
    bundle: Bundle, checkpoint: Checkpoint, rows: Sequence[VerifyRow], images: CalibrationImages, step: Step
) -> Iterator[VerifyRow]:
    """Without labels: whether each INT8 engine finds again what PyTorch detects in the calibration pictures."""
    frames = [read_picture(path) for path in images.files]
    step("run PyTorch on the calibration pictures")
    predict = torch_predict(checkpoint)
    expected = [predict(frame) for frame in frames]
    for engine, backend in ran(rows):
        if bundle.manifest.engines[engine] == "int8":
            step(f"run {engine} on {backend} on the calibration pictures")
            with Detector(bundle.path / engine, backend=backend, score_threshold=EVAL_SCORE) as detector:
                yield agreement_row(engine, backend, expected, [detector.run(frame) for frame in frames])


def ran(rows: Sequence[VerifyRow]) -> list[tuple[str, str]]:
    """(engine file, backend) of what gave answers here."""
    return [(row.engine, row.backend) for row in rows if row.stage == "raw" and row.status != "not_run"]

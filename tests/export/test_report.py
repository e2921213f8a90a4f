"""The report says the same as table, as JUnit and as picture, and none of them shows green what did not run."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from glmd_export.report import plot_scores, print_report, to_junit
from glmd_runtime.errors import UnsupportedError
from glmd_runtime.verify_report import VerifyReport, VerifyRow

WHY = "tensorrt is not installed. Run: pip install '.[tensorrt]'"
PASSED = VerifyRow("model.onnx", "onnxruntime", "fp32", "raw", "passed", metrics={"score_max": 1.25e-05})
FAILED = VerifyRow("model.onnx", "onnxruntime", "fp32", "detections", "failed", "unmatched 0.5, expected <= 0 &\x1b[0m")
ABSENT = [VerifyRow("model.fp16.onnx", "tensorrt", "fp16", s, "not_run", WHY) for s in ("trunk", "neck", "raw")]
REPORT = VerifyReport((PASSED, FAILED, *ABSENT))


def test_the_table_has_every_verdict_and_the_counts(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(REPORT, title="a [b] c")
    said = capsys.readouterr().out
    assert "a [b] c" in said and "score_max 1.25e-05" in said and "unmatched 0.5" in said
    assert "pip install '.[tensorrt]'" in said  # brackets are text
    assert said.count("tensorrt is not installed") == 1 and "trunk to raw" in said
    assert "failed: 1 passed, 1 failed, 3 not run" in said
    remarked = replace(PASSED, reason="left out: boat")
    print_report(VerifyReport((remarked,)), title="")
    said = capsys.readouterr().out
    assert "passed: 1 passed, 0 failed, 0 not run" in said and "score_max 1.25e-05, left out: boat" in said
    assert "left out: boat\nscore_max" in to_junit(VerifyReport((remarked,)))


def test_junit_has_one_testcase_a_row() -> None:
    suite = ElementTree.fromstring(to_junit(REPORT))
    assert suite.attrib == {"name": "glmdnet", "tests": "5", "failures": "1", "skipped": "3"}
    passed, failed, *absent = suite
    assert (passed.get("classname"), passed.get("name")) == ("model.onnx.onnxruntime", "raw")
    assert [child.tag for child in passed] == ["system-out"] and passed[0].text == "score_max 1.25e-05"
    assert failed[0].tag == "failure" and failed[0].get("message") == "unmatched 0.5, expected <= 0 &[0m"
    assert [(case[0].tag, case[0].get("message")) for case in absent] == [("skipped", WHY)] * 3


def test_what_did_not_run_is_nowhere_green(capsys: pytest.CaptureFixture[str]) -> None:
    preprocess = VerifyRow("preprocess", "numpy", "fp32", "preprocess", "passed")
    for report in (VerifyReport((preprocess, *ABSENT)), VerifyReport(())):
        suite = ElementTree.fromstring(to_junit(report))
        assert suite.get("failures") == "1" and "no engine ran" in suite[-1][0].get("message", "")
        print_report(report, title="")
        assert "no engine ran here" in capsys.readouterr().out
    assert ElementTree.fromstring(to_junit(VerifyReport((PASSED, *ABSENT)))).get("failures") == "0"


@pytest.mark.parametrize("engines", [0, 1, 2, 4])
def test_a_plot_has_one_panel_an_engine(engines: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pairs = {f"model{i}.onnx on onnxruntime": rng.uniform(0, 1, (50, 2)) for i in range(engines)}
    plot_scores(tmp_path / "scores.png", pairs)
    picture = cv2.imread(str(tmp_path / "scores.png"))
    rows, columns = 2 if engines > 3 else 1, min(max(engines, 1), 3)
    assert picture.shape[1] / picture.shape[0] == pytest.approx(4.2 * columns / (4.4 * rows), rel=0.02)
    blue = (picture[..., 0].astype(int) - picture[..., 2] > 30).sum()  # points are blue
    assert blue > 300 * engines if engines else blue == 0


def test_an_engine_without_pairs_has_an_empty_panel(tmp_path: Path) -> None:
    plot_scores(tmp_path / "scores.png", {"model.onnx on onnxruntime": np.zeros((0, 2))})
    assert (tmp_path / "scores.png").stat().st_size > 1000


def test_without_matplotlib_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UnsupportedError, match="pip install matplotlib"):
        plot_scores(tmp_path / "scores.png", {})
    assert not (tmp_path / "scores.png").exists()

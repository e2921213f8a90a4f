"""glmd-tune: what is tried, what is chosen on given measurements, what is written, and what it says."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain, cycle, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmd_export import tune, tune_cli
from glmd_export.exporter import Draft, Recipe, export_bundle
from glmd_export.tuning import latency, sweep
from glmd_export.tuning.front import AP_NOISE, Candidate, Setting, choose, dominates, front
from glmd_export.tuning.latency import Latency, measure
from glmd_export.tuning.sweep import Request, Source, Sweep, Trial
from glmd_runtime import Detector, backends, open_bundle, verify_bundle
from glmd_runtime.bundle import Bundle, write_bundle
from glmd_runtime.enroll import EnrolledSpec
from glmd_runtime.errors import CheckpointError, GlmdError, ParityError, UnsupportedError
from glmd_runtime.manifest import GraphSpec
from glmd_runtime.tuned import this_machine
from glmd_runtime.verify_report import VerifyReport, VerifyRow
from glmd_train.checkpoint import Checkpoint, load_checkpoint
from tests import tiny
from tests.export.conftest import CLASS_NAMES, SIZE_HW

LIMITLESS = 1e6  # milliseconds


def setting(
    proposals: int = 50, size_hw: tuple[int, int] = (64, 80), precision: str = "fp32", backend: str = "openvino",
    threads: int | None = 1,
) -> Setting:
    engine = "model.onnx" if precision == "fp32" else f"{backend}.{precision}"
    return Setting(proposals, size_hw, precision, engine, backend, threads)


def candidate(ms: float, ap: float, proposals: int = 50) -> Candidate:
    return Candidate(setting(proposals), Latency(ms, 1.1 * ms, 0.9 * ms), ap, 2 * ap)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 300)), max_size=12), st.integers(0, 50))
def test_the_choice_is_within_the_budget_not_dominated_and_as_accurate_as_any(
    points: list[tuple[int, int]], budget: int
) -> None:
    candidates = [candidate(ms, ap / 1000) for ms, ap in points]
    within = [c for c in candidates if c.latency.median_ms <= budget]
    chosen = choose(candidates, budget)
    assert (chosen is None) == (not within)
    if chosen:
        assert chosen in within and chosen.ap >= max(c.ap for c in within) - AP_NOISE
        assert not any(dominates(other, chosen) for other in candidates)
        assert chosen in front(candidates)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=12))
def test_on_the_front_more_time_buys_more_accuracy(points: list[tuple[int, int]]) -> None:
    candidates = [candidate(ms, ap / 10) for ms, ap in points]
    best = front(candidates)
    for faster, slower in pairwise(best):
        assert faster == slower or (faster.latency.median_ms < slower.latency.median_ms and faster.ap < slower.ap)
    assert all(c in best or any(dominates(other, c) for other in best) for c in candidates)


@pytest.mark.parametrize(
    ("points", "budget", "chosen"),
    [
        ([], 30, None),
        ([(31, 0.9)], 30, None),
        ([(30, 0.1)], 30, 0),
        ([(10, 0.30), (29, 0.35), (31, 0.40)], 30, 1),
        ([(10, 0.349), (29, 0.350)], 30, 0),  # within noise: the faster
        ([(10, 0.347), (29, 0.350)], 30, 1),
        ([(10, 0.30), (10, 0.301)], 30, 1),
        ([(10, 0.0), (20, 0.0)], 30, 0),
    ],
)
def test_the_choice(points: list[tuple[float, float]], budget: float, chosen: int | None) -> None:
    candidates = [candidate(*point) for point in points]
    assert choose(candidates, budget) == (None if chosen is None else candidates[chosen])


def test_what_is_measured_takes_turns_and_the_first_of_each_turn_does_not_count(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    now, said = [0.0], []
    seconds = {name: chain([9.0] * 3, cycle([9.0, own, 2 * own])) for name, own in (("a", 0.010), ("b", 0.020))}

    def run(name: str) -> None:
        said.append(name)
        now[0] += next(seconds[name])

    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])
    found = measure({"a": lambda: run("a"), "b": lambda: run("b")}, rounds=4)
    assert "".join(said) == "aaabbb" * 5
    assert (found["a"].fastest_ms, found["a"].median_ms, found["b"].p90_ms) == pytest.approx((10, 15, 40))


# ---- which are measured ----

def trials(bundle: Bundle, *rows: tuple[Setting, float, bool]) -> list[Trial]:
    """(setting, fastest milliseconds, whether it is the given bundle's)"""
    draft = Draft(bundle, None, Recipe(), (), {})  # type: ignore[arg-type]
    return [Trial(one, Source(bundle, None if own else draft), Latency(ms, ms, ms)) for one, ms, own in rows]


@pytest.fixture(scope="module")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.bundle(tmp_path_factory.mktemp("tiny") / "tiny.glmd")


def test_contenders_are_near_the_fastest_of_their_network_and_may_be_within_the_budget(tiny_bundle: Bundle) -> None:
    own = setting(150, (512, 640))
    tried = trials(
        tiny_bundle,
        (replace(own, threads=2), 60, True), (replace(own, threads=1), 90, True),
        (setting(50, threads=2), 10, False), (setting(50, threads=1), 12, False),
        (setting(50, backend="onnxruntime"), 13, False),
        (setting(100), 36, False), (setting(150), 38, False),
    )
    assert [t.latency.fastest_ms for t in tune.contenders(tried, 30)] == [60, 10, 12, 36]
    assert [t.latency.fastest_ms for t in tune.contenders(tried, 5)] == [60, 10, 12]  # the fastest, to be named


def test_int8_that_is_no_faster_is_not_measured(tiny_bundle: Bundle) -> None:
    tried = trials(
        tiny_bundle, (setting(), 20, True), (setting(precision="int8"), 25, True),
        (setting(precision="int8", backend="onnxruntime"), 15, True),
    )
    assert [t.latency.fastest_ms for t in tune.contenders(tried, 30)] == [20, 15]


def test_the_fastest_of_each_network(tiny_bundle: Bundle) -> None:
    tried = trials(
        tiny_bundle, (setting(100), 20, False), (setting(threads=1), 10, False), (setting(threads=2), 9, False)
    )
    medians = dict(zip(tried, (Latency(ms, ms, ms) for ms in (25, 11, 12)), strict=True))
    assert list(tune.fastest_of_each_network(medians)) == [tried[1], tried[0]]
    with pytest.raises(GlmdError, match=r"10 ms a frame or less; the fastest is R 50, 64x80.* with 11\.0 ms\. Raise"):
        tune.require_within(medians, request(10))
    tune.require_within(medians, request(11))


# ---- which are tried ----

class Exports:
    """Stands for the exporter and the clock: a draft holds the tiny graph, and takes `cost` milliseconds."""

    def __init__(self, cost: Callable[[Setting], float]) -> None:
        self.cost, self.recipes = cost, {}

    def draft(self, checkpoint: Checkpoint, ckpt: Path, folder: Path, recipe: Recipe, step: Any) -> Draft:
        shape = checkpoint.config.proposals, checkpoint.preprocess.size_hw
        self.recipes[(*shape, bool(recipe.calibration))] = recipe
        engines = {"model.onnx": "fp32", **({"model.int8.onnx": "int8"} if recipe.calibration else {})}
        (r, hw), batch = shape, recipe.batch
        classes = len(tiny.CLASS_NAMES)
        graph = GraphSpec(
            {"images": (batch, 1, *hw), "valid_hw": (batch, 2)},
            {"boxes": (batch, r, classes, 4), "scores": (batch, r, classes), "valid": (batch, r)},
        )
        manifest = replace(tiny.manifest(), preprocess=checkpoint.preprocess, graph=graph, engines=engines)
        files = {name: tiny.model() for name in engines}
        return Draft(write_bundle(folder / "draft.glmd", manifest, files), checkpoint, recipe, (), {})

    def measure(self, runs: Mapping[Any, Any], rounds: int, **_: Any) -> dict[Any, Latency]:
        return {key: Latency(*[self.cost(getattr(key, "setting", key))] * 3) for key in runs}


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> Exports:
    """The cost grows with proposals, canvas and precision."""
    factor = {"fp32": 1.0, "int8": 0.5}
    made = Exports(lambda s: s.proposals * s.size_hw[0] / 64 * factor[s.precision] / (s.threads or 1))
    monkeypatch.setattr(sweep, "draft_bundle", made.draft)
    for module in (sweep, tune):
        monkeypatch.setattr(module, "measure", made.measure)
    return made


def request(budget_ms: float, **changes: Any) -> Request:
    values = Request(
        budget_ms, (), proposals=(4, 50, 100, 150), sizes=((64, 80), (128, 160)), threads=(1, 2),
        backends=("onnxruntime",),
    )
    return replace(values, **changes)


def shapes(found: list[Trial], precision: str = "fp32") -> list[tuple[int, tuple[int, int]]]:
    pairs = [(t.setting.proposals, t.setting.size_hw) for t in found if t.setting.precision == precision]
    return list(dict.fromkeys(pairs))


def test_beyond_the_first_number_of_proposals_that_is_over_the_budget_none_is_exported(
    tiny_bundle: Bundle, checkpoint: Checkpoint, exports: Exports, tmp_path: Path
) -> None:
    found = Sweep(tiny_bundle, (checkpoint, tmp_path), request(30), [], tmp_path, lambda _: None).run()
    # 50 proposals take 25 ms with two threads, 100 take 50; on the larger canvas twice as much.
    assert shapes(found) == [(4, (64, 80)), (50, (64, 80)), (100, (64, 80)), (4, (128, 160)), (50, (128, 160))]
    assert (4, (64, 80), False) not in exports.recipes  # the bundle has that graph already
    assert {t.setting.threads for t in found} == {1, 2} and not any(r.calibration for r in exports.recipes.values())


def test_int8_is_made_of_what_is_over_the_budget_without_it(
    tiny_bundle: Bundle, checkpoint: Checkpoint, exports: Exports, tmp_path: Path
) -> None:
    asked = request(30, sizes=((64, 80),), calibration=tmp_path)
    found = Sweep(tiny_bundle, (checkpoint, tmp_path), asked, [], tmp_path, lambda _: None).run()
    assert shapes(found) == [(4, (64, 80)), (50, (64, 80)), (100, (64, 80)), (150, (64, 80))]
    assert shapes(found, "int8") == [(100, (64, 80)), (150, (64, 80))]


def test_without_weights_only_the_engines_of_the_bundle_are_tried(
    tiny_bundle: Bundle, exports: Exports, tmp_path: Path
) -> None:
    found = Sweep(tiny_bundle, None, request(30), [], tmp_path, lambda _: None).run()
    assert [t.setting.threads for t in found] == [1, 2] and shapes(found) == [(4, (64, 80))]


def test_an_engine_of_the_bundle_that_did_not_pass_is_not_tried(tmp_path: Path, exports: Exports) -> None:
    failed = VerifyReport((VerifyRow("model.onnx", "onnxruntime", "fp32", "raw", "failed"),))
    bundle = tiny.bundle(tmp_path / "t.glmd", verified=failed)
    with pytest.raises(UnsupportedError, match=r"Nothing of .*t\.glmd runs here"):
        Sweep(bundle, None, request(30), [], tmp_path, lambda _: None).run()


def test_what_does_not_run_is_passed_over(
    tiny_bundle: Bundle, exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = backends.load

    def broken(name: str, model: Path, threads: int | None = None, *more: Any, **named: Any) -> Any:
        if threads == 2:
            raise UnsupportedError("out of memory.")
        return load(name, model, threads, *more, **named)

    monkeypatch.setattr(backends, "load", broken)
    one = Sweep(tiny_bundle, None, request(30), [], tmp_path, lambda _: None)
    assert [t.setting.threads for t in one.run()] == [1]
    assert one.passed_over == ["R 4, 64x80, fp32 on onnxruntime, threads 2 does not run: out of memory."]


# ---- what is written ----

@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures with a bright square each, 8 and 16 bit, and their annotation file."""
    folder, rng = tmp_path_factory.mktemp("val"), np.random.default_rng(0)
    images, annotations = [], []
    for i, (dtype, level) in enumerate([(np.uint8, 100), (np.uint16, 7600), (np.uint8, 60)]):
        picture = rng.normal(level, 5, SIZE_HW).astype(dtype)
        picture[40:80, 30:60] += 50
        cv2.imwrite(str(folder / f"{i}.png"), picture)
        images.append({"id": i, "file_name": f"{i}.png", "height": SIZE_HW[0], "width": SIZE_HW[1]})
        annotations.append({"id": i, "image_id": i, "category_id": 1, "bbox": [30, 40, 30, 40]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": CLASS_NAMES[0]}]}
    (folder / "val.json").write_text(json.dumps(content))
    return folder / "val.json"


@pytest.fixture(scope="module")
def exported(checkpoint_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """X.glmd with its checkpoint beside it; read only."""
    folder = tmp_path_factory.mktemp("exported")
    ckpt = Path(shutil.copy(checkpoint_file, folder))
    recipe = Recipe(engines=("onnxruntime",), enroll=True)
    assert export_bundle(load_checkpoint(ckpt), ckpt, folder / "x.glmd", recipe).status == "passed"
    return folder / "x.glmd"


def command(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "glmd_export.tune_cli", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(tune.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(program, cwd=folder, capture_output=True, text=True, env=environment, timeout=300)


def digest(bundle: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in bundle.iterdir()}


def one_line(text: str) -> str:
    (line,) = [line for line in text.splitlines() if "glmd-tune: error:" in line]
    assert text.rstrip().endswith(line) and "Traceback" not in text
    return line


def test_a_bundle_is_tuned_with_its_checkpoint(exported: Path, labels: Path, tmp_path: Path) -> None:
    before = digest(exported)
    done = command(
        tmp_path, exported, "--data", labels, "--budget-ms", LIMITLESS, "-o", "y.glmd", "--proposals", 8, "--sizes",
        "96x128", "--threads", 1, "--json", "--plot", "front.svg",
    )
    assert done.returncode == 0, done.stderr
    assert digest(exported) == before and "<svg" in (tmp_path / "front.svg").read_text()
    said, bundle = json.loads(done.stdout), open_bundle(tmp_path / "y.glmd")
    (row,) = [row for row in said["rows"] if row["is"] == "chosen"]
    assert {(r["proposals"], *r["size_hw"]) for r in said["rows"]} == {(24, *SIZE_HW), (8, 96, 128)}
    assert row["within_budget"] and all(t["fastest_ms"] > 0 for t in said["tried"])
    manifest, tuned = bundle.manifest, bundle.manifest.tuned
    assert (manifest.name, manifest.graph.proposals, list(manifest.preprocess.size_hw)) == (
        "y", row["proposals"], row["size_hw"]
    )
    assert tuned and (tuned.machine, tuned.data) == (this_machine(), (f"{labels.parent.name}/val.json",))
    assert (tuned.engine, tuned.backend, tuned.threads) == (row["engine"], row["backend"], 1)
    assert tuned.median_ms == row["median_ms"] and tuned.budget_ms == LIMITLESS
    assert bundle.verify["status"] == "passed" and verify_bundle(bundle).status == "passed"
    with Detector(bundle.path) as detector:
        info = detector.info()
        assert (info["engine"], info["backend"], info["threads"]) == (row["engine"], row["backend"], 1)


def test_without_its_checkpoint_a_bundle_is_sealed_anew_with_the_same_engines(
    exported: Path, labels: Path, tmp_path: Path
) -> None:
    alone = Path(shutil.copytree(exported, tmp_path / "alone.glmd"))
    done = command(tmp_path, alone, "--data", labels, labels, "--budget-ms", LIMITLESS, "-o", "y.glmd")
    assert done.returncode == 0, done.stderr
    assert "its checkpoint, does not exist" in done.stderr and "--ckpt" in done.stderr
    assert "chosen, as it was" in done.stdout and "settings tried" in done.stdout
    given, bundle = open_bundle(alone), open_bundle(tmp_path / "y.glmd")
    assert bundle.manifest.sha256 == given.manifest.sha256 and given.manifest.tuned is None
    assert bundle.manifest.tuned and len(bundle.manifest.tuned.data) == 2


def test_nothing_is_fast_enough(exported: Path, labels: Path, tmp_path: Path) -> None:
    done = command(
        tmp_path, exported, "--data", labels, "--budget-ms", 1e-3, "-o", "y.glmd", "--proposals", 8, "--sizes", "64x64",
        "--threads", 1, "--plot", "front.png",
    )
    assert done.returncode == 1 and not list(tmp_path.iterdir())
    fastest = ("R 8, 64x64", "R 24, 128x160")  # a matter of the machine's other work
    assert any(f"the fastest is {one}, fp32 on" in one_line(done.stderr) for one in fastest)
    assert "--budget-ms" in done.stderr


@pytest.mark.parametrize("own", ["passed", "failed"])
def test_what_fails_verification_leaves_the_next_best(
    own: str, tiny_bundle: Bundle, checkpoint: Checkpoint, labels: Path, exports: Exports, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The draft, more accurate, fails; then the bundle's own graph passes or fails."""
    sealed = []

    def write(source: Source, *_: Any) -> VerifyReport:
        sealed.append("draft" if source.draft else "own")
        return VerifyReport((VerifyRow("model.onnx", "b", "fp32", "raw", "failed" if source.draft else own, "far"),))

    monkeypatch.setattr(tune, "_write", write)
    monkeypatch.setattr(tune, "_accuracy", lambda trial, *_: (0.5 if trial.source.draft else 0.4, 0.0))
    asked = request(30, data=(labels,), proposals=(50,), sizes=((64, 80),))
    arguments = tiny_bundle, (checkpoint, tmp_path), tmp_path / "y.glmd", asked
    if own == "passed":
        done = tune.tune(*arguments)
        assert done.chosen and done.chosen.setting.proposals == 4
        assert done.passed_over == [
            "R 50, 64x80, fp32 on onnxruntime, threads 2 does not give the right answers: raw of model.onnx on b: far."
        ]
    else:
        with pytest.raises(ParityError, match=r"Nothing within the budget passed verification\. R 50.*R 4.*far"):
            tune.tune(*arguments)
    assert sealed == ["draft", "own"]


# ---- its checkpoint, and what is refused ----

def test_the_checkpoint_beside_the_bundle_is_found_by_its_name_and_hash(exported: Path, tmp_path: Path) -> None:
    bundle, beside = open_bundle(exported), exported.parent / "tiny_model.safetensors"
    assert tune_cli.find_checkpoint(bundle, None) == (beside, "")
    renamed = Path(shutil.copy(beside, tmp_path / "renamed.safetensors"))
    assert tune_cli.find_checkpoint(bundle, renamed) == (renamed, "")
    alone = open_bundle(Path(shutil.copytree(exported, tmp_path / "x.glmd")))
    path, why = tune_cli.find_checkpoint(alone, None)
    assert path is None and "does not exist" in why and "--ckpt FILE" in why
    (tmp_path / beside.name).write_bytes(b"another one")
    path, why = tune_cli.find_checkpoint(alone, None)
    assert path is None and "expected SHA-256" in why
    with pytest.raises(CheckpointError, match=r"expected SHA-256 .*, got .*Give the file that x\.glmd was"):
        tune_cli.find_checkpoint(alone, tmp_path / beside.name)
    with pytest.raises(CheckpointError, match=r"does not exist\. Give the file"):
        tune_cli.find_checkpoint(alone, tmp_path / "absent.safetensors")


def test_classes_that_were_enrolled_belong_to_their_graph(exported: Path, tiny_bundle: Bundle) -> None:
    bundle = open_bundle(exported)
    taught = Bundle(bundle.path, replace(bundle.manifest, enrolled=EnrolledSpec(("fox",), (0.5,))))
    path, why = tune_cli.find_checkpoint(taught, None)
    assert path is None and "before its enrolment" in why
    path, why = tune_cli.find_checkpoint(tiny_bundle, None)
    assert path is None and "does not say" in why


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--budget-ms", "0"], 2, "more than 0; got 0"),
        (["--budget-ms", "nan"], 2, "more than 0; got nan"),
        (["--budget-ms", "inf"], 2, "more than 0; got inf"),
        (["--proposals", "50", "0"], 2, "--proposals must be 1 to 1000; got 0"),
        (["--threads", "0"], 2, "--threads must be 1 to 1024; got 0"),
        (["--data", "nowhere.json"], 2, "nowhere.json does not exist"),
        (["--calib", "nowhere"], 2, "nowhere is none"),
        (["-o", "y.onnx"], 2, "-o y.glmd"),
        (["-o", "{x}", "--overwrite"], 2, "stays as it is"),
        (["-o", "{x}/y.glmd"], 2, "stays as it is"),
        (["--plot", "{x}/front.svg"], 2, "stays as it is"),
        (["--plot", "front.gif"], 2, ".svg or .png"),
        (["--plot", "no/such/front.svg"], 2, "folder does not exist"),
        (["--ckpt", "{labels}"], 1, "expected SHA-256"),
    ],
)
def test_usage(
    options: list[str], code: int, says: str, exported: Path, labels: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = digest(exported)
    given = ["--data", str(labels), "--budget-ms", "30", "-o", "y.glmd"]
    told = [option.format(x=exported, labels=labels) for option in options]
    assert tune_cli.main([str(exported), *given, *told]) == code
    assert says in one_line(capsys.readouterr().err)
    assert not list(tmp_path.iterdir()) and digest(exported) == before


def test_what_needs_the_checkpoint_is_refused_without_it(
    exported: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, output = shutil.copytree(exported, tmp_path / "alone.glmd"), tmp_path / "y.glmd"
    given = [str(alone), "--data", str(labels), "--budget-ms", "30", "-o", str(output)]
    assert tune_cli.main([*given, "--proposals", "50", "--sizes", "64x64"]) == 2
    said = one_line(capsys.readouterr().err)
    assert "--proposals and --sizes would export" in said and "--ckpt FILE" in said and not output.exists()


def test_the_default_grid_is_the_bundle_s_own_and_smaller(exported: Path, labels: Path) -> None:
    options = tune_cli.parser().parse_args([str(exported), "--data", str(labels), "--budget-ms", "30", "-o", "y.glmd"])
    asked = tune_cli._request(options, open_bundle(exported))
    assert asked.proposals == (24, 50, 100, 150, 200)
    assert asked.sizes == ((64, 96), (96, 128), (128, 160))  # whole steps of 32 pixels
    assert asked.threads[0] == 1 and set(asked.backends) == set(backends.available())


def test_help_imports_no_framework() -> None:
    code = "import sys, glmd_export.tune_cli as c; c.parser().format_help(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "onnx", "onnxruntime", "openvino", "timm", "matplotlib"} & set(done.stdout.split())

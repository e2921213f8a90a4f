"""One more class from a few boxes: what is learned, what the known classes keep, what is written and what is refused.

The network is a stand-in whose answers follow from the picture: regions on a grid, and of each a feature that tells how
bright it is. Objects are bright squares in a dark, noisy frame.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from threading import Semaphore, Thread
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from glmd_runtime import Camera, Detector, backends
from glmd_runtime.backends.base import Tensors
from glmd_runtime.boxes import iou
from glmd_runtime.bundle import Bundle, open_bundle, write_bundle
from glmd_runtime.calibration import prototypes_to_bytes
from glmd_runtime.detections import Detections
from glmd_runtime.enroll import (
    EnrolledSpec,
    Enrolment,
    Regions,
    _hits,
    best_cut,
    learn,
    likely_boxes,
    regions,
)
from glmd_runtime.errors import BundleError, FrameError, GlmdError, UnsupportedError, UsageError
from glmd_runtime.manifest import GraphSpec
from glmd_runtime.pipeline import Pipeline
from glmd_runtime.postprocess import PostprocessSpec, RawOutputs
from glmd_runtime.streams import Result
from glmd_runtime.tracking import Tracker
from glmd_runtime.video.frame import Frame
from tests import reference, tiny
from tests.conftest import skip_unless
from tests.runtime import streams
from tests.runtime.test_calibration import CALIBRATION, TINY_PROTOTYPES, classifier

SIZE, STEP = 16, 8
GRID = [(x, y) for y in range(0, tiny.SIZE_HW[0] - SIZE + 1, STEP) for x in range(0, tiny.SIZE_HW[1] - SIZE + 1, STEP)]
R, D = len(GRID) + 2, 6  # two padded ones
BOXES = np.array([(x, y, x + SIZE, y + SIZE) for x, y in GRID], np.float32)
PLACES = [(8, 16), (40, 24), (56, 40), (24, 8), (0, 48)]


class Eye:
    """Answers with the brightness of each region, and with a person where one is asked for."""

    device = "cpu"

    def __init__(self, person: float = 0.0) -> None:
        self.person, self.closed = person, 0

    def run(self, inputs: Tensors) -> Tensors:
        n = len(inputs["images"])
        boxes, features = np.zeros((n, R, 2, 4), np.float32), np.ones((n, R, D), np.float32)
        scores, valid = np.zeros((n, R, 2), np.float32), np.zeros((n, R), bool)
        valid[:, : len(GRID)] = True
        boxes[:, : len(GRID)] = BOXES[:, None]
        boxes[:, len(GRID) :], scores[:, len(GRID) :] = BOXES[0], 1
        for i, image in enumerate(inputs["images"][:, 0]):
            for r, (x, y) in enumerate(GRID):
                bright = image[y : y + SIZE, x : x + SIZE].mean()
                features[i, r] = np.cos(np.arange(D) * (1 + r)) * 0.2 + [bright, 1, 1, 1, 1, 1]
                scores[i, r, 0] = self.person * (bright > 1.5)
        return {"boxes": boxes, "scores": scores, "valid": valid, "features": features}

    def close(self) -> None:
        self.closed += 1


def spec() -> GraphSpec:
    shapes = {"boxes": (1, R, 2, 4), "scores": (1, R, 2), "valid": (1, R), "features": (1, R, D)}
    return GraphSpec(tiny.graph_spec().inputs, shapes)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    manifest = replace(tiny.manifest(), graph=spec())
    files: dict[str, bytes | Path] = {"model.onnx": tiny.model(), "reference.npz": tiny.reference().to_bytes()}
    files["verify.json"] = json.dumps(tiny.report().to_dict()).encode()
    return write_bundle(tmp_path_factory.mktemp("bundle") / "eye.glmd", manifest, files)


@pytest.fixture
def detector(bundle: Bundle) -> Iterator[Detector]:
    with Detector(bundle.path, backend=Eye()) as one:
        yield one


def picture(place: tuple[int, int] | None, seed: int = 0) -> np.ndarray:
    image = np.random.default_rng(seed).integers(100, 140, tiny.SIZE_HW, dtype=np.uint8)
    if place is not None:
        x, y = place
        image[y : y + SIZE, x : x + SIZE] = 250
    return image


def box(place: tuple[int, int]) -> np.ndarray:
    x, y = place
    return np.array([[x, y, x + SIZE, y + SIZE]], np.float32)


def taught(detector: Detector, number: int = 3, name: str = "fox") -> Detector:
    frames = [picture(place, i) for i, place in enumerate(PLACES[:number])]
    return detector.enroll(name, frames, [box(place) for place in PLACES[:number]])


def check_finds(detector: Detector, place: tuple[int, int]) -> None:
    found = detector.run(picture(place, 99))
    assert found.names == ["fox"]
    assert iou(found.xyxy, box(place))[0, 0] > 0.99


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_class_is_known_from_a_few_boxes(number: int, detector: Detector) -> None:
    with taught(detector, number) as new:
        assert new.class_names == ("person", "car", "fox") and detector.class_names == ("person", "car")
        for place in PLACES[3:]:
            check_finds(new, place)
            assert len(detector.run(picture(place, 99))) == 0
        assert len(new.run(picture(None, 98))) == 0
        assert set(new.info()["score_thresholds"]) == {"person", "car", "fox"}


def test_frames_of_another_size_than_the_canvas(detector: Detector) -> None:
    frames = [np.repeat(np.repeat(picture(p, i), 2, 0), 2, 1) for i, p in enumerate(PLACES[:3])]
    with detector.enroll("fox", frames, [2 * box(place) for place in PLACES[:3]]) as new:
        check_finds(new, PLACES[4])


def test_frames_without_the_object_show_what_it_is_not(detector: Detector) -> None:
    frames = [picture(PLACES[0]), picture(None, 5), picture(PLACES[1], 6)]
    with detector.enroll("fox", frames, [box(PLACES[0]), [], box(PLACES[1]).tolist()]) as new:
        check_finds(new, PLACES[2])


@pytest.mark.parametrize(("person", "names"), [(0.3, ["fox"]), (1.0, ["person"])])
def test_an_object_has_one_name_that_of_the_surer_class(person: float, names: list[str], bundle: Bundle) -> None:
    with Detector(bundle.path, backend=Eye()) as calm, taught(calm) as new:
        new._backend = Eye(person)  # of the same objects, it now says something else
        assert new.run(picture(PLACES[3], 99)).names == names


BLACK_HOT = Camera(polarity="black-hot")


def test_a_camera_is_learned_from_as_its_stream_shows_it(detector: Detector) -> None:
    pictures, boxes = [picture(place, i) for i, place in enumerate(PLACES[:3])], [box(place) for place in PLACES[:3]]
    raw = [3 * (255 - one.astype(np.uint16)) + 7000 for one in pictures]  # counts that fall with the temperature ...
    bad = np.zeros(tiny.SIZE_HW, bool)
    for number, one in enumerate(raw):
        one[number + 1, 40] = 65535  # ... and bad pixels, of which percentiles see nothing
        bad[number + 1, 40] = True
    camera = Camera(polarity="black-hot", bad_pixels=bad, damping=1.0)
    front_ends = [detector.front_end(camera) for _ in raw]
    shown = [one.prepare(Frame(image, 0, 0.0)).picture for one, image in zip(front_ends, raw, strict=True)]
    inverted = [Frame(255 - one, i, i / 25) for i, one in enumerate(pictures)]
    for frames, to, like in ((raw, camera, shown), (inverted, BLACK_HOT, pictures)):
        with detector.enroll("fox", frames, boxes, camera=to) as new, detector.enroll("fox", like, boxes) as expected:
            assert new._enrolment is not None and expected._enrolment is not None
            np.testing.assert_array_equal(new._enrolment.weights, expected._enrolment.weights)
            check_finds(new, PLACES[3])


def test_a_camera_s_mask_of_another_size(detector: Detector) -> None:
    with pytest.raises(FrameError, match="mask of bad pixels"):
        detector.enroll("fox", [FRAME], [BOX], camera=Camera(bad_pixels=np.zeros((9, 9), bool)))


def test_a_running_camera_is_taught(bundle: Bundle) -> None:
    """By what docs/enroll.md says: from what its stream showed, while it runs, with tracks that go on."""
    skip_unless(find_spec("trackers") is not None, "trackers", "the package trackers is not installed")
    document = (Path(__file__).parents[2] / "docs" / "enroll.md").read_text()
    teach = next(one for one in re.findall(r"```python\n(.*?)```", document, re.S) if "def teach" in one)
    functions: dict[str, Any] = {}
    exec(teach, functions)
    camera, results, arrived = streams.Camera("camera"), list[Result](), Semaphore(0)

    def show(place: tuple[int, int], index: int) -> Result:
        camera.feed(Frame(255 - picture(place, index), index, index / 25))
        assert arrived.acquire(timeout=20)
        return results[-1]

    def note(result: Result) -> None:
        results.append(result)
        arrived.release()

    eye = Eye()
    pipeline = Pipeline(
        [camera], Detector(bundle.path, backend=eye), camera=BLACK_HOT, tracker=lambda _: Tracker(fps=25),
        policy="every", on_result=note,
    )
    runner = Thread(target=pipeline.run)
    with pipeline:
        runner.start()
        before = [show(place, i) for i, place in enumerate(PLACES[:3])]
        functions["teach"](pipeline, "fox", before, [box(place) for place in PLACES[:3]])
        after = [show(PLACES[3], 3 + i) for i in range(4)]
        eye.person = 1.0  # a class that was known all along is now surer of what moves there
        person = show(PLACES[3], 7)
        camera.end()
        runner.join(20)
    assert [len(result.detections) for result in before] == [0, 0, 0]
    assert [result.detections.names for result in after] == [["fox"]] * 4
    ids = [int(ids[0]) for result in (*after, person) if (ids := result.detections.track_ids) is not None]
    assert set(ids[2:]) == {0} and person.detections.names == ["fox"]  # by the track's vote
    assert eye.closed == 0
    pipeline.detector.close()
    assert eye.closed == 1


def test_two_classes_one_after_the_other(detector: Detector) -> None:
    with taught(detector) as first, taught(first, name="wolf") as second:
        assert second.class_names == ("person", "car", "fox", "wolf")
        assert len(second.run(picture(PLACES[3], 99))) == 1  # they were shown the same: one object, one name


def test_a_score_threshold_is_for_the_new_class_too(bundle: Bundle) -> None:
    with Detector(bundle.path, backend=Eye(), score_threshold=1.0) as strict, taught(strict) as new:
        assert new.info()["score_thresholds"]["fox"] == 1.0 and len(new.run(picture(PLACES[3]))) == 0


def test_a_saved_bundle_opens_and_answers_alike(detector: Detector, tmp_path: Path) -> None:
    with taught(detector) as new:
        saved = new.save(tmp_path / "fox.glmd")
        expected = new.run(picture(PLACES[3], 99))
        with pytest.raises(UsageError, match="exists"):
            new.save(tmp_path / "fox.glmd")
    assert open_bundle(saved.path).manifest.enrolled == EnrolledSpec(("fox",), saved.manifest.enrolled.score_thresholds)
    with Detector(saved.path, backend=Eye()) as again:
        found = again.run(picture(PLACES[3], 99))
        np.testing.assert_array_equal(found.xyxy, expected.xyxy)
        np.testing.assert_array_equal(found.scores, expected.scores)
        with taught(again, name="wolf") as more:
            assert more.save(tmp_path / "two.glmd").manifest.enrolled.class_names == ("fox", "wolf")


def test_a_manifest_says_nothing_of_enrolled_classes_where_there_are_none(bundle: Bundle) -> None:
    assert "enrolled" not in bundle.manifest.to_dict() and bundle.manifest.enrolled is None


def test_a_bundle_that_was_replaced_is_not_sealed_again(bundle: Bundle, tmp_path: Path) -> None:
    files: dict[str, bytes | Path] = {name: bundle.path / name for name in bundle.manifest.sha256}
    own = write_bundle(tmp_path / "own.glmd", bundle.manifest, files)
    with Detector(own.path, backend=Eye()) as detector, taught(detector) as new:
        write_bundle(own.path, replace(bundle.manifest, name="another"), files, overwrite=True)
        with pytest.raises(BundleError, match="replaced"):
            new.save(tmp_path / "fox.glmd")
    assert not (tmp_path / "fox.glmd").exists()


@pytest.mark.parametrize("weights", [np.zeros((2, D)), np.zeros((1, D + 1))])
def test_a_bundle_with_other_arrays_than_it_says(weights: np.ndarray, detector: Detector, tmp_path: Path) -> None:
    with taught(detector) as new:
        saved = new.save(tmp_path / "fox.glmd")
    files: dict[str, bytes | Path] = {name: saved.path / name for name in saved.manifest.sha256}
    odd = Enrolment(EnrolledSpec(), weights.astype(np.float32), np.zeros(1, np.float32))
    write_bundle(saved.path, saved.manifest, {**files, "enrolled.safetensors": odd.to_bytes()}, overwrite=True)
    with pytest.raises(BundleError, match="weights"):
        Detector(saved.path, backend=Eye())


def test_the_backend_is_closed_with_the_last_of_them(bundle: Bundle) -> None:
    eye = Eye()
    old = Detector(bundle.path, backend=eye)
    new = taught(old)
    newer = taught(new, name="wolf")
    for one in (old, old, newer):
        one.close()
    assert eye.closed == 0
    check_finds(new, PLACES[3])
    new.close()
    assert eye.closed == 1
    with pytest.raises(GlmdError, match="closed"):
        taught(old)


Ask = Callable[[Detector], object]
FRAME, BOX = picture(PLACES[0]), box(PLACES[0])


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda d: d.enroll("car", [FRAME], [BOX]), "other than person, car"),
        (lambda d: d.enroll(" ", [FRAME], [BOX]), "needs a name"),
        (lambda d: d.enroll("fox\n", [FRAME], [BOX]), "without control characters"),
        (lambda d: d.enroll("\ud800", [FRAME], [BOX]), "without control characters"),
        (lambda d: d.enroll("fox", [], []), "one frame or more"),
        (lambda d: d.enroll("fox", [FRAME, FRAME], [BOX]), "2 frames"),
        (lambda d: d.enroll("fox", [FRAME], [[]]), "got none"),
        (lambda d: d.enroll("fox", [FRAME], [BOX + 70]), "80 pixels wide and 64 high"),
        (lambda d: d.enroll("fox", [FRAME], [BOX[:, [2, 3, 0, 1]]]), "left, top, right, bottom"),
        (lambda d: d.enroll("fox", [FRAME], [BOX[0]]), "left, top, right, bottom"),
        (lambda d: d.enroll("fox", [FRAME], [[(1, 2, 3, None)]]), "left, top, right, bottom"),
        (lambda d: d.enroll("fox", [FRAME], [np.array([[0, 0, 70, 60]])]), "no region"),
        (lambda d: d.enroll("fox", [FRAME], [BOXES]), "something else"),
        (lambda d: d.save("fox.glmd"), "nothing to save"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(ask: Ask, message: str, detector: Detector) -> None:
    with pytest.raises(UsageError, match=message):
        ask(detector)
    assert detector.class_names == ("person", "car")


def test_calibrated_scores_of_known_classes_leave_the_new_one_as_it_is(bundle: Bundle, tmp_path: Path) -> None:
    skip_unless(bool(backends.available()), "onnxruntime", "no inference library is installed")
    files: dict[str, bytes | Path] = {name: bundle.path / name for name in bundle.manifest.sha256}
    files |= {"pcb.onnx": classifier(1), "prototypes.safetensors": prototypes_to_bytes(TINY_PROTOTYPES)}
    pcb = write_bundle(tmp_path / "pcb.glmd", replace(bundle.manifest, calibration=CALIBRATION), files)
    with Detector(bundle.path, backend=Eye()) as plain, taught(plain) as new:
        expected = new.run(picture(PLACES[3], 99))
    with Detector(pcb.path, backend=Eye()) as detector, taught(detector) as new:
        found, saved = new.run(picture(PLACES[3], 99)), new.save(tmp_path / "fox.glmd")
    with Detector(saved.path, backend=Eye()) as again:
        for one in (found, again.run(picture(PLACES[3], 99))):
            assert one.names == ["fox"]
            np.testing.assert_array_equal(one.scores, expected.scores)


def test_a_bundle_without_features(tiny_bundle: Path) -> None:
    with Detector(tiny_bundle, backend=Eye()) as detector, pytest.raises(UnsupportedError, match="--enroll"):
        detector.enroll("fox", [FRAME], [BOX])


# The parts

COUNT, K = 6, 2
SCORES = arrays(np.int64, (COUNT, K + 2), elements=st.integers(0, 10))
CORNERS = arrays(np.int64, (COUNT, 2), elements=st.integers(0, 12))


@settings(max_examples=150)
@given(percent=SCORES, corners=CORNERS, valid=arrays(np.bool_, COUNT))
def test_claims_are_the_oracles(percent: np.ndarray, corners: np.ndarray, valid: np.ndarray) -> None:
    scores = (percent / 10).astype(np.float32)
    boxes = np.concatenate([corners, corners + 10], axis=1).astype(np.float32)
    raw = RawOutputs(np.repeat(boxes[:, None], K, axis=1), scores[:, :K], valid)
    thresholds = (0.3, 0.5, 0.2, 0.6)

    class Given(Enrolment):
        def scores(self, raw: RawOutputs) -> Any:
            return scores[:, K:].copy()

    extended = Given(EnrolledSpec(), np.empty(0), np.empty(0)).extend(raw, PostprocessSpec(thresholds))
    wanted = reference.extend_scores(scores[:, :K], scores[:, K:], boxes, valid, thresholds, 0.5)
    np.testing.assert_array_equal(extended.scores, np.concatenate(wanted, axis=1))
    np.testing.assert_array_equal(extended.boxes, np.repeat(boxes[:, None], K + 2, axis=1))


def test_the_box_of_a_region_is_that_of_its_likeliest_class() -> None:
    boxes = np.arange(16, dtype=np.float32).reshape(2, 2, 4)
    raw = RawOutputs(boxes, np.array([[0.1, 0.2], [0.3, 0.0]], np.float32), np.ones(2, bool))
    np.testing.assert_array_equal(likely_boxes(raw), [boxes[0, 1], boxes[1, 0]])


@settings(max_examples=80)
@given(whole=arrays(np.int64, len(GRID), elements=st.integers(-20, 20)), places=st.sets(st.sampled_from(PLACES)))
def test_the_cut_has_the_best_f1(whole: np.ndarray, places: set[tuple[int, int]]) -> None:
    wanted = np.concatenate([np.empty((0, 4), np.float32), *map(box, sorted(places))])
    one, logits = Regions(BOXES, np.zeros((len(GRID), D)), wanted), whole / 4
    cut, rows = best_cut([(one, logits)], 0.5), _hits(one, logits, 0.5)
    kept = [hit for logit, hit in rows if logit > cut]
    if not any(hit for _, hit in rows):
        assert cut == 0
    else:
        f1 = 2 * sum(kept) / (len(kept) + len(wanted))
        assert f1 == pytest.approx(reference.best_f1(rows, len(wanted)))


def blurred(number: int, seed: int) -> list[Regions]:
    """Frames in which the features of both kinds overlap."""
    rng, on = np.random.default_rng(seed), np.arange(len(GRID)) % 9 == 0  # a column: neighbours are neither
    frames = []
    for _ in range(number):
        features = rng.normal(size=(len(GRID), D)) * 0.3 + [3, 0, 0, 0, 0, 0]
        features[on, 1] += 0.9
        frames.append(Regions(BOXES, features / np.linalg.norm(features, axis=1, keepdims=True), BOXES[on]))
    return frames


def test_a_score_of_one_half_is_a_good_threshold_for_frames_never_seen() -> None:
    learned, fresh = learn("fox", blurred(12, 0), 0.5), blurred(30, 1)
    assert learned.spec.score_thresholds == (0.5,)
    rows, objects = [], sum(len(one.wanted) for one in fresh)
    for one in fresh:
        rows += _hits(one, one.features @ learned.weights[0] + learned.biases[0], 0.5)
    kept = [hit for logit, hit in rows if logit > 0]
    f1 = 2 * sum(kept) / (len(kept) + objects)
    assert 0.5 < reference.best_f1(rows, objects) < 0.99  # it is not trivial
    assert f1 > reference.best_f1(rows, objects) - 0.05


def test_clear_cases_are_not_certain(detector: Detector) -> None:
    with taught(detector) as new:
        assert 0.5 < new.run(picture(PLACES[3], 99)).scores[0] < 0.9999


def test_regions_leave_out_padding() -> None:
    raw = RawOutputs(
        np.zeros((3, 1, 4), np.float32), np.zeros((3, 1), np.float32), np.array([True, False, True]),
        np.array([[3, 4], [1, 1], [0, 0]], np.float32),
    )
    one = regions(raw, np.empty((0, 4), np.float32))
    np.testing.assert_allclose(one.features, [[0.6, 0.8], [0, 0]])
    assert not one.examples.any() and one.others.all()


def test_detections_of_the_new_class_pass_through_to_dict(detector: Detector) -> None:
    with taught(detector) as new:
        found = new.run(picture(PLACES[3], 99))
    assert isinstance(found, Detections) and found.to_dict()[0]["name"] == "fox"

"""What can be run on this machine, and about how fast: the bundle as it is, and drafts of other shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from glmd_export.exporter import Draft, Recipe, draft_bundle
from glmd_export.tuning.front import Setting, Shape
from glmd_export.tuning.latency import Latency, measure
from glmd_runtime import backends
from glmd_runtime.backends.tensorrt import find_plugins
from glmd_runtime.bundle import Bundle
from glmd_runtime.detector import Detector
from glmd_runtime.engines import needs_plugins
from glmd_runtime.errors import GlmdError, UnsupportedError
from glmd_runtime.verify_report import VerifyReport
from glmd_train.checkpoint import Checkpoint, reshape

Step = Callable[[str], None]
Frames = Sequence[NDArray[Any]]

TRY_ROUNDS = 4
MARGIN = 1.25  # alone, a setting may meet noise that others do not: what is over a bound by no more is not yet out


@dataclass(frozen=True)
class Request:
    """What is asked for, and among what it is looked for.

    budget_ms    milliseconds that a frame may take from frame to boxes (median)
    data         COCO annotation files
    proposals, sizes  of graphs to export, the smallest first; the bundle's own are tried in any case
    threads      of CPU backends; a GPU's has none
    backends     names of backends that can run here
    calibration  a folder of pictures from which INT8 is made; None makes none
    """

    budget_ms: float
    data: tuple[Path, ...]
    proposals: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    threads: tuple[int, ...]
    backends: tuple[str, ...]
    calibration: Path | None = None


@dataclass(frozen=True)
class Source:
    """Where a setting's engine lies: the bundle that was given, or a draft."""

    bundle: Bundle
    draft: Draft | None = None

    @property
    def shape(self) -> Shape:
        manifest = self.bundle.manifest
        return manifest.graph.proposals, manifest.preprocess.size_hw


@dataclass(frozen=True, eq=False)
class Trial:
    """A setting that ran a few frames, alone: a first idea, but its fastest is as low as a median can come."""

    setting: Setting
    source: Source
    latency: Latency


@dataclass
class Sweep:
    """Tries the bundle that was given, then drafts, the smallest first.

    weights      the bundle's checkpoint and its file; None makes no drafts
    scratch      an empty folder, for drafts
    passed_over  (comes to hold) what does not run here, in sentences
    """

    bundle: Bundle
    weights: tuple[Checkpoint, Path] | None
    request: Request
    frames: Frames
    scratch: Path
    step: Step
    passed_over: list[str] = field(default_factory=list)

    def run(self) -> list[Trial]:
        """Raises: UnsupportedError when nothing runs here; what `draft_bundle` does."""
        given, budget_ms = Source(self.bundle), self.request.budget_ms
        trials = {given.shape: self._try(given)}
        for size_hw in self.request.sizes if self.weights else ():
            for proposals in self.request.proposals:
                shape = proposals, size_hw
                if not trials.get(shape):
                    trials[shape] = self._try(self._draft(shape))
                if all(trial.latency.median_ms > budget_ms for trial in trials[shape]):
                    trials[shape] += self._in_int8(shape, trials[shape])
                if all(trial.latency.fastest_ms > MARGIN * budget_ms for trial in trials[shape]):
                    break  # more proposals take more time
        found = [trial for some in trials.values() for trial in some]
        if not found:
            raise UnsupportedError(f"Nothing of {self.bundle.path} runs here. {' '.join(self.passed_over)}".rstrip())
        return found

    def _in_int8(self, shape: Shape, trials: Sequence[Trial]) -> list[Trial]:
        """Where it was asked for and is not there: it is no more accurate than what it is made from, only faster."""
        if not self.request.calibration or any(trial.setting.precision == "int8" for trial in trials):
            return []
        return self._try(self._draft(shape, self.request.calibration), only="int8")

    def _draft(self, shape: Shape, calibration: Path | None = None) -> Source:
        assert self.weights
        (checkpoint, ckpt), (proposals, size_hw), manifest = self.weights, shape, self.bundle.manifest
        name = "R {}, {}x{}".format(proposals, *size_hw) + (", INT8" if calibration else "")
        recipe = Recipe(
            batch=manifest.graph.batch, fp16=any(map(_on_cuda, self.request.backends)), calibration=calibration,
            pcb=manifest.calibration is not None, enroll="features" in manifest.graph.outputs,
            engines=self.request.backends,
        )
        # The bundle's own pre- and post-processing: glmd-export may have changed the checkpoint's canvas.
        told = replace(checkpoint, preprocess=manifest.preprocess, postprocess=manifest.postprocess)
        reshaped = reshape(told, size_hw=size_hw, proposals=proposals)
        path = self.scratch / name / f"{ckpt.stem}.glmd"
        path.parent.mkdir()
        draft = draft_bundle(reshaped, ckpt, path, recipe, lambda text: self.step(f"{name}: {text}"))
        return Source(draft.bundle, draft)

    def _try(self, source: Source, only: str | None = None) -> list[Trial]:
        trials = []
        for setting in settings(source, self.request):
            if only in (None, setting.precision):
                self.step(f"try {setting}")
                try:
                    trials.append(Trial(setting, source, self._time(source, setting)))
                except GlmdError as error:
                    self.passed_over.append(f"{setting} does not run: {error}")
        return trials

    def _time(self, source: Source, setting: Setting) -> Latency:
        with open_detector(source, setting) as detector:
            return measure({setting: over(detector, self.frames)}, TRY_ROUNDS)[setting]


def open_detector(source: Source, setting: Setting) -> Detector:
    return Detector(source.bundle.path / setting.engine, backend=setting.backend, threads=setting.threads)


def over(detector: Detector, frames: Frames) -> Callable[[], Any]:
    """Each call runs the next of the frames, from frame to boxes."""
    turn = cycle(frames)
    return lambda: detector.run(next(turn))


def settings(source: Source, request: Request) -> Iterator[Setting]:
    """The ways to run a source here: of each backend and precision the file that it reads best, by number of threads.

    Of the bundle that was given only what passed verification in it, or (TensorRT) does when it is opened; a draft is
    verified before it is written.
    """
    manifest, report = source.bundle.manifest, VerifyReport.from_dict(source.bundle.verify)
    pairs = [(name, engine) for engine in manifest.engines for name in backends.readers(engine)]
    runnable = [
        (name, engine) for name, engine in pairs
        if name in request.backends and (source.draft or _on_cuda(name) or report.passed(engine, name))
        and (not needs_plugins(engine) or find_plugins())
    ]
    best: dict[tuple[str, str], str] = {}
    for name, engine in sorted(runnable, key=lambda pair: backends.preference(*pair)):
        best.setdefault((name, manifest.engines[engine]), engine)
    for (name, precision), engine in best.items():
        for threads in (None,) if _on_cuda(name) else request.threads:
            yield Setting(*source.shape, precision, engine, name, threads)


def _on_cuda(name: str) -> bool:
    return backends.BACKENDS[name].cuda

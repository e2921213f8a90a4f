"""The best setting for this machine: proposals, canvas, precision, backend and threads, by AP within a budget of time.

Everything crossed would take too long, so each step leaves to the next only what can still be chosen:

1. Try (`sweep.Sweep`): each setting alone, a few frames. More proposals take more time, so that beyond the first
   number that is over the budget none is exported. INT8, no more accurate than what it is made from, is made only of
   graphs that are over the budget without it.
2. Measure: in turns within one run, what is near the fastest of its network.
3. Evaluate: the fastest setting of each network, as threads and library change AP by less than its noise.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from glmd_export.exporter import prove_and_write
from glmd_export.tuning.front import Candidate, Shape, choose
from glmd_export.tuning.latency import Latency, measure
from glmd_export.tuning.sweep import MARGIN, Frames, Request, Source, Step, Sweep, Trial, open_detector, over
from glmd_runtime.bundle import Bundle, open_bundle, write_bundle
from glmd_runtime.engines import open_engine
from glmd_runtime.errors import BundleError, GlmdError, ParityError
from glmd_runtime.files.scratch import work_folder
from glmd_runtime.files.values import shown
from glmd_runtime.tuned import TunedSpec, this_machine
from glmd_runtime.verify import verify_bundle
from glmd_runtime.verify_calibration import verify_calibration
from glmd_runtime.verify_report import VerifyReport
from glmd_train.checkpoint import Checkpoint
from glmd_train.data.coco import Record
from glmd_train.evaluate import EVAL_SCORE, detect, score
from glmd_train.scores.runs import load_set

FRAMES = 8  # pictures of the data that latency is measured on
ROUNDS = 20
_PRECISIONS = ("fp32", "fp16", "int8")  # the finest first


@dataclass
class Tuning:
    """How a tuning went.

    given        proposals and size_hw of the bundle as it was
    trials       every setting that ran
    candidates   those with AP, the fastest first
    chosen       what was written
    passed_over  what does not run here or did not pass verification, in sentences
    """

    machine: str
    request: Request
    given: Shape
    trials: list[Trial]
    candidates: list[Candidate] = field(default_factory=list)
    chosen: Candidate | None = None
    passed_over: list[str] = field(default_factory=list)
    seconds: float = 0.0


def tune(
    bundle: Bundle, weights: tuple[Checkpoint, Path] | None, output: Path, request: Request, *, overwrite: bool = False,
    step: Step = lambda _: None,
) -> Tuning:
    """Find the best setting for this machine, and write it as a new bundle that says so.

    Args: weights, the bundle's checkpoint and its file; None tries the bundle's own engines alone; step, told what
        begins.
    Raises: GlmdError when nothing is within the budget, ParityError when nothing that is gives the right answers,
        UnsupportedError when nothing runs here; what `load_set` and `write_bundle` do. Then nothing is written.
    """
    started = time.monotonic()
    sets = [load_set(path, _class_names(bundle)) for path in request.data]
    with work_folder("glmd-tune") as scratch:
        sweep = Sweep(bundle, weights, request, _frames(sets[0]), scratch, step)
        done = Tuning(this_machine(), request, Source(bundle).shape, sweep.run(), passed_over=sweep.passed_over)
        fastest = fastest_of_each_network(_measure(contenders(done.trials, request.budget_ms), sweep.frames, step))
        require_within(fastest, request)
        done.candidates = [Candidate(t.setting, ms, *_accuracy(t, sets, step)) for t, ms in fastest.items()]
        sources = {trial.setting: trial.source for trial in fastest}
        done.chosen = _write_best(done, sources, output, overwrite, step)
    done.seconds = time.monotonic() - started
    return done


def _class_names(bundle: Bundle) -> tuple[str, ...]:
    enrolled = bundle.manifest.enrolled
    return (*bundle.manifest.class_names, *(enrolled.class_names if enrolled else ()))


def _frames(records: Sequence[Record]) -> Frames:
    """Some pictures, evenly spaced."""
    chosen = np.linspace(0, len(records) - 1, min(FRAMES, len(records))).round().astype(int)
    return [records[i].read() for i in chosen]


def contenders(trials: Sequence[Trial], budget_ms: float) -> list[Trial]:
    """What is near the fastest of its network, of networks that may be within the budget.

    The bundle that was given is among them in any case, to be compared with, and the fastest of all, to be named where
    nothing is fast enough. A network that is no faster than one of finer precision and the same shape is not.
    """
    networks: dict[Any, list[Trial]] = {}
    for trial in trials:
        networks.setdefault(trial.setting.network, []).append(trial)
    fastest = min(trial.latency.fastest_ms for trial in trials)
    kept: list[Trial] = []
    for network in sorted(networks.values(), key=lambda some: _PRECISIONS.index(some[0].setting.precision)):
        best, first = min(trial.latency.fastest_ms for trial in network), network[0]
        finer = [t.latency.fastest_ms for t in kept if t.setting.shape == first.setting.shape and _finer(t, first)]
        wanted = best <= MARGIN * budget_ms or best == fastest or first.source.draft is None
        if wanted and best < min(finer, default=np.inf):
            kept += [trial for trial in network if trial.latency.fastest_ms <= MARGIN * best]
    return kept


def _finer(one: Trial, other: Trial) -> bool:
    return _PRECISIONS.index(one.setting.precision) < _PRECISIONS.index(other.setting.precision)


def _measure(trials: Sequence[Trial], frames: Frames, step: Step) -> dict[Trial, Latency]:
    """All of them open at once and in turns, so that they meet the same noise."""
    with ExitStack() as stack:
        runs = {t: over(stack.enter_context(open_detector(t.source, t.setting)), frames) for t in trials}
        return measure(runs, ROUNDS, step=lambda n: step(f"measure {len(runs)} settings, round {n} of {ROUNDS}"))


def fastest_of_each_network(latencies: Mapping[Trial, Latency]) -> dict[Trial, Latency]:
    """By the median, the fastest first."""
    best: dict[Any, tuple[Trial, Latency]] = {}
    for trial, latency in sorted(latencies.items(), key=lambda pair: pair[1].median_ms):
        best.setdefault(trial.setting.network, (trial, latency))
    return dict(best.values())


def require_within(latencies: Mapping[Trial, Latency], request: Request) -> None:
    """Raises: GlmdError that names the fastest when none is within the budget."""
    trial, latency = min(latencies.items(), key=lambda pair: pair[1].median_ms)
    if latency.median_ms > request.budget_ms:
        int8 = "" if request.calibration else ", or INT8 with --calib DIR"
        raise GlmdError(
            f"Nothing that was tried takes {request.budget_ms:g} ms a frame or less; the fastest is {trial.setting} "
            f"with {latency.median_ms:.1f} ms. Raise --budget-ms, or allow smaller --sizes, fewer --proposals{int8}."
        )


def _accuracy(trial: Trial, sets: Sequence[Sequence[Record]], step: Step) -> tuple[float, float]:
    """AP and AP50, the mean over the sets; 0..1."""
    with open_detector(trial.source, trial.setting) as detector:
        detector.score_threshold = EVAL_SCORE
        step(f"evaluate {trial.setting}")
        scores = [score(list(records), detect(detector.run, records), detector.class_names) for records in sets]
    ap, ap50 = (float(np.mean([one.mean(key) for one in scores])) for key in ("ap", "ap50"))
    return ap, ap50


def _write_best(
    done: Tuning, sources: Mapping[Any, Source], output: Path, overwrite: bool, step: Step
) -> Candidate:
    """The best of those that pass verification."""
    left = done.candidates
    while best := choose(left, done.request.budget_ms):
        source = sources[best.setting]
        step(f"verify {best.setting}")
        report = _write(source, tuned_spec(done, best), output, overwrite, step)
        if report.status == "passed":
            return best
        failed = [f"{r.stage} of {r.engine} on {r.backend}: {r.reason}" for r in report.rows if r.status == "failed"]
        done.passed_over.append(f"{best.setting} does not give the right answers: {'; '.join(failed)}.")
        left = [
            one for one in left if sources[one.setting] is not source or one.setting.backend != best.setting.backend
        ]
    raise ParityError(f"Nothing within the budget passed verification. {' '.join(done.passed_over)}")


def tuned_spec(done: Tuning, best: Candidate) -> TunedSpec:
    setting, latency, request = best.setting, best.latency, done.request
    return TunedSpec(
        done.machine, setting.engine, setting.backend, setting.threads, request.budget_ms,
        round(latency.median_ms, 2), round(latency.p90_ms, 2), round(best.ap, 4), round(best.ap50, 4),
        data_names(request),
    )


def data_names(request: Request) -> tuple[str, ...]:
    """Folder and name of each file: those of the machine's other folders are nobody else's business."""
    return tuple(shown(f"{path.absolute().parent.name}/{path.name}") for path in request.data)


def _write(source: Source, tuned: TunedSpec, output: Path, overwrite: bool, step: Step) -> VerifyReport:
    if source.draft:
        return prove_and_write(source.draft, output, tuned=tuned, overwrite=overwrite, step=step)
    bundle = open_bundle(source.bundle.path)
    if bundle.manifest != source.bundle.manifest:
        raise BundleError(f"{bundle.path} was replaced since it was opened. Tune it again.")
    rows = verify_bundle(bundle, tuned.backend, open_engine=open_engine).rows
    report = VerifyReport((*rows, *verify_calibration(bundle, tuned.backend)))
    if report.status == "passed":
        manifest = replace(bundle.manifest, name=shown(output.stem), tuned=tuned)
        write_bundle(output, manifest, bundle.files, overwrite=overwrite)
    return report

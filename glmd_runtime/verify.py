"""Every engine of a bundle, on every backend that can run here, against the reference in the bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from glmd_runtime import backends
from glmd_runtime.bundle import Bundle
from glmd_runtime.comparison import TOLERANCES, Outcome, compare_detections, compare_raw
from glmd_runtime.errors import BundleError, ParityError, PrecisionError, UnsupportedError
from glmd_runtime.install import install_command
from glmd_runtime.manifest import Manifest
from glmd_runtime.postprocess import RawOutputs, split_outputs
from glmd_runtime.preprocess import PreprocessSpec, preprocess
from glmd_runtime.reference import Reference
from glmd_runtime.verify_report import ENGINE_STAGES, PREPROCESS, VerifyReport, VerifyRow

OpenEngine = Callable[[Bundle, str, str], backends.Backend]  # bundle, engine file, name of the backend
CheckEngine = Callable[[backends.Backend], list[VerifyRow]]


def load_engine(bundle: Bundle, engine: str, backend: str) -> backends.Backend:
    """An engine file as it lies in the bundle; nothing is built, so "tensorrt" needs `engines.open_engine`."""
    return backends.load(backend, bundle.path / engine, read=bundle.read)


def verify_bundle(
    bundle: Bundle, backend: str | None = None, *, open_engine: OpenEngine = load_engine
) -> VerifyReport:
    """Run every engine of a bundle on every backend that can run here, or on one, against the bundle's own reference.

    Returns: failed rows also for engines that do not load; not_run rows for those that cannot run here, with the reason
        and the command to run elsewhere.
    Raises: UnsupportedError when no backend is installed, or the one asked for cannot run; UsageError when it is
        unknown.
    """
    if backend is not None:
        backends.require(backend)
    if not backends.available():
        raise UnsupportedError(f"Verifying needs an inference library. Run: {install_command('cpu')}")
    rows = [check_preprocess(bundle.reference, bundle.manifest.preprocess)]
    for engine in bundle.manifest.engines:
        for name in backends.readers(engine):
            if backend in (None, name):
                rows += engine_rows(bundle, engine, name, open_engine)
    return VerifyReport(tuple(rows))


def engine_rows(
    bundle: Bundle, engine: str, name: str, open_engine: OpenEngine, check: CheckEngine | None = None
) -> list[VerifyRow]:
    """The rows of one engine on one backend, whatever becomes of it; `check` is `check_engine` if None."""
    precision = bundle.manifest.engines[engine]

    def failed(reason: str) -> list[VerifyRow]:
        return [VerifyRow(engine, name, precision, stage, "failed", reason) for stage in ENGINE_STAGES]

    if precision not in TOLERANCES:
        reason = f"no tolerance is defined for {precision}"
        return [VerifyRow(engine, name, precision, stage, "not_run", reason) for stage in ENGINE_STAGES]
    if why := backends.why_not(name):
        return not_run_rows(bundle, engine, name, why)
    try:
        backend = open_engine(bundle, engine, name)
    except UnsupportedError as error:
        return not_run_rows(bundle, engine, name, str(error))
    except (BundleError, ParityError, PrecisionError) as error:
        return failed(str(error))
    try:
        return check(backend) if check else check_engine(backend, name, engine, bundle.manifest, bundle.reference)
    except Exception as error:  # whatever a library raises while it runs is no answer
        return failed(f"it failed while it ran: {str(error).strip()}. Export the checkpoint again")
    finally:
        backend.close()


def not_run_rows(
    bundle: Bundle, engine: str, backend: str, why: str, stages: Sequence[str] = ENGINE_STAGES
) -> list[VerifyRow]:
    """Rows of an engine that cannot run here: `why` (with its remedy), and the command to run where it can."""
    reason = f"{why.rstrip('. ')}. Then, or where it can run: glmd-verify {bundle.path.name} --backend {backend}"
    precision = bundle.manifest.engines[engine]
    return [VerifyRow(engine, backend, precision, stage, "not_run", reason) for stage in stages]


def check_preprocess(reference: Reference, spec: PreprocessSpec) -> VerifyRow:
    """The reference's frames through this machine's `preprocess`; builds of OpenCV may differ by one intensity."""
    worst = 0.0
    for frame, image, valid_hw in zip(reference.frames, reference.images, reference.valid_hw, strict=True):
        came, geometry = preprocess(frame, spec)
        same_size = came.shape == image.shape and geometry.valid_hw == tuple(valid_hw)
        worst = max(worst, float(np.abs(came - image).max() * max(spec.std)) if same_size else np.inf)
    outcome = Outcome.of(("intensity_error", worst, "<=", 1.01))  # a hundredth for the rounding of the division
    return VerifyRow(PREPROCESS, "numpy", "fp32", PREPROCESS, outcome.status, outcome.reason, outcome.metrics)


def check_engine(
    backend: backends.Backend, name: str, engine: str, manifest: Manifest, reference: Reference
) -> list[VerifyRow]:
    """Two rows: an engine's raw outputs, and the detections made of them, against the reference."""
    precision = manifest.engines[engine]
    came = run_engine(backend, manifest, reference)
    expected, tolerance = reference.raw_outputs, TOLERANCES[precision]
    outcomes = (
        compare_raw(expected, came, tolerance, canvas=max(reference.images.shape[2:])),
        compare_detections(expected, came, tolerance, reference.valid_hw, manifest.postprocess),
    )
    return [
        VerifyRow(engine, name, precision, stage, outcome.status, outcome.reason, outcome.metrics)
        for stage, outcome in zip(ENGINE_STAGES, outcomes, strict=True)
    ]


def run_engine(backend: backends.Backend, manifest: Manifest, reference: Reference) -> list[RawOutputs]:
    """An engine's raw outputs of the reference's images, in their order."""
    inputs = {"images": reference.images, "valid_hw": reference.valid_hw}
    return split_outputs(backends.run_padded(backend, manifest.graph.batch, inputs))

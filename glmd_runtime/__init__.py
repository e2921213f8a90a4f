"""GLMDNet on the device: numpy, OpenCV and one inference library; never torch.

>>> from glmd_runtime import Detector
>>> with Detector("models/thermal_lite0.glmd") as detector:  # doctest: +SKIP
...     found = detector.run(frame)
"""

from glmd_runtime.errors import (
    BundleError,
    FrameError,
    GlmdError,
    ParityError,
    SourceError,
    UnsupportedError,
    UsageError,
)

__version__ = "0.1.0"  # the one place: pyproject.toml and CMakeLists.txt read it here

try:
    from glmd_runtime.bundle import Bundle, open_bundle
    from glmd_runtime.camera.bad_pixels import find_bad_pixels
    from glmd_runtime.camera.front_end import Camera, FrontEnd
    from glmd_runtime.detections import Detections
    from glmd_runtime.detector import Detector
    from glmd_runtime.manifest import Manifest
    from glmd_runtime.postprocess import PostprocessSpec, RawOutputs, postprocess
    from glmd_runtime.preprocess import Geometry, PreprocessSpec, preprocess
    from glmd_runtime.thermal import Intensity, Radiometry
    from glmd_runtime.verify import verify_bundle
    from glmd_runtime.verify_report import VerifyReport
except ImportError as _error:  # of numpy or OpenCV, which glmd-doctor must be able to explain
    _why = _error

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        raise UnsupportedError(f"numpy and OpenCV must work here; got: {_why}. Run: glmd-doctor") from _why


__all__ = [
    "Bundle",
    "BundleError",
    "Camera",
    "Detections",
    "Detector",
    "FrameError",
    "FrontEnd",
    "Geometry",
    "GlmdError",
    "Intensity",
    "Manifest",
    "ParityError",
    "PostprocessSpec",
    "PreprocessSpec",
    "Radiometry",
    "RawOutputs",
    "SourceError",
    "UnsupportedError",
    "UsageError",
    "VerifyReport",
    "find_bad_pixels",
    "open_bundle",
    "postprocess",
    "preprocess",
    "verify_bundle",
]

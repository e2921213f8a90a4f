"""Pictures of PyAV as camera arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glmd_runtime.errors import SourceError, UnsupportedError
from glmd_runtime.install import install_command
from glmd_runtime.thermal import Radiometry

if TYPE_CHECKING:
    import av

# Containers that hold a video themselves. FFmpeg also reads playlists and scripts (hls, dash, concat, sdp, lavfi ...),
# which make it open whatever else they name.
CONTAINERS = (
    "apng,asf,av1,avi,cine,dv,flv,gif,h263,h264,hevc,ivf,m4v,matroska,mjpeg,mov,mpeg,mpegts,mpegvideo,mpjpeg,mxf,nut,obu,"
    "ogg,rawvideo,ser,vc1,vvc,wtv,yuv4mpegpipe"
)

_COUNTS = ("gray10le", "gray12le", "gray14le", "gray16le")


def import_av() -> Any:
    """PyAV, or an error that says how to get it."""
    try:
        import av
    except ModuleNotFoundError as error:
        remedy = install_command("video")
        raise UnsupportedError(f"Reading and writing video needs PyAV. Run: {remedy}") from error
    return av


def to_array(picture: av.VideoFrame) -> NDArray[Any]:
    """Grey stays grey, (H, W) uint8 or uint16 counts; everything else becomes (H, W, 3) uint8 BGR."""
    name = picture.format.name
    if name in _COUNTS:  # by hand, since a conversion would scale 14-bit counts up to 16 bits
        plane: Any = picture.planes[0]
        rows = np.frombuffer(plane, "<u2").reshape(-1, plane.line_size // 2)  # (H, W + padding)
        return np.array(rows[: picture.height, : picture.width], np.uint16)
    if name == "gray":
        return picture.to_ndarray(format="gray")
    return picture.to_ndarray(format="gray16le" if name.startswith("gray1") else "bgr24")


def check_counts(image: NDArray[Any], radiometry: Radiometry | None, name: str) -> None:
    """Raises: SourceError where temperatures are asked of a picture that does not hold counts."""
    if radiometry is not None and image.dtype != np.uint16:
        raise SourceError(
            f"celsius=... needs 16-bit counts; {name} gives {image.shape} {image.dtype}. Remove celsius, or read the "
            "camera's raw counts."
        )

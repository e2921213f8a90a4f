"""Arrays in a .npz file: none is made before it is known how large it becomes, and no object is unpickled."""

from __future__ import annotations

import io
import math
from typing import Any
from zipfile import ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

MOST_BYTES = 1 << 30  # of all arrays together, unpacked
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(content: bytes, most: int = MOST_BYTES) -> dict[str, NDArray[Any]]:
    """The arrays of a .npz file by name.

    Raises: ValueError for another content, for arrays of objects, and for more than `most` bytes of arrays.
    """
    try:
        with ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if (unpacked := sum(member.file_size for member in members)) > most:
                raise ValueError(f"its arrays have {unpacked} bytes, of at most {most}")
            return {member.filename.removesuffix(".npy"): _array(archive, member) for member in members}
    except ValueError:
        raise
    except Exception as error:  # a damaged archive raises whatever it stumbles over
        raise ValueError(f"it is no archive of arrays, or is damaged ({type(error).__name__})") from error


def _array(archive: ZipFile, member: ZipInfo) -> NDArray[Any]:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{member.filename} is an array of the format {version}")
        shape, _, dtype = _HEADERS[version](file)
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds Python objects, which would be unpickled")
        # numpy makes room for what the header says, which may be anything; the archive says what there is.
        if (said := math.prod(shape) * dtype.itemsize) != (there := member.file_size - file.tell()):
            raise ValueError(f"{member.filename} is an array of {said} bytes, of which there are {there}")
    with archive.open(member) as file:
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))

"""A .pkl file of arrays by name, as detectron2 and Caffe2 publish weights, read without executing anything.

A pickle is a program that calls what it names. Here it can name nothing but the stand-ins below: they keep what they
are given, and the arrays are made of that afterwards. numpy itself is never called by the file, and the stand-ins
cannot be altered by it.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmd_runtime.errors import CheckpointError

MAX_BYTES = 2 << 30  # ResNet-101 has 0.2 GB; a file is read into memory at once
_NUMBERS = frozenset({"f2", "f4", "f8", *(f"{kind}{size}" for kind in "iu" for size in "1248")})
_NO_TUPLE = re.compile("GLOBAL|REDUCE|BUILD|OBJ|INST|STRING|UNICODE|BYTE|DICT|LIST|INT|LONG|FLOAT|TRUE|FALSE")
_MOST_TAKEN_AGAIN = 12
_DAMAGED = "is not a pickle of arrays, or is damaged"


class RefusedError(Exception):
    """The file names something that is no part of an array."""


def read_pickle(path: Path) -> dict[str, Any]:
    """The dictionary in a pickle, and the dictionaries in that one: numpy arrays, texts, numbers and None by name.

    Whatever else they hold, such as lists and deeper dictionaries, has no meaning in a file of weights and is left out.
    Raises: CheckpointError if the file names more than arrays, is damaged, or is larger than MAX_BYTES, or if its
        arrays are larger than it is.
    """
    if path.stat().st_size > MAX_BYTES:
        size, most = path.stat().st_size >> 20, MAX_BYTES >> 20
        raise CheckpointError(f"{path} has {size} MB; a file of weights has at most {most} MB.")
    content = path.read_bytes()
    try:
        _check_program(content)
        found = _Unpickler(io.BytesIO(content), encoding="latin1").load()  # Python 2 kept bytes in strings
        if not isinstance(found, dict):
            raise CheckpointError(f"{path} holds a {type(found).__name__}; expected arrays by name.")
        return _with_arrays(found, len(content))
    except RefusedError as error:
        raise CheckpointError(
            f"{path} names {error}; a file of weights holds arrays alone, and code is never executed. "
            "Take the file from where it was published."
        ) from error
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle raises whatever it stumbles over
        raise CheckpointError(f"{path} {_DAMAGED} ({type(error).__name__}). Copy it again.") from error


def _check_program(content: bytes) -> None:
    """Every length must be there before anything of that length is made, and no place in the memo far beyond the last.

    Python's own unpickler would make room for whatever a few bytes ask for. A tuple of twice the tuple before, sixty
    levels deep, would be hashed for ever: so what may be a tuple is taken again a few times only.
    """
    made: dict[int, str] = {}  # place in the memo -> the operation that made what is there
    before, taken_again = "", 0
    for operation, argument, position in pickletools.genops(content):  # raises for lengths beyond the file's end
        name = operation.name
        if name.endswith("PUT") and argument > position:
            raise ValueError(f"memo place {argument}")
        if name == "MEMOIZE" or name.endswith("PUT"):
            made[len(made) if argument is None else argument] = before
            continue
        taken_again += name == "DUP" or (name.endswith("GET") and not _NO_TUPLE.search(made.get(argument, "")))
        if taken_again > _MOST_TAKEN_AGAIN:
            raise ValueError("tuples of tuples")
        before = name


class _Array:
    """What a pickle says of an array: its shape, type, whether it goes column by column, and its numbers."""

    shape: Any = ()
    dtype: Any = None
    columns: Any = None
    numbers: bytes | bytearray | str = b""

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.columns, self.numbers = state  # first a version
        if not isinstance(self.numbers, bytes | bytearray | str):  # of a number, bytes() would make as many zeros
            raise ValueError("an array without numbers")

    def to_numpy(self) -> NDArray[Any]:
        if not isinstance(self.dtype, _Dtype):
            raise ValueError("an array without a type")
        raw = self.numbers.encode("latin1") if isinstance(self.numbers, str) else self.numbers
        flat = np.frombuffer(raw, np.dtype(self.dtype.order + self.dtype.kind))
        return flat.reshape(self.shape, order="F" if self.columns else "C").copy()


class _Dtype:
    """What a pickle says of an array's type: a number of some bytes in some order."""

    def __init__(self, kind: str, *_: object) -> None:
        if kind not in _NUMBERS:
            raise RefusedError(f"an array of {kind!r}")
        self.kind, self.order = kind, "<"

    def __setstate__(self, state: Any) -> None:
        self.order = {"<": "<", ">": ">", "|": "|"}[state[1]]


def _empty(kind: object, shape: object, code: object) -> _Array:
    return _Array()


def _from_buffer(numbers: object, dtype: object, shape: object, order: object) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", numbers))
    return array


def _scalar(dtype: object, numbers: object) -> _Array:
    return _from_buffer(numbers, dtype, (), "C")


def _encoded(text: str, encoding: str) -> bytes:
    """What Python 3 writes for bytes in Python 2's protocols."""
    if encoding != "latin1":
        raise RefusedError(f"the encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """And what it writes for none."""
    return b""


class _Names(dict[Any, Any]):
    """A dictionary that kept its order before all did."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """What torch notes beside the weights (`_metadata`) is not needed."""


@dataclass(frozen=True)
class _StandIn:
    """What a file may name and call. Of a plain function or class, a pickle could set attributes, for all to come."""

    make: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise RefusedError("a change of what reads it")


_NUMPY: Mapping[str, Callable[..., Any]] = {
    "multiarray._reconstruct": _empty, "multiarray.scalar": _scalar, "numeric._frombuffer": _from_buffer,
}
_STAND_INS: Mapping[str, _StandIn] = {name: _StandIn(made) for name, made in {
    "numpy.ndarray": _Array, "numpy.dtype": _Dtype, "_codecs.encode": _encoded, "__builtin__.bytes": _no_bytes,
    "collections.OrderedDict": _Names,
    **{f"numpy.{core}.{name}": made for core in ("core", "_core") for name, made in _NUMPY.items()},  # numpy 1, 2
}.items()}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _STAND_INS:
            raise RefusedError(f"{module}.{name}")
        return _STAND_INS[f"{module}.{name}"]


def _with_arrays(content: dict[Any, Any], most: int) -> dict[str, Any]:
    """Arrays and plain values by name, one dictionary deep ("model", "blobs"); not more than `most` of either.

    A name takes some bytes of a file, and a number too; only what is named again and again can be more than that.
    """
    levels = [content, *(value for value in content.values() if isinstance(value, dict))]
    if sum(map(len, levels)) > most or sum(map(_size, levels)) > most:
        raise ValueError("arrays of arrays")
    nested = {str(key): _plain_values(value) for key, value in content.items() if isinstance(value, dict)}
    return {**_plain_values(content), **nested}


def _size(level: dict[Any, Any]) -> int:
    return sum(len(value.numbers) for value in level.values() if isinstance(value, _Array))


_PLAIN = (str, bytes, int, float, np.ndarray, type(None))


def _plain_values(level: dict[Any, Any]) -> dict[str, Any]:
    made = {str(key): value.to_numpy() if isinstance(value, _Array) else value for key, value in level.items()}
    return {key: value for key, value in made.items() if isinstance(value, _PLAIN)}

"""ONNX files: all of a model is in its file.

ONNX can leave tensors in other files, which it names by path: a library that is given such a model reads whatever is
there. Bundles have none, so a model that names a file is refused before any library sees it. It is read here as what it
is, protobuf, since the device has no onnx. Libraries differ in what they make of protobuf that no serialiser writes:
what one may read in another way than is done here is refused, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from glmd_runtime.errors import BundleError

# Which fields of a message hold which messages, down to every tensor that a model can have (onnx.proto).
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL = (13, 14)  # fields of a tensor: what it names, and that it does
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types; groups are not ONNX's
_LONGEST, _SHORT = 10, 5  # bytes of a number, and of tags and lengths, of which protobuf reads no more


def check_onnx(content: bytes, path: Path) -> None:
    """Raises: BundleError for a file that is no protobuf, or a model of which a tensor is in another file."""
    try:
        external = _names_files(memoryview(content))
    except ValueError as error:
        raise BundleError(f"{path} is no ONNX model, or is damaged: {error}. Export the checkpoint again.") from error
    if external:
        raise BundleError(f"{path} keeps tensors in other files, which are not read. Export it with all in one file.")


def _names_files(content: memoryview) -> bool:
    messages = [("model", content)]
    while messages:
        kind, message = messages.pop()
        for field, value in _fields(message):
            if isinstance(value, memoryview):
                if kind == "tensor" and field in _EXTERNAL:
                    return True
                if field in _INSIDE[kind]:
                    messages.append((_INSIDE[kind][field], value))
            elif kind == "tensor" and field in _EXTERNAL and value:
                return True
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of each field: a whole number, or bytes; of fixed-size numbers 0, for none of them matters."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at, _SHORT)
        if not 8 <= tag < 1 << 32:  # protobuf in C++ drops the bits above, and ends a message at a field 0
            raise ValueError(f"a field of the number {tag >> 3}")
        wire, value = tag & 7, 0
        if wire == _VARINT:
            value, at = _varint(message, at)
        elif wire == _BYTES:
            length, at = _varint(message, at, _SHORT)
            yield tag >> 3, message[at : at + length]
            at += length
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"a field of the kind {wire}")
        if at > len(message):
            raise ValueError("it ends in the middle of a field")
        if wire != _BYTES:
            yield tag >> 3, value


def _varint(message: memoryview, at: int, most: int = _LONGEST) -> tuple[int, int]:
    """(value, where the next thing begins)"""
    value = 0
    for place in range(most):
        if at + place >= len(message):
            raise ValueError("it ends in the middle of a number")
        byte = message[at + place]
        value |= (byte & 127) << (7 * place)
        if byte < 128:
            return value, at + place + 1
    raise ValueError(f"a number of more than {most} bytes")

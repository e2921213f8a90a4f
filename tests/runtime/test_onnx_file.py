"""Protobuf made by hand: tensors that name files wherever a model can have one, and what is no protobuf."""

from __future__ import annotations

from pathlib import Path

import pytest

from glmd_runtime.errors import BundleError
from glmd_runtime.files.onnx_file import check_onnx

LOCATION = b"\x6a\x01x"  # field 13 of a tensor, what it names
IS_EXTERNAL = b"\x70\x01"  # field 14, that its data lies elsewhere
NUMBERS = b"\x15\0\0\0\0\x19\0\0\0\0\0\0\0\0\x08\x05"  # numbers of 4 and 8 bytes and a variable one: fields 2, 3 and 1
PLACES = {
    "a weight": (7, 5),
    "a sparse weight's values": (7, 15, 1),
    "a sparse weight's indices": (7, 15, 2),
    "a constant": (7, 1, 5, 5),
    "a list of constants": (7, 1, 5, 10),
    "a weight of a branch": (7, 1, 5, 6, 5),
    "a weight of one of several branches": (7, 1, 5, 11, 5),
    "a sparse constant": (7, 1, 5, 22, 1),
    "a list of sparse constants": (7, 1, 5, 23, 2),
    "training's first step": (20, 1, 5),
    "training's every step": (20, 2, 5),
    "a constant of a function": (25, 7, 5, 5),
    "a function's default": (25, 11, 5),
}


def varint(value: int) -> bytes:
    return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])


def within(places: tuple[int, ...], content: bytes) -> bytes:
    """The content as a field in a field, outermost first, with numbers before it that tell nothing."""
    for number in reversed(places):
        content = NUMBERS + varint(number << 3 | 2) + varint(len(content)) + content
    return content


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("tensor", [LOCATION, IS_EXTERNAL])
def test_a_tensor_in_another_file_is_found_wherever_it_is(place: str, tensor: bytes) -> None:
    check_onnx(within(PLACES[place], NUMBERS), Path("m.onnx"))
    with pytest.raises(BundleError, match=r"^m\.onnx keeps tensors in other files, .* all in one file\.$"):
        check_onnx(within(PLACES[place], NUMBERS + tensor), Path("m.onnx"))


def test_a_tensor_may_say_that_its_data_is_here() -> None:
    check_onnx(within((7, 5), b"\x70\x00"), Path("m.onnx"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no model", "a field of the kind 6"),
        (b"\x0f", "a field of the kind 7"),
        (b"\x0b", "a field of the kind 3"),
        (b"\x3a", "it ends in the middle of a number"),
        (b"\x3a\x05ab", "it ends in the middle of a field"),
        (b"\x15\0\0\0", "it ends in the middle of a field"),
        (b"\x19\0\0\0\0", "it ends in the middle of a field"),
        (b"\x08" + b"\x80" * 10 + b"\x01", "a number of more than ten bytes"),
    ],
)
def test_what_is_no_protobuf(content: bytes, said: str) -> None:
    with pytest.raises(BundleError, match=rf"^m\.onnx is no ONNX model, or is damaged: {said}\. Export the checkpoint"):
        check_onnx(content, Path("m.onnx"))

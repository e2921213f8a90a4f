"""Protobuf made by hand: tensors that name files wherever a model can have one, and what is no protobuf."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from glmd_runtime.errors import BundleError
from glmd_runtime.files import onnx_file
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


KINDS = {
    "ModelProto": "model", "TrainingInfoProto": "training", "FunctionProto": "function", "GraphProto": "graph",
    "NodeProto": "node", "AttributeProto": "attribute", "SparseTensorProto": "sparse", "TensorProto": "tensor",
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


def test_every_place_is_known_in_which_onnx_can_have_a_tensor() -> None:
    """As the library describes its own format; sparse tensors are made of tensors."""
    held: dict[str, dict[int, str]] = {}  # message -> field -> the message in it

    def walk(message: Any) -> None:
        if message.name not in held:
            inside = [(field.number, field.message_type) for field in message.fields if field.message_type]
            held[message.name] = {number: one.name for number, one in inside}
            for _, one in inside:
                walk(one)

    walk(onnx.ModelProto.DESCRIPTOR)
    leading = {"TensorProto"}
    while grown := {name for name, fields in held.items() if leading & set(fields.values())} - leading:
        leading |= grown
    told = {KINDS[m]: {n: KINDS[one] for n, one in held[m].items() if one in leading} for m in leading}
    assert told == onnx_file._INSIDE


HIGH = 1 << 32  # of a tag: protobuf in C++ drops it, so that the field is another one to it
WEIGHT = within((5,), NUMBERS + LOCATION)
ODD = {
    "a graph by a tag too large": varint(7 << 3 | 2 | HIGH) + varint(len(WEIGHT)) + WEIGHT,
    "a name by a tag too large": within((7, 5), varint(13 << 3 | 2 | HIGH) + b"\x01x"),
    "a mark by a tag too large": within((7, 5), varint(14 << 3 | HIGH) + b"\x01"),
    "a tag that is larger still": within((7, 5), varint(14 << 3 | 1 << 34) + b"\x01"),
    "a tag of ten bytes": within((7, 5), b"\xf0" + b"\x80" * 8 + b"\0\x01"),
    "a tag of two bytes, where one would do": within((7, 5), b"\xea\0\x01x"),
    "a length of two bytes, where one would do": within((7, 5), b"\x6a\x81\0x"),
    "a length of six bytes": within((7, 5), b"\x6a\x81\x80\x80\x80\x80\0x"),
    "a graph that is a group": b"\x3b" + WEIGHT + b"\x3c",
    "a tensor that is a group": within((7,), b"\x2b" + LOCATION + b"\x2c"),
    "behind the end of a group": b"\x3c" + within((7,), WEIGHT),
    "behind a field 0": b"\0" + within((7,), WEIGHT),
    "in the second graph, which is merged into the first": within((7,), NUMBERS) + within((7,), WEIGHT),
    "a tensor in two halves": within((7, 1, 5), within((5,), NUMBERS) + within((5,), LOCATION)),
    "a mark that is taken back": within((7, 5), IS_EXTERNAL + b"\x70\0"),
    "a mark that is no number": within((7, 5), b"\x72\x01\x01"),
    "a mark with bits beyond 32": within((7, 5), b"\x70" + varint(1 << 32 | 1)),
}


@pytest.mark.parametrize("odd", ODD)
def test_what_no_serialiser_writes(odd: str) -> None:
    """Each is read in one way by some library, and in another one by others, or as a tensor elsewhere by all."""
    with pytest.raises(BundleError, match=r"^m\.onnx (keeps tensors in other files|is no ONNX model, or is damaged)"):
        check_onnx(ODD[odd], Path("m.onnx"))


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
        (b"\x08" + b"\x80" * 10 + b"\x01", "a number of more than 10 bytes"),
        (b"\x88" + b"\x80" * 4 + b"\0\x01", "a number of more than 5 bytes"),
        (b"\x3a\x80\x80\x80\x80\x80\0", "a number of more than 5 bytes"),
        (varint(58 | HIGH) + b"\0", "a field of the number 536870919"),
        (b"\0", "a field of the number 0"),
        (b"\x02\0", "a field of the number 0"),
        (within((7,), b"\x07"), "a field of the number 0"),
        (within((7,), b"\x2a\x05ab"), "it ends in the middle of a field"),
        (b"\x3a\xff\xff\xff\xff\x0f", "it ends in the middle of a field"),
        (b"\x12\xff\xff\xff\xff\x7f", "it ends in the middle of a field"),
    ],
)
def test_what_is_no_protobuf(content: bytes, said: str) -> None:
    with pytest.raises(BundleError, match=rf"^m\.onnx is no ONNX model, or is damaged: {said}\. Export the checkpoint"):
        check_onnx(content, Path("m.onnx"))

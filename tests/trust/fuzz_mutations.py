"""How inputs are changed: by the parts that a format has, so that most of them get past the first check."""

from __future__ import annotations

import io
import json
import pickletools
import re
import struct
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from random import Random
from typing import Any
from zipfile import ZipFile
from zlib import crc32

import numpy as np

Mutation = Callable[[bytes, Random], bytes]


@dataclass(frozen=True)
class Target:
    """What is done with one input, and where inputs come from.

    run      takes one input, and may raise GlmdErrors
    seeds    inputs that are accepted, made by code
    mutate   changes an input
    hostile  inputs to begin with that are refused
    """

    run: Callable[[bytes], object]
    seeds: list[bytes]
    mutate: Mutation
    hostile: list[bytes] = field(default_factory=list)

    @property
    def inputs(self) -> list[bytes]:
        return self.seeds + self.hostile


PART = b"\x1e"  # between the files of an input that is several
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 0.5, -0.0, 1e-300, 1e308, float("nan"), float("inf"), -float("inf"), 255, 65536,
    2**31, 2**63, 10**30, "", " ", "a", "0", "nan", "../x", "/", "x/../../y", "\0", "\ud800", "a\x1b[2J", "a\nb", "é",
    "a" * 300, [], {}, [0], [[]], [1, 2], [1, 2, 3, 4], {"": 0}, {"a": {"b": []}}, [None], [[[[[[[[]]]]]]]],
)
WORDS = (
    b"", b"0", b"1", b"-1", b"nan", b"inf", b"1e309", b"1e-320", b"9" * 30, b"null", b"~", b"true", b"[]", b"{}", b"''",
    b'"', b"\n", b"\t", b":", b"- ", b"&a ", b"*a", b"!!python/name:os.system", b"!!binary ", b"!!set ", b"<<: ", b"..",
    b"../", b"//", b"%00", b"%", b"?", b"#", b"@", b"&", b"=", b"<", b">", b"/>", b"&amp;", b"]]>", b"\0", b"\xff",
    b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\x85", b"(", b")", b"()", b"_", b"0x1f", b"1_0", b"2026-01-01", b"1:30",
)
# Each does something to a pickle's stack: builds, calls, names, remembers.
OPERATIONS = (
    b"(", b".", b"0", b"2", b"N", b"K\x05", b"M\xff\xff", b"}", b"]", b")", b"t", b"\x85", b"\x86", b"\x87", b"s",
    b"u", b"e", b"a", b"R", b"b", b"o", b"\x81", b"\x92", b"\x93", b"Q", b"h\x00", b"q\x00", b"\x94", b"\x8f",
    b"\x90", b"\x91", b"cos\nsystem\n", b"cbuiltins\neval\n", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n",
    b"ccollections\nOrderedDict\n", b"c_codecs\nencode\n", b"S'touch canary'\n", b"U\x02f4", b"\x8c\x02f8",
    b"ios\nsystem\n", b"\x82\x01", b"G" + bytes(8), b"\x8a\x08" + b"\x7f" * 8, b"I99999999999\n", b"L-1L\n",
    b"\x96" + bytes(8), b"\x97", b"\x98", b"\x80\x05", b"1",
)
_INTEGERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)


def attempt_all(*reads: Callable[[], object]) -> None:
    """Every one of them is tried; then the last one's refusal, if any refused."""
    from glmd_runtime.errors import GlmdError

    refusal = None
    for read in reads:
        try:
            read()
        except GlmdError as error:
            refusal = error
    if refusal:
        raise refusal


def joined(*files: bytes | str) -> bytes:
    return PART.join(file.encode() if isinstance(file, str) else file for file in files)


def split(data: bytes, count: int) -> list[bytes]:
    """The files of an input; those that it lacks are empty."""
    found = data.split(PART, count - 1)
    return found + [b""] * (count - len(found))


def octets(data: bytes, rng: Random) -> bytes:
    """One change of bytes, whatever they mean: of bits, left out, doubled, moved, cut, a number in their place."""
    if not data:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(8)))
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice((1, 1, 2, 4, 8, 64)))
    number = struct.pack("<Q", rng.choice(_INTEGERS))[: rng.choice((1, 2, 4, 8))]
    middle = rng.choice((
        bytes([data[start] ^ 1 << rng.randrange(8)]) + data[start + 1 : end], b"", data[start:end] * 2,
        data[rng.randrange(len(data)) :][: end - start], bytes(rng.randrange(256) for _ in range(end - start)), number,
    ))
    return data[:start] if rng.random() < 0.02 else data[:start] + middle + data[end:]


def words(data: bytes, rng: Random) -> bytes:
    """A text with some of its words left out, doubled, exchanged, or with others in their place."""
    found = re.findall(rb"\w+|\W", data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(found) + 1)
        length = rng.choice((0, 1, 1, 1, 3))
        put = rng.choice(([], found[place : place + 2] * 2, [rng.choice(WORDS)], [rng.choice(found or [b"x"])]))
        found[place : place + length] = put
    return b"".join(found)


def json_values(data: bytes, rng: Random) -> bytes:
    """A JSON text, one value or several of it replaced, left out, renamed or copied elsewhere."""
    try:
        tree = [json.loads(data)]
    except (ValueError, RecursionError):
        return words(data, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _change(tree, rng)
    return json.dumps(tree[0] if tree else None).encode()


def _change(tree: list[Any], rng: Random) -> None:
    places = list(_places(tree))
    if not places:
        return
    holder, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        other, name = rng.choice(places)
        holder[key] = deepcopy(other[name])  # as nothing may hold itself
    elif kind == 2 and isinstance(holder, dict):
        holder[rng.choice([str(k) for _, k in places])] = holder.pop(key)
    elif kind == 2:
        holder.insert(key, holder[key])
    elif kind == 3:
        holder[key] = _near(holder[key], rng)
    else:
        holder[key] = deepcopy(rng.choice(VALUES))


def _places(holder: Any) -> Any:
    items = holder.items() if isinstance(holder, dict) else enumerate(holder)
    for key, value in items:
        yield holder, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _near(value: Any, rng: Random) -> Any:
    """A value of the same kind, or one that is written alike."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return rng.choice((-value, value + 1, value * 1000, value / 2, str(value), [value]))
    if isinstance(value, str):
        return rng.choice((value[:-1], value + "x", value.upper(), f" {value}", [value], {value: value}))
    return rng.choice((str(value), list(value)[:-1], list(value) * 2))


_KINDS = ("f4", ">f4", "f8", "f2", "i8", "u1", "u2", "?", "U2", "M8[s]", "c8")
_NUMBERS = (0.0, -1.0, 1e30, -3e38, float("nan"), float("inf"), 1e-30, 63.5, 2.0**31)


def arrays(data: bytes, rng: Random) -> bytes:
    """A .npz file, one of its arrays or several left out, of another shape or type, doubled, or with odd numbers."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            found = dict(file)
    except Exception:  # it raises whatever it stumbles over
        return octets(data, rng)
    for _ in range(rng.choice((1, 1, 2, 3))):
        name = rng.choice([*found, "more"])
        array = found.get(name, np.zeros(4, np.float32))
        found[name] = rng.choice((_of_another_shape, _of_another_kind, _with_odd_numbers))(array, rng)
        if rng.random() < 0.1:
            del found[name]
    buffer = io.BytesIO()
    np.savez(buffer, **found)
    return buffer.getvalue()


def _of_another_shape(array: np.ndarray, rng: Random) -> np.ndarray:
    rows = array if array.ndim else array[None]
    return rng.choice((
        rows[:0], rows[:1], rows[:-1], rows[..., :-1], rows[None], rows[0] if len(rows) else rows, rows.reshape(-1),
        np.concatenate([rows, rows]), rows.T, np.asfortranarray(rows), np.asarray(5),
    ))


def _of_another_kind(array: np.ndarray, rng: Random) -> np.ndarray:
    with np.errstate(all="ignore"):
        try:
            return array.astype(rng.choice(_KINDS))
        except Exception:  # texts of dates, numbers that do not fit: it raises whatever it stumbles over
            return array


def _with_odd_numbers(array: np.ndarray, rng: Random) -> np.ndarray:
    if array.dtype.kind not in "fiub" or not array.size:
        return array
    changed = array.copy()
    places = [rng.randrange(array.size) for _ in range(rng.choice((1, 1, 4, array.size)))][:1000]
    with np.errstate(all="ignore"):
        changed.flat[places] = np.array([rng.choice(_NUMBERS) for _ in places]).astype(array.dtype)
    return changed


def operations(data: bytes, rng: Random) -> bytes:
    """A pickle, some of its operations left out, doubled, exchanged or replaced."""
    try:
        starts = [position for _, _, position in pickletools.genops(data)]
    except Exception:  # it raises whatever it stumbles over
        return octets(data, rng)
    found = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(found) + 1)
        put = rng.choice(([], found[place : place + 1] * 2, [rng.choice(OPERATIONS)], [rng.choice(found or [b"."])]))
        found[place : place + rng.choice((0, 1, 1))] = put
    return b"".join(found)


def safetensors(data: bytes, rng: Random) -> bytes:
    """A header of JSON behind its length, and the numbers; of ours, the header has JSON in it once more."""
    (length,) = struct.unpack("<Q", data[:8].ljust(8, b"\0"))
    header, numbers = data[8 : 8 + length], data[8 + length :]
    try:
        values = json.loads(header)
        if rng.random() < 0.7:
            values["__metadata__"]["glmd"] = json_values(values["__metadata__"]["glmd"].encode(), rng).decode()
            header = json.dumps(values).encode()
        else:
            header = json_values(header, rng)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return octets(data, rng)
    return struct.pack("<Q", len(header)) + header + numbers


def parts(*mutations: Mutation) -> Mutation:
    """Of inputs that are several files: one of them changed, each by its own mutation."""

    def mutated(data: bytes, rng: Random) -> bytes:
        files = data.split(PART, len(mutations) - 1)
        chosen = rng.randrange(len(files))
        files[chosen] = mutations[chosen](files[chosen], rng)
        return PART.join(files)

    return mutated


def by_first(mutations: Mapping[bytes, Mutation], other: Mutation) -> Mutation:
    """Of inputs whose first byte is their kind: what follows it changed, as its kind has it."""
    return lambda data, rng: data[:1] + mutations.get(data[:1], other)(data[1:], rng)


def one_of(*mutations: Mutation) -> Mutation:
    return lambda data, rng: rng.choice(mutations)(data, rng)


def archived(mutation: Mutation, ending: str) -> Mutation:
    """Of archives of zip: the parts with that ending changed, and their check sums too."""

    def mutated(data: bytes, rng: Random) -> bytes:
        made = io.BytesIO()
        try:
            with ZipFile(io.BytesIO(data)) as old, ZipFile(made, "w") as new:
                for name in old.namelist():
                    content = old.read(name)
                    new.writestr(name, mutation(content, rng) if name.endswith(ending) else content)
        except Exception:  # of several kinds, by what is damaged
            return octets(data, rng)
        return made.getvalue()

    return mutated


def png(data: bytes, rng: Random) -> bytes:
    """A picture, the content of one of its chunks changed, and the check sum too; or a chunk left out, or doubled."""
    chunks, place = [], 8
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        chunks.append(data[place + 4 : end - 4])
        place = end
    if not chunks:
        return octets(data, rng)
    chosen = rng.randrange(len(chunks))
    kind, content = chunks[chosen][:4], octets(chunks[chosen][4:], rng)
    chunks[chosen : chosen + 1] = rng.choice(([kind + content], [kind + content], [chunks[chosen]] * 2, []))
    made = (struct.pack(">I", len(one) - 4) + one + struct.pack(">I", crc32(one)) for one in chunks if len(one) >= 4)
    return data[:8] + b"".join(made)


def protobuf(new: Callable[[], Any]) -> Mutation:
    """Of serialised messages that `new` makes: one field or several changed."""

    def mutated(data: bytes, rng: Random) -> bytes:
        message = new()
        try:
            message.ParseFromString(data)
        except Exception:  # of several kinds, by implementation
            return octets(data, rng)
        for _ in range(rng.choice((1, 1, 2, 4))):
            _change_message(message, rng)
        return bytes(message.SerializePartialToString())

    return mutated


def either(*mutations: Mutation) -> Mutation:
    """One of several, each as often."""
    return lambda data, rng: rng.choice(mutations)(data, rng)


def wire(data: bytes, rng: Random) -> bytes:
    """A serialised message, one of its fields, or of a message inside it, written as no serialiser would write it."""
    found = _fields(data)
    if not found:
        return octets(data, rng)
    place = rng.randrange(len(found))
    tag, value = found[place]
    if tag & 7 == 2 and value and _fields(value) and rng.random() < 0.8:
        found[place] = tag, wire(value, rng)
        return b"".join(wire_field(*one) for one in found)
    before, after = (b"".join(wire_field(*one) for one in part) for part in (found[:place], found[place + 1 :]))
    return before + _odd_field(tag, value, rng) + after


def _odd_field(tag: int, value: bytes, rng: Random) -> bytes:
    """One field: its tag or length too large, too long, of another kind or wrong; doubled, split, in a group."""
    high = 1 << rng.choice((29, 31, 32, 32, 32, 33, 34, 35, 63, 64))
    cut = rng.randrange(len(value) + 1)
    number = rng.choice((0, 1, 5, 7, 13, 14, 15, 20, 25, 2**29 - 1, 2**29))
    odd = [
        (tag | high, value), (tag & 7 | number << 3, value), (tag & ~7 | rng.randrange(8), value), (tag, value[:cut]),
    ]
    short = rng.choice((-1, 1, 1 << 31, 1 << 32, 1 << 63, 1 << 64))  # a length that is wrong
    return rng.choice((
        *(wire_field(*one) for one in odd), wire_field(tag | high, value) * 2,
        wire_field(tag, value, tag_bytes=rng.choice((2, 5, 6, 9, 10, 11))),
        wire_field(tag, value, length_bytes=rng.choice((2, 5, 6, 10, 11))),
        _number(tag) + _number(max(0, len(value) + short)) + value,
        wire_field(tag, value[:cut]) + wire_field(tag, value[cut:]), b"\0" + wire_field(tag, value),
        _number(tag & ~7 | 3) + value + _number(tag & ~7 | 4), wire_field(tag, value) + _number(tag & ~7 | 4),
    ))


def _fields(data: bytes) -> list[tuple[int, bytes]]:
    """(tag, content) of a message's fields, of numbers as they are written; none where it is no message."""
    found, at = [], 0
    try:
        while at < len(data):
            tag, at = _read_number(data, at)
            _, end = _read_number(data, at) if tag & 7 in (0, 2) else (0, at + {1: 8, 5: 4}[tag & 7])
            if tag & 7 == 2:
                length, at = _read_number(data, at)
                end = at + length
            found.append((tag, data[at:end]))
            at = end
    except (IndexError, KeyError):
        return []
    return found if at == len(data) else []


def _read_number(data: bytes, at: int) -> tuple[int, int]:
    value, place = 0, 0
    while data[at + place] > 127:
        value |= (data[at + place] & 127) << 7 * place
        place += 1
    return value | data[at + place] << 7 * place, at + place + 1


def wire_field(tag: int, value: bytes, tag_bytes: int = 1, length_bytes: int = 1) -> bytes:
    """A field of protobuf, of which nothing need be as a serialiser writes it."""
    return _number(tag, tag_bytes) + (_number(len(value), length_bytes) if tag & 7 == 2 else b"") + value


def _number(value: int, least: int = 1) -> bytes:
    """A number as protobuf writes it, filled up with zeros to `least` bytes."""
    written = bytes([value & 127])
    while value := value >> 7:
        written = written[:-1] + bytes([written[-1] | 128, value & 127])
    filled = written.ljust(least, b"\0")
    return bytes(byte | 128 if place < len(filled) - 1 else byte for place, byte in enumerate(filled))


def _change_message(message: Any, rng: Random) -> None:
    """One field, of the message or of one inside it, left out, doubled, or with another value of its type."""
    fields = message.ListFields()
    if not fields:
        return
    field, value = rng.choice(fields)
    repeated = hasattr(value, "append") or hasattr(value, "add")
    if repeated and rng.random() < 0.3:
        del value[rng.randrange(len(value))]
    elif repeated and rng.random() < 0.3:
        value.append(rng.choice(value))
    elif rng.random() < 0.1:
        message.ClearField(field.name)
    elif field.message_type:
        _change_message(rng.choice(value) if repeated else value, rng)
    elif repeated:
        value[rng.randrange(len(value))] = _scalar(rng.choice(value), field, rng)
    else:
        setattr(message, field.name, _scalar(value, field, rng))


def _scalar(value: Any, field: Any, rng: Random) -> Any:
    if field.enum_type:
        return rng.choice(field.enum_type.values).number
    if field.type == field.TYPE_STRING:
        value = str(value)  # bytes, where it is no text
        return rng.choice(("", "images", "boxes", "Conv", "TopK", "Gather", "ai.onnx", "glmd", value[:-1], value * 2))
    if isinstance(value, bytes):
        return octets(value, rng)
    if isinstance(value, float):
        return rng.choice((0.0, -1.0, 1e30, float("nan"), float("inf")))
    return rng.choice((0, 1, 2, 7, 10, 11, 2**31 - 1, max(0, value - 1), min(2**31 - 1, value + 1)))

"""Pickles that are programs: callables that would leave a mark, by every opcode that calls, in every kind of file."""

from __future__ import annotations

import io
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from glmd_train.official import pickled_arrays
from tests.train.test_official_pickles import ATTACKS

_READER = pickled_arrays.__name__
Payload = bytes  # a pickle

# (module, name, arguments) with which the file MARK would be made, or what could make it be reached.
CALLS: tuple[tuple[str, str, tuple[object, ...]], ...] = (
    ("os", "system", ("touch MARK",)),
    ("posix", "system", ("touch MARK",)),
    ("nt", "system", ("touch MARK",)),
    ("os", "popen", ("touch MARK",)),
    ("os", "mkdir", ("MARK",)),
    ("subprocess", "check_output", (["touch", "MARK"],)),
    ("subprocess", "getoutput", ("touch MARK",)),
    ("builtins", "eval", ("open('MARK', 'w')",)),
    ("builtins", "exec", ("open('MARK', 'w')",)),
    ("builtins", "open", ("MARK", "w")),
    ("builtins", "__import__", ("antigravity",)),
    ("builtins", "getattr", ("MARK", "upper")),
    ("builtins", "compile", ("1", "MARK", "eval")),
    ("__builtin__", "eval", ("open('MARK', 'w')",)),
    ("__builtin__", "apply", ("MARK",)),
    ("io", "open", ("MARK", "w")),
    ("codecs", "open", ("MARK", "w")),
    ("pathlib", "Path.touch", ("MARK",)),
    ("shutil", "copyfile", ("/etc/hostname", "MARK")),
    ("runpy", "run_path", ("MARK",)),
    ("importlib", "import_module", ("antigravity",)),
    ("timeit", "timeit", ("open('MARK', 'w')",)),
    ("pdb", "run", ("open('MARK', 'w')",)),
    ("cProfile", "run", ("open('MARK', 'w')",)),
    ("code", "interact", ("MARK",)),
    ("ctypes", "CDLL", ("libc.so.6",)),
    ("pickle", "loads", (b"cos\nsystem\n(S'touch MARK'\ntR.",)),
    ("_pickle", "loads", (b"cos\nsystem\n(S'touch MARK'\ntR.",)),
    ("marshal", "loads", (b"MARK",)),
    ("functools", "partial", ("MARK",)),
    ("operator", "attrgetter", ("system",)),
    ("operator", "methodcaller", ("touch",)),
    ("types", "FunctionType", ("MARK",)),
    ("socket", "create_connection", (("127.0.0.1", 9),)),
    ("webbrowser", "open", ("file://MARK",)),
    ("logging.config", "listen", (0,)),
    ("copyreg", "_reconstructor", ("MARK",)),
    ("numpy", "load", ("MARK", None, True)),
    ("numpy", "save", ("MARK", 1)),
    ("numpy", "fromfile", ("MARK",)),
    ("numpy", "memmap", ("MARK", "uint8", "w+", 0, (1,))),
    ("numpy.testing._private.utils", "runstring", ("open('MARK', 'w')", {})),
    ("numpy.core.multiarray", "fromfile", ("MARK",)),
    ("torch", "load", ("MARK",)),
    ("torch", "save", (1, "MARK")),
    ("torch.hub", "load", ("MARK", "model")),
    ("torch.jit", "load", ("MARK",)),
    ("torch.serialization", "load", ("MARK",)),
    ("torch.utils.cpp_extension", "load_inline", ("MARK", "")),
    ("torch._utils", "_import_dotted_name", ("os.system",)),
    ("torch.storage", "_load_from_bytes", (b"cos\nsystem\n(S'touch MARK'\ntR.",)),
    ("torch.distributed.rpc", "init_rpc", ("MARK",)),
    ("yaml", "unsafe_load", ("!!python/object/apply:os.system ['touch MARK']",)),
)
# What a file of weights may name, and should not get to alter.
NAMED = tuple(sorted(name.rpartition(".")[::2] for name in pickled_arrays._STAND_INS))


def _text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def _pushed(value: object) -> bytes:
    """What leaves a value on the stack."""
    return pickle.dumps(value, protocol=2)[2:-1]


def _each(values: tuple[object, ...]) -> bytes:
    return b"".join(_pushed(one) for one in values)


def _named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def stated(module: str, name: str, state: object) -> bytes:
    """What is named gets a state, before anybody calls it."""
    return _named(module, name) + _pushed(state) + b"b"


def state_of_ours() -> dict[str, object]:
    """All that a pickle could alter in the module that reads it: its functions and classes, and the stand-ins."""
    ours = {key: value for key, value in vars(pickled_arrays).items() if getattr(value, "__module__", "") == _READER}
    stand_ins = {key: (id(value), repr(value), dict(vars(value))) for key, value in pickled_arrays._STAND_INS.items()}
    known = ("__name__", "__qualname__", "__defaults__", "__kwdefaults__", "__code__", "__doc__", "__dict__")
    parts = {key: {name: repr(getattr(value, name, None)) for name in known} for key, value in ours.items()}
    return {"stand-ins": stand_ins, **parts}


# How a callable's name and its arguments become a call, or nearly one.
FORMS: dict[str, Callable[[str, str, tuple[object, ...]], bytes]] = {
    "REDUCE": lambda m, n, a: _named(m, n) + _pushed(a) + b"R",
    "STACK_GLOBAL": lambda m, n, a: _text(m) + _text(n) + b"\x93" + _pushed(a) + b"R",
    "OBJ": lambda m, n, a: b"(" + _named(m, n) + _each(a) + b"o",
    "INST": lambda m, n, a: b"(" + _each(a) + f"i{m}\n{n}\n".encode(),
    "NEWOBJ": lambda m, n, a: _named(m, n) + _pushed(a) + b"\x81",
    "BUILD": lambda m, n, a: _named(m, n) + b")\x81" + _pushed(a) + b"b",
    "name alone": lambda m, n, a: _named(m, n),
}
CALLING = ("REDUCE", "STACK_GLOBAL", "OBJ", "INST")


def payload(call: tuple[str, str, tuple[object, ...]], form: str, depth: int, mark: Path) -> Payload:
    """A pickle that makes the call, `depth` dictionaries and lists deep."""
    module, name, arguments = call
    program = FORMS[form](module, name, tuple(placed(one, mark) for one in arguments))
    for level in range(depth):
        program = b"}" + _text(f"weight{level}") + program + b"s" if level % 2 else b"](" + program + b"e"
    return b"\x80\x04}" + _text("model") + program + b"s."


def placed(value: object, mark: Path) -> object:
    """A value in which MARK is the path."""
    if isinstance(value, (list, tuple)):
        return type(value)(placed(one, mark) for one in value)
    if isinstance(value, bytes):
        return value.replace(b"MARK", str(mark).encode())
    return value.replace("MARK", str(mark)) if isinstance(value, str) else value


_CHANGED = {"__defaults__": ("latin1",), "make": "x", "__doc__": "x"}  # attributes that a change would set


def known_attacks(mark: Path) -> list[Payload]:
    """Those of the ordinary tests, and changes of what a file may name."""
    made = (attack(mark) for attack in ATTACKS.values())
    changes = [stated(*name, state) for name in NAMED for state in (_CHANGED, (None, _CHANGED))]
    programs = [one if isinstance(one, bytes) else pickle.dumps(one, protocol=2) for one in made]
    return programs + [b"\x80\x02}" + _text("w") + change + b"s." for change in changes]


def as_pkl(program: Payload) -> bytes:
    return program


def as_zip(program: Payload) -> bytes:
    """As torch.save writes, with the program in the place of its pickle."""
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(2)}, buffer)
    changed = io.BytesIO()
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            new.writestr(name, program if name.endswith("data.pkl") else old.read(name))
    return changed.getvalue()


def as_torchscript(program: Payload) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("constants.pkl", "data.pkl"):
            archive.writestr(f"archive/{name}", program)
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def as_legacy(program: Payload) -> bytes:
    """As older versions of torch wrote: pickles one after the other."""
    magic = 0x1950A86A20F9469CFC6C
    return pickle.dumps(magic, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2) + program + program


def as_tar(program: Payload) -> bytes:
    """As the first ones did."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(program)
            archive.addfile(entry, io.BytesIO(program))
    return buffer.getvalue()


CONTAINERS: dict[str, tuple[str, Callable[[Payload], bytes]]] = {
    "pkl": (".pkl", as_pkl),
    "bare": (".pth", as_pkl),
    "zip": (".pth", as_zip),
    "legacy": (".pt", as_legacy),
    "torchscript": (".pt", as_torchscript),
    "tar": (".pth", as_tar),
}


def drawn(rng: random.Random, mark: Path) -> tuple[str, str, bytes]:
    """(kind of file, suffix, content) of one attack."""
    kind = rng.choice(sorted(CONTAINERS))
    suffix, wrap = CONTAINERS[kind]
    program = payload(rng.choice(CALLS), rng.choice(sorted(FORMS)), rng.randrange(4), mark)
    return kind, suffix, wrap(program)

"""The house keeps its order: docs/architecture.md lists every file, and a file imports only files above it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from glmd_runtime import errors

ROOT = Path(__file__).parents[1]
PACKAGES = ("glmd_runtime", "glmd_train", "glmd_export")
FILES = sorted(str(p.relative_to(ROOT)) for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
PICTURE = (ROOT / "docs" / "architecture.md").read_text().splitlines()
ORDER = [line.split()[0] for line in PICTURE if line.startswith(PACKAGES) and line.split()[0].endswith(".py")]


def imported_files(path: str) -> set[str]:
    """Files of ours that a file imports at run time, at any depth of its code (type-checking imports are free)."""
    tree = ast.parse((ROOT / path).read_text())
    free = {id(n) for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            for n in ast.walk(node)}
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in free:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    candidates = {n.replace(".", "/") for n in names if n.startswith(PACKAGES)}
    return {f for c in candidates for f in (f"{c}.py", f"{c}/__init__.py") if f in FILES}


def test_the_picture_of_the_house_lists_every_file() -> None:
    assert sorted(ORDER) == FILES


@pytest.mark.parametrize("path", FILES)
def test_a_file_imports_only_files_above_it(path: str) -> None:
    above = set(ORDER[: ORDER.index(path)])
    # A package's own __init__ stands below its modules, and is what `from package import module` names.
    packages = {f"{parent}/__init__.py" for parent in Path(path).parents}
    assert imported_files(path) - above - packages - {path} <= _packages_of(above)


def _packages_of(files: set[str]) -> set[str]:
    return {f"{parent}/__init__.py" for file in files for parent in Path(file).parents}


# What executes or believes what it is given -> the files that may call it, and how that is safe there.
DANGEROUS = {
    "os.system": (), "os.popen": (), "eval": (), "exec": (), "compile": (), "__import__": (), "tempfile.mktemp": (),
    "pickle.load": (), "pickle.loads": (), "marshal.load": (), "marshal.loads": (), "shelve.open": (),
    "yaml.unsafe_load": (), "yaml.full_load": (), "yaml.safe_load": (), "yaml.load_all": (), "yaml.safe_load_all": (),
    "torch.jit.load": (), "torch.hub.load": (), "np.fromfile": (),
    "np.load": (),  # glmd_runtime/files/arrays.py reads .npz files
    "json.load": (), "json.loads": ("glmd_runtime/files/documents.py", "glmd_runtime/plans/builder.py"),  # our own
    "pickle.Unpickler": ("glmd_train/official/pickled_arrays.py",),  # with a find_class of its own
    "yaml.load": ("glmd_train/documents.py",),  # with a SafeLoader of its own
    "torch.load": ("glmd_train/torch_file.py", "glmd_train/model/backbone.py"),
    "xml.etree.ElementTree.parse": (), "ElementTree.parse": (), "ElementTree.fromstring": (),
}


@pytest.mark.parametrize("path", FILES)
def test_nothing_is_executed_that_was_read(path: str) -> None:
    tree = ast.parse((ROOT / path).read_text())
    for node in ast.walk(tree):
        names = [ast.unparse(node.func)] if isinstance(node, ast.Call) else []
        if isinstance(node, ast.ImportFrom):  # else a short name would hide what is called
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        if isinstance(node, ast.ClassDef):
            names = [ast.unparse(base) for base in node.bases]
        for name in names:
            assert path in DANGEROUS.get(name, (path,)), f"{path}:{node.lineno} calls {name}"
        if isinstance(node, ast.Call):
            named = {one.arg: ast.unparse(one.value) for one in node.keywords}
            assert named.get("shell", "False") == "False", f"{path}:{node.lineno} starts a shell"
            assert named.get("allow_pickle", "False") == "False", f"{path}:{node.lineno} unpickles"
            if names == ["torch.load"]:
                assert named.get("weights_only") == "True", f"{path}:{node.lineno} unpickles"


def test_the_runtime_never_names_torch() -> None:
    for path in FILES:
        if path.startswith("glmd_runtime"):
            tree = ast.parse((ROOT / path).read_text())
            modules = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
            modules |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
            assert not {m.split(".")[0] for m in modules} & {"torch", "torchvision", "glmd_train", "glmd_export"}, path


@pytest.mark.parametrize("module", [
    "glmd_runtime", "glmd_runtime.cli", "glmd_train.cli", "glmd_export.cli", "glmd_export.tune_cli"
])
def test_importing_a_front_door_loads_no_framework(module: str) -> None:
    heavy = ("torch", "onnxruntime", "openvino", "onnx", "av")
    code = f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "[]", result.stderr


ERRORS = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
PIECES = (  # of a line that another text begins, a camera's state or a finding of glmd-doctor; or seen by nobody
    "glmd_runtime/video/cameras.py", "glmd_runtime/doctor/probe.py", "glmd_runtime/doctor/tasks.py",
    "glmd_runtime/commands/outputs.py",
)
COMMAND = re.compile(r": (pip|cp|glmd-[a-z]+)\b[^:]*$")  # to be copied, so without a full stop


def pieces_of(text: ast.expr) -> list[str | None]:
    """A text's literal parts in order, None for what is put in."""
    if isinstance(text, ast.JoinedStr):
        return [piece for value in text.values for piece in pieces_of(value)]
    if isinstance(text, ast.BinOp):
        return pieces_of(text.left) + pieces_of(text.right)
    return [text.value] if isinstance(text, ast.Constant) and isinstance(text.value, str) else [None]


def wrong_with(text: ast.expr) -> str | None:
    """Why a message is no sentence of ours, as far as its literal parts tell."""
    pieces = pieces_of(text)
    first, last = pieces[0], pieces[-1]
    whole = "".join("X" if piece is None else piece for piece in pieces)
    if first and re.match(r"(expected|the|an?|it|no|nothing)\b", first):
        return "begins in small letters"
    if last is None:
        return "ends with what came" if whole.endswith("got X") else None
    return None if whole.endswith((".", "?")) or COMMAND.search(whole) else "has no full stop"


@pytest.mark.parametrize("path", [path for path in FILES if path not in PIECES])
def test_errors_are_sentences(path: str) -> None:
    calls = [node for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.Call)]
    texts = [call.args[0] for call in calls if ast.unparse(call.func).split(".")[-1] in ERRORS and call.args]
    found = [f"{path}:{text.lineno} {why}: {ast.unparse(text)}" for text in texts if (why := wrong_with(text))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("'expected a, got b.'", "begins in small letters"),
        ("f'{a} must be b; got {c}'", "ends with what came"),
        ("f'{a} must be b; correct it'", "has no full stop"),
        ("'No a'", "has no full stop"),
        ("f'{a} must be b; got {c}.'", None),
        ("f'No {a}. {REMEDY}'", None),
        ("'No a. Run: pip install b'", None),
        ("str(error)", None),
    ],
)
def test_what_is_no_sentence_is_seen(text: str, why: str | None) -> None:
    assert wrong_with(ast.parse(text, mode="eval").body) == why

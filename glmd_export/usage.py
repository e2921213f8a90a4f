"""What glmd-export and glmd-tune can say of their options before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from glmd_runtime.errors import UnsupportedError, UsageError
from glmd_runtime.install import install_command


def check_name(output: Path) -> None:
    """Of the new bundle: its suffix."""
    if output.suffix != ".glmd":
        raise UsageError(f"A bundle's name ends in .glmd; got {output}. Use -o {output.with_suffix('.glmd')}.")


def check_pictures(calib: Path | None) -> None:
    """Of --calib: that it is a folder."""
    if calib and not calib.is_dir():
        raise UsageError(f"--calib expects a folder of pictures; {calib} is none.")


def check_data(paths: Iterable[Path]) -> None:
    """Of --data: that there are such files, and that they are COCO's, with their pictures."""
    from glmd_train import given  # here, for --help is not to wait for OpenCV

    for path in paths:
        if not path.is_file():
            raise UsageError(f"--data expects COCO annotation files; {path} does not exist.")
    given.check_data(paths)


def check_reports(plot: Path | None, *others: Path | None) -> None:
    """Of files to write: that their folders exist, and of a picture that it can be drawn."""
    for path in filter(None, (*others, plot)):
        if not path.absolute().parent.is_dir():
            raise UsageError(f"{path} cannot be written: its folder does not exist. Make it, or choose another path.")
    if plot and find_spec("matplotlib") is None:
        raise UnsupportedError(f"--plot needs matplotlib. Run: {install_command('export')}")

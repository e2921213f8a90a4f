"""What can go wrong, as types. Every message says what was expected, what came, and what to do.

    GlmdError                     exit code 1
    ├── UsageError                2   a wrong option or value on the command line or in a configuration
    ├── FrameError                1   a camera array of a wrong type, shape or size
    ├── SourceError               1   a video, picture or directory that cannot be read
    ├── DatasetError              1   an annotation file that contradicts itself or its pictures
    ├── CheckpointError           1   a checkpoint that is damaged or for another architecture
    ├── BundleError               1   a bundle with a missing, altered or unknown file
    ├── OutputError               1   a file that could not be written to its end, as on a full disk
    ├── EngineError               1   an engine that failed, or whose answers are none
    ├── ParityError               3   an engine whose answers differ from the checkpoint's
    ├── PrecisionError            4   an engine that was not built in the precision asked for
    └── UnsupportedError          5   something this machine cannot do (a missing library, no device)
"""

from __future__ import annotations

EXIT_CODES = {
    0: "done",
    1: "failed",
    2: "a wrong option, value or configuration",
    3: "the answers differ from the checkpoint's",
    4: "the precision that was asked for was not honoured",
    5: "this machine cannot do it",
    130: "interrupted",
}


class GlmdError(Exception):
    """Base of all errors a user can cause or meet; `exit_code` is what a command returns for it."""

    exit_code = 1


class UsageError(GlmdError):
    exit_code = 2


class FrameError(GlmdError):
    pass


class SourceError(GlmdError):
    pass


class DatasetError(GlmdError):
    pass


class CheckpointError(GlmdError):
    pass


class BundleError(GlmdError):
    pass


class OutputError(GlmdError):
    pass


class EngineError(GlmdError):
    pass


class ParityError(GlmdError):
    exit_code = 3


class PrecisionError(GlmdError):
    exit_code = 4


class UnsupportedError(GlmdError):
    exit_code = 5

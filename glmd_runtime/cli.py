"""The commands that run on the device: glmd-run, glmd-verify, glmd-doctor."""

from __future__ import annotations

import sys

from glmd_runtime.commands.command import imports_of, run_command


def glmd_run_main() -> None:
    """Entry point of glmd-run."""
    with imports_of("glmd-run"):
        from glmd_runtime.commands.run import run, run_parser
    sys.exit(run_command(run_parser(), run, stopped="unfinished outputs were discarded, recordings kept"))


def glmd_verify_main() -> None:
    """Entry point of glmd-verify."""
    with imports_of("glmd-verify"):
        from glmd_runtime.commands.verify import run, verify_parser
    sys.exit(run_command(verify_parser(), run))


def glmd_doctor_main() -> None:
    """Entry point of glmd-doctor."""
    from glmd_runtime.commands.doctor import doctor_parser, run  # needs neither numpy nor OpenCV

    sys.exit(run_command(doctor_parser(), run))

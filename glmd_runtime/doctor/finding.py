"""What the doctor says of one thing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail", "-"]


@dataclass(frozen=True)
class Finding:
    """One line.

    name    what was looked at; stays the same from version to version
    status  "ok", "warn" (works, with a drawback), "fail" (does not work), "-" (not here, and not needed)
    what    what was found
    mend    the command that mends it, "" where nothing needs to be
    """

    name: str
    status: Status
    what: str
    mend: str = ""

    def to_dict(self) -> dict[str, str]:
        return asdict(self)

    def __str__(self) -> str:
        line = f"{self.status:4}  {self.name:14}  {self.what}"
        return f"{line}  → {self.mend}" if self.mend else line


def remedied(name: str, status: Status, text: str) -> Finding:
    """A message that ends with a command, as a finding that has it in its place."""
    what, _, mend = text.partition(" Run: ")
    return Finding(name, status, what, mend)

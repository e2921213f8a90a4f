"""`make audit`, on a pip-audit that is none: what it says and returns for each answer of the real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "audit.py"
SKIPPED = {"name": "ours", "skip_reason": "Dependency not found on PyPI"}
SOUND = {"name": "numpy", "version": "2.0", "vulns": []}
BAD = {"name": "pillow", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.0"]}]}


@pytest.mark.parametrize(
    ("packages", "code", "says"),
    [
        (None, 0, "audit: not run: no index reached (no such host)"),
        ([SKIPPED], 0, "audit: not run: the index knows none of 1 packages"),
        ([SOUND, SKIPPED], 0, "audit: 0 known vulnerabilities in 1 of 2 packages"),
        ([SOUND, BAD], 1, "audit: pillow 1.0: PYSEC-1, fixed in: 2.0"),
    ],
)
def test_what_an_audit_says(packages: list[Any] | None, code: int, says: str, tmp_path: Path) -> None:
    report = "" if packages is None else json.dumps({"dependencies": packages})
    fake = f"import sys; open(sys.argv[-1], 'w').write({report!r}); sys.exit('no such host')"
    (tmp_path / "pip_audit.py").write_text(fake)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, env=environment)
    assert ended.returncode == code and says in ended.stdout, ended.stdout + ended.stderr

"""Known vulnerabilities of what is installed, by pip-audit: exit code 1 where there is one.

Where its index (https://pypi.org) cannot be reached, or knows none of them, that is said, and is no failure.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

SECONDS = 60
COMMAND = (sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--skip-editable", "--format", "json")


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        try:
            ended = subprocess.run([*COMMAND, "--output", report], capture_output=True, text=True, timeout=SECONDS)
            said = "".join(ended.stderr.strip().splitlines()[-1:])
        except subprocess.TimeoutExpired:
            said = f"no answer in {SECONDS} s"
        content = report.read_text() if report.exists() else ""
    packages = json.loads(content)["dependencies"] if content else []
    known = [one for one in packages if "skip_reason" not in one]
    if not known:
        why = f"the index knows none of {len(packages)} packages" if packages else f"no index reached ({said})"
        print(f"audit: not run: {why}")
        return 0
    found = [(one, vulnerability) for one in known for vulnerability in one["vulns"]]
    for one, vulnerability in found:
        fixed = ", ".join(vulnerability["fix_versions"]) or "none"
        print(f"audit: {one['name']} {one['version']}: {vulnerability['id']}, fixed in: {fixed}")
    print(f"audit: {len(found)} known vulnerabilities in {len(known)} of {len(packages)} packages")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

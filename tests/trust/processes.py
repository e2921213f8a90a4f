"""Processes to be killed: forks of one that has imported what takes long and started no thread.

    answer = warm("tests.trust.faults_kill", "exports", folder, 50)    in the suite: `exports(folder, 50)` in such a one
    pid = fork(work)                                                   in it
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.trust.parts import BrokenPromiseError

ROOT = Path(__file__).parents[2]


def warm(module: str, function: str, *arguments: Any) -> Any:
    """What a function returns, plain values, in a process of its own. Raises: BrokenPromiseError with its traceback."""
    command = [sys.executable, "-m", "tests.trust.processes", module, function, json.dumps(arguments, default=str)]
    one_thread = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    ran = subprocess.run(command, cwd=ROOT, env={**os.environ, **one_thread}, capture_output=True, text=True)
    if ran.returncode:
        raise BrokenPromiseError(f"{function}: {ran.stderr[-3000:]}")
    return json.loads(ran.stdout.splitlines()[-1])


def import_all(*modules: str) -> None:
    """Once, for all children, and torch with one thread: a child has no thread of its parent's but one."""
    for module in modules:
        import_module(module)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


def fork(work: Callable[[], object]) -> int:
    """Begin `work` in a child. Returns: its process id."""
    if pid := os.fork():
        return pid
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def ended(pid: int) -> int:
    """Wait for a child. Returns: its exit code, minus a signal's number."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed(work: Callable[[], object], seconds: float, began: int | None = None) -> bool:
    """Kill a child after a random time of at most `seconds`. Returns: whether it was still at work.

    Args: began, a descriptor from which a byte comes when that time begins; from the start without one.
    """
    pid = fork(work)
    if began is not None:
        os.read(began, 1)
    time.sleep(random.uniform(0, seconds))
    os.kill(pid, signal.SIGKILL)
    code = ended(pid)
    if code not in (0, -signal.SIGKILL):
        raise BrokenPromiseError(f"A child failed by itself, with {code}.")
    return code != 0


def timed(work: Callable[[], object]) -> float:
    """Seconds that a child takes that nobody kills."""
    began = time.monotonic()
    if code := ended(fork(work)):
        raise BrokenPromiseError(f"A child that nobody killed ended with {code}.")
    return time.monotonic() - began


if __name__ == "__main__":
    random.seed(8)
    module, function, arguments = sys.argv[1:]
    print(json.dumps(getattr(import_module(module), function)(*json.loads(arguments))))

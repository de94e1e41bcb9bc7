"""How the tests' own process ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# exit handlers of C end the process with 7 where they get to run
FILE = """
import ctypes
import ray

def test_one():
    libc = ctypes.CDLL(None)
    leave = ctypes.cast(libc._exit, ctypes.c_void_p)
    libc.__cxa_atexit(leave, ctypes.c_void_p(7), None)
    assert {outcome}
"""


@pytest.mark.long
@pytest.mark.parametrize(("outcome", "status"), [("True", 0), ("False", 1)])
def test_where_ray_was_the_process_ends_with_pytests_own_status(
    outcome: str, status: int, tmp_path: Path
) -> None:
    """Ray's threads outlive its second session and die where C's exit handlers have run."""
    file = tmp_path / "test_it.py"
    file.write_text(FILE.format(outcome=outcome))
    command = [*(sys.executable, "-m", "pytest", "-p", "tests.conftest"), *("-q", str(file))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert f"1 {'failed' if status else 'passed'}" in done.stdout

"""Ray as a stage starts it, from a process of one's own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

NOTEBOOK = """
import ray
from raysys.cluster import ray_session

with ray_session():
    print("answer:", ray.get(ray.remote(lambda: 42).remote()))
"""


@pytest.mark.slow
def test_ray_may_have_been_imported_before() -> None:
    """A token that is asked for after Ray's import is one that its own processes do not send."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "answer: 42" in done.stdout

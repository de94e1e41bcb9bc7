"""The processes below a run, as tests of kills watch them."""

from __future__ import annotations

import contextlib

import psutil


def family(pid: int) -> list[psutil.Process]:
    """All descendants but Ray's agents, which outlive a killed driver by a minute, idle."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "Agent" not in " ".join(process.cmdline()[:1]):
                found.append(process)
    return found

"""The one format of benchmark results: figures, machine facts, command and commit."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"


@dataclass
class Figure:
    """One measured number.

    `low` and `high` are the 95% interval, or the least and most over runs; `aim` is what we want;
    `reference` is what it is compared with, measured in the same run or cited.
    """

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    aim: str = ""
    reference: str = ""


def write_result(name: str, figures: list[Figure], seconds: float) -> Path:
    """Write `benchmarks/results/NAME.json` and print the figures."""
    RESULTS.mkdir(exist_ok=True)
    content = {
        "command": command(sys.argv),
        "commit": _git("rev-parse", "--short", "HEAD") + ("-dirty" if _git("status", "-s") else ""),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine(),
        "seconds": round(seconds, 1),
        "figures": [asdict(figure) for figure in figures],
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    for figure in figures:
        spread = "" if figure.low is None else f"  [{figure.low:.4g}, {figure.high:.4g}]"
        print(f"{figure.name:32s} {figure.value:>10.4g} {figure.unit}{spread}")
    print(f"written to {path.relative_to(ROOT)}")
    return path


def command(argv: Sequence[str]) -> str:
    """How to run it again; a folder of this machine is told by its option: `--cache CACHE`."""
    told, option = [f"python -m benchmarks.{Path(argv[0]).stem}"], ""
    for word in argv[1:]:
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            name = option.lstrip("-").upper().replace("-", "_")
            told.append(f"{option}={name}" if equals and Path(value).is_absolute() else word)
        elif Path(word).is_absolute():
            told.append(option.lstrip("-").upper().replace("-", "_") or "PATH")
        else:
            told.append(word)
    return " ".join(told)


def machine() -> dict[str, object]:
    """CPU, cores, memory and GPU of this machine."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    gpu = None
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        gpu = subprocess.run(query, capture_output=True, text=True).stdout.strip() or None
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": gpu,
    }


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()

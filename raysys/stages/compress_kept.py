"""What a run of `raysys compress` that was cut off had measured: the next does not do it again."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from raysys.stages.compress_report import Row
from raysys.stages.compressible import MeanQuality, Quality
from raysys.storage import versions, write_atomic
from raysys.text.compression.export import VARIANTS
from raysys.text.compression.probe import Cost

Part = Literal["transformers", "vectors"]


class _Known:
    """A quality of which the value alone was kept."""

    def __init__(self, value: float) -> None:
        self.value = value

    def loss_to(self, other: Any, seed: int) -> tuple[float, float, float]:
        """A row keeps its loss; nothing else is asked for it."""
        raise ValueError("of this quality only the value was kept")


class Kept:
    """Rows of one run, written as each is known; students, once they are taught.

    Args:
        work: what outlives a kill, of the same plan, subject and kind of machine alone: see
            `machine`.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        self.folder = work / "measured"

    def row(self, part: Part, name: str) -> Row | None:
        """What was measured of a candidate; None: nothing yet."""
        path = self._row(part, name)
        if not path.is_file():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        each = content["each"]
        quality: Quality = (
            _Known(content["value"]) if each is None else MeanQuality(np.array(each, np.float64))
        )
        cost = None if content["cost"] is None else Cost(**content["cost"])
        place = None if content["folder"] is None else self.work / content["folder"]
        low, middle, high = content["loss"]
        return Row(name, quality, (low, middle, high), cost, content["size_mb"], place)

    def keep(self, part: Part, row: Row) -> None:
        """Write a row down; its folder, below `work`, is whole by then."""
        quality = row.quality
        content = {
            "value": quality.value,
            "each": quality.each.tolist() if isinstance(quality, MeanQuality) else None,
            "loss": list(row.loss),
            "cost": None if row.cost is None else asdict(row.cost),
            "size_mb": row.size_mb,
            "folder": None if row.folder is None else str(row.folder.relative_to(self.work)),
        }
        write_atomic(self._row(part, row.name), json.dumps(content) + "\n")

    def is_taught(self, layers: int) -> bool:
        """Whether the student with so many layers is whole."""
        return self._student(layers).is_file()

    def teach(self, layers: int) -> None:
        """Say that it is."""
        write_atomic(self._student(layers), "{}\n")

    def _row(self, part: Part, name: str) -> Path:
        return self.folder / part / f"{name}.json"

    def _student(self, layers: int) -> Path:
        return self.folder / "students" / f"{layers}.json"


def machine() -> dict[str, Any]:
    """What milliseconds depend on: processor, cores that this process has, versions of runtimes."""
    name = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")
    found: dict[str, Any] = versions()
    for package in sorted({each for variant in VARIANTS.values() for each in variant.needs}):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return {"processor": name, "cores": len(os.sched_getaffinity(0)), "versions": found}

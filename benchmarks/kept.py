"""Stages of a long benchmark whose outcomes are kept, so that one that was cut off goes on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Outcome:
    """What a stage found, and how long it took when it ran."""

    arrays: Arrays
    seconds: float
    told: dict[str, float]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]


@dataclass(frozen=True)
class Kept:
    """A folder of outcomes; a stage with other settings is another stage.

    Attributes:
        folder: where they lie.
        spared: seconds of the stages that an earlier run went through.
    """

    folder: Path
    spared: list[float] = field(default_factory=list)

    def scratch(self, name: str, settings: object) -> Path:
        """A folder for what a stage needs to go on when it was cut off."""
        return self.folder / f"{name}-{_key(settings)}"

    def stage(
        self,
        name: str,
        settings: object,
        run: Callable[[], tuple[Mapping[str, np.ndarray], Mapping[str, float]]],
    ) -> Outcome:
        """The outcome of `run` (arrays, and figures about it), from the folder if it is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}-{_key(settings)}.npz"
        about = path.with_suffix(".json")
        if not about.is_file():
            began = time.monotonic()
            arrays, told = run()
            seconds = time.monotonic() - began
            np.savez(path, **arrays)
            about.write_text(json.dumps({"seconds": seconds, "told": dict(told)}))
            print(f"{name}: {seconds:.0f} s {dict(told)}", flush=True)
            content = json.loads(about.read_text())
        else:
            content = json.loads(about.read_text())
            self.spared.append(content["seconds"])
        with np.load(path) as found:
            return Outcome(dict(found), content["seconds"], content["told"])


def _key(settings: object) -> str:
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=5).hexdigest()

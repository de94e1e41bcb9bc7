"""Copies of a live state on the disk, so that a replica that starts counts the newest events only.

    eventlog/states/BUNDLE/POSITION/   what `Changing.write` writes, and the offset it stands at

A copy is a cache: a damaged one costs time, as the state is then made from the bundle and the log.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path
from typing import Final

from raysys.features.changing import Changing
from raysys.features.live import LiveFeatures
from raysys.storage import remove_left_overs, replacing

log = logging.getLogger("raysys")

_FORGOTTEN_DAYS: Final = 14  # states of bundles that nobody has served for so long go


class Snapshots:
    """The copies of one bundle's state.

    Args:
        folder: of the event log.
        bundle: its id.
    """

    def __init__(self, folder: Path, bundle: str) -> None:
        self.root = folder / "states" / bundle

    def write(self, changing: Changing, position: int) -> Path:
        """Write a copy of the state at an offset, in the place of older ones."""
        path = self.root / f"{position:016d}"
        remove_left_overs(self.root)  # `replacing` knows those of this position alone
        with replacing(path) as fresh:
            changing.write(fresh, position=position)
        for older in self._all()[:-1]:
            shutil.rmtree(older, ignore_errors=True)
        for other in self.root.parent.iterdir():
            if other.stat().st_mtime < time.time() - _FORGOTTEN_DAYS * 86_400:
                shutil.rmtree(other, ignore_errors=True)
        return path

    def restore(self, live: LiveFeatures, end: int) -> int:
        """Let a state go on from the newest copy; the offset that it stands at, 0: there is none.

        Args:
            live: as its bundle has it.
            end: offset where the log ends: a copy beyond it is of another log.
        """
        for path in reversed(self._all()):
            try:
                position = int(json.loads((path / "state.json").read_text())["position"])
                if position > end:
                    log.warning("%s is of another log, and not used", path)
                    continue
                live.restore(path)
            except Exception as error:  # whatever is wrong with it: there is a way without
                log.warning("%s cannot be used: %s", path, error)
            else:
                return position
        return 0

    def _all(self) -> list[Path]:
        return sorted(path for path in self.root.glob("[0-9]*") if path.name.isdigit())

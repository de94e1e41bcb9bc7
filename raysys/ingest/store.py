"""Work that is done once: folders named by what went into them, there whole or not at all.

A folder's name is the digest of everything its content depends on (the file's fingerprint, the
mapping, the rules, …), so what is there never needs to be asked whether it is still true. A run
that was killed finds its finished work again, and the next run finds that of the last. Who asks for
everything anew is remembered here too: an outcome of before is none of the work that lies here now.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from raysys.storage import write_atomic

RESULT: Final = "result.json"
_BEGUN: Final = "begun.json"


@dataclass(frozen=True)
class Store:
    """Folders `root/KIND/KEY`, on a disk that every worker sees."""

    root: Path

    def folder(self, kind: str, key: str) -> Path:
        """Where a piece of work lies, or will."""
        return self.root / kind / key

    def has(self, kind: str, key: str) -> bool:
        """Whether it is done."""
        return (self.folder(kind, key) / RESULT).is_file()

    def result(self, kind: str, key: str) -> dict[str, Any]:
        """What was said of it when it was done."""
        content: dict[str, Any] = json.loads((self.folder(kind, key) / RESULT).read_bytes())
        return content

    @contextlib.contextmanager
    def doing(self, kind: str, key: str, result: dict[str, Any]) -> Iterator[Path]:
        """Give a folder to write into; at the end it is there at once, with `result` in it.

        Two workers may do the same (one of them was thought dead): both wrote the same, so the
        first stands. On an error nothing stays.
        """
        place = self.folder(kind, key)
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh = place.parent / f".{key}.{uuid.uuid4().hex[:8]}.tmp"
        fresh.mkdir()
        try:
            yield fresh
            (fresh / RESULT).write_text(json.dumps(result))
            try:
                fresh.rename(place)
            except OSError:
                if not self.has(kind, key):
                    raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def drop(self, kind: str, key: str) -> None:
        """Remove a piece of work, which is to be done again."""
        (self.folder(kind, key) / RESULT).unlink(missing_ok=True)  # from here on it is not there
        shutil.rmtree(self.folder(kind, key), ignore_errors=True)

    def keep_only(self, kind: str, keys: Collection[str]) -> None:
        """Remove what no outcome needs any more, and what killed workers left."""
        wanted = set(keys)
        root = self.root / kind
        for entry in os.scandir(root) if root.is_dir() else ():
            if entry.name not in wanted and entry.is_dir(follow_symlinks=False):
                self.drop(kind, entry.name)

    @property
    def begun(self) -> str:
        """Names the moment since which all is done anew (hex); empty: nobody asked for that."""
        told = self._told()
        return str(told["mark"]) if told else ""

    def begin_anew(self) -> None:
        """Remove everything, and remember it, so that a run that is killed is not forgotten."""
        self._begin({"mark": uuid.uuid4().hex, "empty": False})

    def recover(self) -> None:
        """Remove what a run that was to begin anew had not removed yet when it was killed."""
        told = self._told()
        if told and not told["empty"]:
            self._begin(told)

    def _told(self) -> dict[str, Any] | None:
        try:
            told: dict[str, Any] = json.loads((self.root / _BEGUN).read_bytes())
        except FileNotFoundError:
            return None
        return told

    def _begin(self, told: dict[str, Any]) -> None:
        # first the word: what is found beside it until the second one may be of before
        write_atomic(self.root / _BEGUN, json.dumps(told))
        for entry in os.scandir(self.root):
            self.keep_only(entry.name, ())
        write_atomic(self.root / _BEGUN, json.dumps({**told, "empty": True}))


def link(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)

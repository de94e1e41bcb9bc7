"""Work that is done once: folders named by what went into them, there whole or not at all.

A folder's name is the digest of everything its content depends on (the file's fingerprint, the
mapping, the rules, …), so what is there never needs to be asked whether it is still true. A run
that was killed finds its finished work again, and the next run finds that of the last.
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

RESULT: Final = "result.json"


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

    def clear(self) -> None:
        """Remove everything."""
        for entry in os.scandir(self.root) if self.root.is_dir() else ():
            self.keep_only(entry.name, ())


def link(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)

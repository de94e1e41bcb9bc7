"""What goes in: the files of a source, found, fingerprinted, and whether storage gave them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from raysys.datasets.files import Part, find, fingerprint
from raysys.datasets.mapping import AnyFiles
from raysys.datasets.source import Source
from raysys.ingest.naming import told_apart

UNREAD: Final = "unread"
"""Instead of the fingerprint of a file that storage did not give, or not whole."""


@dataclass(frozen=True)
class Inputs:
    """The files of a source, found and fingerprinted."""

    parts: tuple[tuple[Part, ...], ...]  # of each event mapping
    fingerprints: dict[str, str]  # path → fingerprint

    def named(self, unread: Collection[str] = ()) -> dict[str, str]:
        """Fingerprints by the shortest name that tells a file from the others.

        Args:
            unread: paths of files that did not go in, or not whole: they are `UNREAD`, so that
                what was made without them is no outcome of a run that has them.
        """
        names: dict[str, str] = {}
        for path, mark in self.fingerprints.items():
            short = path.rsplit("/", 1)[-1]
            names[path if short in names else short] = UNREAD if path in unread else mark
        return names


def inspect(source: Source) -> Inputs:
    """Find and fingerprint all files of a source.

    Raises:
        UserError: a path names nothing, or an environment variable is not set.
    """
    parts = [find(files, source.of(files).derived) for files in source.events]
    own: tuple[AnyFiles, ...] = (*source.items, *source.users)
    others = [part for files in own for part in find(files, source.of(files).derived)]
    prints = {
        part.path: fingerprint(part)
        for part in (*(part for group in parts for part in group), *others)
    }
    for table in source.tables:
        path = Path(table.path)
        prints[table.path] = fingerprint(
            Part(table.path, path.name, "parquet", path.stat().st_size)
        )
    return Inputs(told_apart(parts), prints)

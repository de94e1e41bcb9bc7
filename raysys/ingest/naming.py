"""Labels of a log's files, each another: made event ids are told apart by them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from raysys.datasets.files import Part


def told_apart(groups: Sequence[Sequence[Part]]) -> tuple[tuple[Part, ...], ...]:
    """The files of all event mappings with labels that differ.

    A label that no mapping before has stays, so that events keep their ids. Another file of the
    same label is called by its path below the folder that the files of all mappings share, and
    where that is taken as well, as when two mappings read one file, with its mapping's number.

    Args:
        groups: the files of each mapping, as `find` gave them.
    """
    folders = [str(PurePosixPath(part.path).parent) for parts in groups for part in parts]
    taken = {part.label for parts in groups for part in parts}
    used: set[str] = set()
    apart = []
    for number, parts in enumerate(groups, start=1):
        named = []
        for part in parts:
            label = part.label
            if label in used:
                path = PurePosixPath(part.path)
                label = str(path.relative_to(os.path.commonpath(folders)))
                if label in taken:
                    label = f"{label} ({number})"
                taken.add(label)
            used.add(label)
            named.append(replace(part, label=label))
        apart.append(tuple(named))
    return tuple(apart)

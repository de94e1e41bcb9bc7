"""Sessions, test cases and users' sequences of whatever file holds them.

What the file is, its content tells (`sequence_layout`); it is said in the log and in `read_as`.
JSON lines of sessions and cases, and lines of a user and items, are read by `sequences`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from raysys.datasets.sequence_columns import Layout, of_rows
from raysys.datasets.sequence_layout import columns_of, find_layout
from raysys.datasets.sequence_lists import Lists, grouped
from raysys.datasets.sequence_names import Columns, Task
from raysys.datasets.sequence_rows import Events, events_of, read_events
from raysys.datasets.sequence_tables import Forced
from raysys.datasets.sequence_times import FORMATS
from raysys.datasets.sequences import (
    SESSION,
    Case,
    items_of,
    read_cases,
    read_document,
    read_sessions,
    read_user_sequences,
)
from raysys.errors import UserError

log = logging.getLogger("raysys")

NOTHING = Columns()


def read_session_file(path: Path, asked: Columns = NOTHING, forced: Forced = "auto") -> Lists:
    """Sessions in the order of their last events, or of the file where it has no times.

    Args:
        path: of the file, packed or not.
        asked: columns that the user names; others are told by names or values.
        forced: whether the user says that a row is an event, or a line a list.

    Raises:
        UserError: it cannot be read, or it cannot be told what it is.
    """
    layout = _told(path, find_layout(path, "sessions", asked, forced))
    if layout.shape == "native":
        return Lists.of(read_sessions(path), layout.read_as)
    if layout.shape == "document":
        return _document(path, layout, "sessions")
    lists = _lists(read_events(path, layout, "sessions"), layout, "sessions", path)
    if _labelled(layout):
        return Lists.of(without_prefixes(lists.to_lists()), layout.read_as, lists.counts)
    return lists


def read_test_file(
    path: Path, asked: Columns = NOTHING, forced: Forced = "auto"
) -> tuple[Lists | list[Case], str]:
    """Sessions whose every prefix is a case, or cases, and what the file was taken for.

    Raises:
        UserError: as `read_session_file`.
    """
    layout = find_layout(path, "sessions", asked, forced)
    if layout.shape == "native" and layout.read_as.endswith("a case each"):
        _told(path, layout)
        return read_cases(path), layout.read_as
    if layout.shape == "native":
        return Lists.of(read_sessions(path, labels=False), layout.read_as), layout.read_as
    if not _labelled(layout):
        found = read_session_file(path, asked, forced)
        return found, found.read_as
    lists = _lists(read_events(path, _told(path, layout), "sessions"), layout, "sessions", path)
    return [Case(items[:-1], items[-1]) for items in lists.to_lists()], layout.read_as


def read_sequence_file(path: Path, asked: Columns = NOTHING, forced: Forced = "auto") -> Lists:
    """Users' sequences, each in the order of time, or of the file where it has no times.

    Raises:
        UserError: as `read_session_file`.
    """
    layout = _told(path, find_layout(path, "sequences", asked, forced))
    if layout.shape == "users":
        return Lists.of(list(read_user_sequences(path).values()), layout.read_as)
    if layout.shape == "native":
        return Lists.of(read_sessions(path), layout.read_as)
    if layout.shape == "document":
        return _document(path, layout, "sequences")
    events = read_events(path, layout, "sequences")
    if _labelled(layout) and layout.columns.key("sequences"):
        return Lists.of(_joined(events), layout.read_as, events.counts)
    lists = _lists(events, layout, "sequences", path)
    if _labelled(layout):
        return Lists.of(without_prefixes(lists.to_lists()), layout.read_as, lists.counts)
    return lists


def without_prefixes(lists: list[list[str]]) -> list[list[str]]:
    """Of lists that were written once for each of their items only the whole ones.

    Files of prefixes with what followed have them side by side, in either order.
    """

    def is_prefix(some: list[str], other: list[str]) -> bool:
        return len(some) + 1 == len(other) and some == other[:-1]

    kept = []
    for i, here in enumerate(lists):
        before = lists[i - 1] if i else []
        behind = lists[i + 1] if i + 1 < len(lists) else []
        if not is_prefix(here, before) and not is_prefix(here, behind):
            kept.append(here)
    return kept


def _joined(events: Events) -> list[list[str]]:
    """Users' sequences of rows that were written once for each of their items.

    Where lists have a bound, later rows are its last items: of these only what followed is new.
    """
    frame = events.frame.select("key", "number", pl.col("item").cast(pl.String))
    rows = frame.group_by("key", "number", maintain_order=True).agg("item")
    by_user: dict[int, list[list[str]]] = {}
    for key, items in rows.select("key", "item").iter_rows():
        by_user.setdefault(key, []).append(items)
    longest = max(len(items) for items in rows["item"])
    found = []
    for lists in by_user.values():
        if len(lists) > 1 and len(lists[0]) > len(lists[-1]):
            lists.reverse()  # some write the longest first
        whole: list[str] = []
        before: list[str] = []
        for items in without_prefixes(lists):
            slid = len(items) == len(before) == longest > 2 and items[:-1] == before[1:]
            whole += items[-1:] if slid else items
            before = items
        found.append(whole)
    return found


def _told(path: Path, layout: Layout) -> Layout:
    log.info("%s is read as %s", path, layout.read_as)
    if layout.shape in ("events", "nested") and layout.columns.time is None:
        log.warning(
            "%s has no time that is read: its events are taken in the order of the file; if a "
            "column says when they were, name it with --time-col (%s)",
            path, FORMATS,
        )  # fmt: skip
    return layout


def _labelled(layout: Layout) -> bool:
    """Whether a row is a list and what followed it."""
    return layout.shape == "records" and layout.columns.item is not None


def _lists(events: Events, layout: Layout, task: Task, path: Path) -> Lists:
    cut = (
        task == "sessions"
        and layout.shape in ("events", "nested")
        and layout.columns.session is None
    )
    if cut and not events.clock:
        raise UserError(
            "a user's events are cut into sessions by pauses, but no column says when they were",
            where=str(path),
            mend="name the column of the time with --time-col, or of the session, --session-col",
        )
    return grouped(events, task, cut=cut, read_as=layout.read_as)


def _document(path: Path, layout: Layout, task: Task) -> Lists:
    """Of one piece of JSON: lists by session or user, a list of lists, or a list of events."""
    content = read_document(path)
    found: Sequence[Any] = list(content.values()) if isinstance(content, dict) else content
    if found and all(isinstance(one, dict) for one in found) and isinstance(content, list):
        kinds = columns_of(found[:500])
        inner = of_rows(kinds, "json", path, task, layout.columns)
        inner = replace(inner, read_as=f"a JSON document, {inner.read_as}")
        return _lists(events_of(list(found), path, inner, task), inner, task, path)
    if not found:
        raise UserError("holds no session", where=str(path), mend=SESSION)
    return Lists.of([items_of(one, path, 1, SESSION) for one in found], layout.read_as)

"""The event log of a deployment, as a source of its own or beside a shop's files.

Its rolled files are in the vocabulary already. What it says of an item or a user takes the place
of what the shop's own files say.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from raysys import schema
from raysys.config import Settings
from raysys.datasets.files import expand_variables
from raysys.datasets.mapping import EventFiles, ItemFiles, UserFiles
from raysys.datasets.source import Source
from raysys.datasets.times import TimeFormat
from raysys.errors import UserError
from raysys.eventlog.rolled import Rolled

_TITLE: Final = "Event log"


class EventLogSource(Settings):
    """What a deployment took in over HTTP, and `raysys events roll` wrote."""

    kind: Literal["event_log"] = "event_log"

    path: str
    """The log's folder; `${NAME}` is the environment's."""


def source(settings: EventLogSource) -> Source:
    """The log as ingest takes it.

    Raises:
        UserError: nothing of it was rolled yet.
    """
    return _source(settings.path)


def beside(other: Source, path: str) -> Source:
    """Another source and, after it, what the log has; that alone while nothing was rolled yet.

    Raises:
        UserError: there is no such folder.
    """
    if not Path(expand_variables(path)).is_dir():
        raise UserError(
            "no such folder", where=f"event_log: {path}", mend="give the folder of an event log"
        )
    try:
        log = _source(path)
    except UserError:
        return other
    return replace(
        other,
        events=(*other.events, *log.events),
        items=(*log.items, *other.items),  # of an item the first word counts
        users=(*log.users, *other.users),
        plain=(*other.plain, *log.events, *log.items, *log.users),
    )


def _source(path: str) -> Source:
    rolled = Rolled(Path(expand_variables(path)))
    if not any(rolled.events.glob("*.parquet")):
        raise UserError(
            "nothing of this event log was rolled to Parquet yet",
            where=path,
            mend="run `raysys events roll`, or wait until the deployment does",
        )
    events = EventFiles(
        paths=(str(rolled.events),),
        columns={name: name for name in schema.LOGGED_EVENTS.names},
        time=TimeFormat(),
    )
    items = ItemFiles(
        paths=(str(rolled.items),), columns={name: name for name in schema.ITEMS.names}
    )
    users = UserFiles(paths=(str(rolled.users),), columns={"user_id": "user_id"})
    return Source(
        _TITLE,
        events=(events,),
        items=(items,) if rolled.items.exists() else (),
        users=(users,) if rolled.users.exists() else (),
    )

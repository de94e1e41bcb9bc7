"""`raysys events`: look at a deployment's event log, roll it to Parquet, forget what is rolled."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from rich.console import Console
from rich.table import Table

from raysys.errors import UserError
from raysys.eventlog.entries import EventLog, LogUnavailable
from raysys.eventlog.local import LocalLog
from raysys.eventlog.opening import open_log
from raysys.eventlog.rolled import Rolled, roll
from raysys.eventlog.tidying import forget
from raysys.serving.events_args import EventsArgs
from raysys.storage import Workspace

_MARGIN_MS = 60_000  # replicas that run may not have come further


@dataclass(frozen=True)
class Status:
    """How a log stands.

    Attributes:
        folder: of the log.
        backend: what keeps it.
        entries: how many were appended, ever.
        first: oldest offset that it holds itself; rolled: newest that the Parquet files hold.
        waiting: entries that are not rolled yet.
        rolled_events, stretches: events in the Parquet files, and how many files.
        newest_event: UTC ms of the newest rolled one; 0: none.
        damaged: damaged bytes that were left out since the log began.
    """

    folder: str
    backend: str
    entries: int
    first: int
    rolled: int
    waiting: int
    rolled_events: int
    stretches: int
    newest_event: int
    damaged: int

    labels: ClassVar[dict[str, str]] = {
        "folder": "folder",
        "backend": "kept by",
        "entries": "entries, ever",
        "first": "oldest in the log",
        "waiting": "not rolled yet",
        "rolled_events": "events in Parquet",
        "stretches": "Parquet files",
        "newest_event": "newest of them",
        "damaged": "damaged bytes",
    }


def run(
    what: str,
    config: str | None,
    workspace: Workspace | None,
    console: Console,
    *,
    as_json: bool = False,
) -> None:
    """Do one of `status`, `roll`, `compact`, and say how the log stands then.

    Args:
        what: see above.
        config, workspace: see `named_log`.
        console: to say it on.
        as_json: for programs.

    Raises:
        UserError: no log there, it does not answer, the disk is full.
    """
    args, folder = named_log(config, workspace)
    if args.backend == "local" and not (folder / "head").exists():
        raise UserError(
            "no event log here",
            where=str(folder),
            mend="give the --workspace or --config of a deployment with `events` in its args",
        )
    try:
        log = open_log(args, folder)
        try:
            rolled = Rolled(folder)
            if what in ("roll", "compact"):
                roll(log, rolled)
            if what == "compact":
                forget(log, rolled, time.time_ns() // 1_000_000 - _MARGIN_MS)
            status = _status(log, rolled, args, folder)
        finally:
            log.close()
    except LogUnavailable as error:
        raise UserError(str(error), where="events", mend="try again later") from None
    _show(status, console, as_json=as_json)


def named_log(config: str | None, workspace: Workspace | None) -> tuple[EventsArgs, Path]:
    """The log of a deployment, and its folder.

    Args:
        config: its serve config; None: a log of this node, in the workspace.
        workspace: as it was deployed with; None: without, so that the config says where it lies.

    Raises:
        UserError: the deployment takes no events.
    """
    if config is None:
        assert workspace is not None
        return EventsArgs(), workspace.eventlog
    from raysys.stages.deploy_plan import serve_args  # which imports Ray: seconds

    for args in serve_args(config, workspace):
        if args.events is not None:
            return args.events, args.events_path
    raise UserError(
        "this deployment takes no events", where=config, mend="give `events` in its args"
    )


def _status(log: EventLog, rolled: Rolled, args: EventsArgs, folder: Path) -> Status:
    stretches = rolled.stretches()
    at, end = rolled.last(), log.end()
    return Status(
        folder=str(folder),
        backend=args.backend,
        entries=end,
        first=log.first(),
        rolled=at,
        waiting=end - at,
        rolled_events=sum(stretch.events for stretch in stretches),
        stretches=len(stretches),
        newest_event=max((stretch.newest_event for stretch in stretches), default=0),
        damaged=log.damaged() if isinstance(log, LocalLog) else 0,
    )


def _show(status: Status, console: Console, *, as_json: bool) -> None:
    told = asdict(status)
    if as_json:
        print(json.dumps(told))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, label in Status.labels.items():
        value = told[name]
        if name == "newest_event":
            moment = time.gmtime(value / 1000)
            value = time.strftime("%Y-%m-%d %H:%M:%S UTC", moment) if value else "–"
        table.add_row(label, f"{value:,}" if isinstance(value, int) else str(value))
    console.print(table)

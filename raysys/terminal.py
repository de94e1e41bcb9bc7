"""What a person sees: progress with count and time left, errors without tracebacks, exit codes.

On a terminal progress is drawn with rich; elsewhere (`ray job logs`, CI) it is plain log lines.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as Row
from rich.text import Text

from raysys.errors import UserError
from raysys.progress import LogListener, listening

if TYPE_CHECKING:
    from raysys.storage import Manifest

USER_ERROR = 2
FAULT = 1
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
TERMINATED = 143  # 128 + SIGTERM
PIPE_CLOSED = 141  # 128 + SIGPIPE


_DISK = {
    errno.EACCES: "give yourself the right to it, or another --workspace",
    errno.EPERM: "give yourself the right to it, or another --workspace",
    errno.EROFS: "give another --workspace",
    errno.ENOTDIR: "a file stands where a folder is needed: give another --workspace",
    errno.ENOSPC: "make room, or give a --workspace on another disk",
    errno.EDQUOT: "make room, or give a --workspace on another disk",
}


class _Terminated(BaseException):
    """SIGTERM arrived; unwinds like Ctrl-C so that Ray is taken down."""


@contextlib.contextmanager
def session(*, quiet: bool = False, verbose: bool = False) -> Iterator[Console]:
    """Run a command's work: draws its progress and turns every ending into an exit code.

    Raises:
        SystemExit: 2 for a user's mistake, 130 for Ctrl-C, 143 for SIGTERM, 1 for a fault of
            raysys (after its traceback).
    """
    console = Console(stderr=True)
    _log_to(console, quiet=quiet, verbose=verbose)
    before = _on_sigterm(_terminate)
    try:
        with contextlib.ExitStack() as stack:
            if console.is_terminal and not quiet:
                display = stack.enter_context(RichListener(console))
                stack.enter_context(listening(display))
            else:
                stack.enter_context(listening(LogListener()))
            yield console
    except KeyboardInterrupt:
        console.print("interrupted; the folders of finished stages are kept")
        raise SystemExit(INTERRUPTED) from None
    except _Terminated:
        console.print("terminated; the folders of finished stages are kept")
        raise SystemExit(TERMINATED) from None
    except BrokenPipeError:  # whoever read our output, `| head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(PIPE_CLOSED) from None
    except Exception as error:
        mistake = users_mistake(error)
        if mistake is not None:
            show_error(console, mistake)
            raise SystemExit(USER_ERROR) from None
        show_fault(console, error)
        raise SystemExit(FAULT) from None
    finally:
        _on_sigterm(before)


def users_mistake(error: BaseException | None) -> UserError | None:
    """The UserError behind an exception, also when it crossed processes inside a Ray error."""
    for current in _behind(error):
        if isinstance(current, UserError) and "what" in vars(current):
            return current  # not Ray's wrapper, which only inherits from UserError
    return _disk_mistake(error)


def _behind(error: BaseException | None, *, handled: bool = True) -> Iterator[BaseException]:
    """An exception and those that it came of, nearest first.

    Args:
        error: the one that arrived.
        handled: also what was being handled when one was raised, which need not be its cause.
    """
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        current = waiting.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        # Ray keeps the worker's exception in `cause`, Train in `worker_failures`
        waiting.append(getattr(current, "cause", None))
        failures = getattr(current, "worker_failures", None)
        waiting.extend(failures.values() if isinstance(failures, dict) else ())
        waiting.extend((current.__cause__, current.__context__ if handled else None))


def _disk_mistake(error: BaseException | None) -> UserError | None:
    """A disk that is full, read-only or somebody else's is not a fault of the program."""
    for current in _behind(error, handled=False):
        if isinstance(current, OSError) and current.errno in _DISK:
            where = str(current.filename or "")
            return UserError(str(current.strerror), where=where, mend=_DISK[current.errno])
    return None


def show_error(console: Console, error: UserError) -> None:
    """Print a user's mistake: what, where, and how to mend it."""
    text = Text("error: ", style="bold red").append(str(error), style="not bold default")
    console.print(text, soft_wrap=True)


def show_fault(console: Console, error: BaseException) -> None:
    """Print the traceback of a fault of raysys itself, and how to report it."""
    lines = traceback.format_exception(error)
    console.print(Text("".join(lines).rstrip()), soft_wrap=True)
    console.print(
        "\n[bold red]This is a fault of raysys, not yours.[/] Please report it with the lines "
        "above and the output of [bold]raysys doctor --json[/].",
        soft_wrap=True,
    )


def show_manifest(console: Console, manifest: Manifest, folder: Path) -> None:
    """Print what a stage came to: its time, its counts and where to look."""
    console.print(f"[bold green]{manifest.stage}[/] {manifest.seconds:.1f} s → {_path(folder)}")
    counts = ", ".join(f"{escape(name)} {count:,}" for name, count in manifest.counts.items())
    if counts:
        console.print(f"  {counts}", soft_wrap=True)
    report = folder / "report.html"
    if report.is_file():
        console.print(f"  report: {_path(report)}", soft_wrap=True)


class RichListener:
    """Draws running tasks with bar, count and time left; leaves a line for each that ended."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            _Count(),
            TimeElapsedColumn(),
            _TimeLeft(),
            console=console,
            transient=True,
        )
        self._began: dict[int, tuple[str, float]] = {}

    def __enter__(self) -> RichListener:
        """Start drawing."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing; unfinished tasks vanish."""
        self._progress.stop()

    def start(self, name: str, total: int | None) -> int:
        """See `raysys.progress.Listener.start`."""
        key = self._progress.add_task(name, total=total)
        self._began[key] = (name, time.monotonic())
        return int(key)

    def advance(self, key: int, done: int, total: int | None) -> None:
        """See `raysys.progress.Listener.advance`."""
        self._progress.update(TaskID(key), completed=done, total=total)

    def finish(self, key: int, note: str) -> None:
        """See `raysys.progress.Listener.finish`."""
        name, began = self._began.pop(key)
        self._progress.remove_task(TaskID(key))
        self._progress.refresh()  # at once: what is printed next must not meet the row on screen
        line = Text("✓ ", style="green").append(name, style="default")
        line.append(f"  {time.monotonic() - began:.1f} s", style="cyan")
        if note:
            line.append(f"  {note}", style="dim")
        self._console.print(line, soft_wrap=True)


class _Count(ProgressColumn):
    """`12,345 of 1,469,307`; without a total the count alone; nothing while it is 0."""

    def render(self, task: Row) -> Text:
        done = f"{int(task.completed):,}"
        if task.total is not None:
            return Text(f"{done} of {int(task.total):,}", style="magenta")
        return Text(done if task.completed else "", style="magenta")


class _TimeLeft(TimeRemainingColumn):
    """Time left where it can be told."""

    def render(self, task: Row) -> Text:
        if task.total is None or not task.completed:
            return Text("")
        return Text.assemble(super().render(task), " left", style="cyan")


def _path(path: Path) -> str:
    """A path relative to the working directory where that is shorter, safe as markup."""
    with contextlib.suppress(ValueError):
        path = path.resolve().relative_to(Path.cwd())
    return escape(str(path))


def _log_to(console: Console, *, quiet: bool, verbose: bool) -> None:
    """Send the package's log to stderr; other packages only when they warn."""
    from rich.logging import RichHandler

    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, markup=False)
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO if verbose else logging.WARNING)
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    logging.getLogger("raysys").setLevel(level)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _on_sigterm(handler: signal.Handlers | int | object) -> object:
    """Install a SIGTERM handler where that is possible (main thread); returns the one before."""
    try:
        return signal.signal(signal.SIGTERM, handler)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return None

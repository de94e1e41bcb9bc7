"""Until when a pre-trained model has read the log: who judges by later days has to know."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

FILE = "log_read.json"
"""Lies beside the weights."""


def write_log_read(folder: Path, until: dt.datetime) -> None:
    """Note in a model's folder that events before a moment (with its time zone) were read."""
    content = {"until": until.astimezone(dt.UTC).isoformat()}
    (folder / FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")


def log_read(folder: Path) -> dt.datetime | None:
    """The moment, UTC; None: the model read no log, or nobody noted it."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return dt.datetime.fromisoformat(content["until"])


def models_that_read(settings: object, where: str) -> Iterator[tuple[str, str, dt.datetime]]:
    """Models among settings that read the log: where they are named, their folder, the moment.

    Args:
        settings: of learners, as data; any text in it may be a model's folder.
        where: the path of the settings.
    """
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            yield from models_that_read(value, f"{where}.{name}")
    elif isinstance(settings, list | tuple):
        for at, value in enumerate(settings):
            yield from models_that_read(value, f"{where}.{at}")
    elif isinstance(settings, str) and settings.strip():
        folder = _folder(settings)
        if folder is not None and (until := log_read(folder)) is not None:
            yield where, settings, until


def _folder(text: str) -> Path | None:
    """The folder that a text names; any text may be here, of files and of whole sentences too."""
    try:
        folder = Path(text).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # too long, nobody's home, a NUL
        return None

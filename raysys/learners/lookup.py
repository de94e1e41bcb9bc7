"""Classes by name, imported when they are asked for; and folders that say whose they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from raysys.errors import UserError

FILE: Final = "learner.json"


def find_class(known: Mapping[str, str], name: str, what: str) -> Any:
    """A class by its name.

    Args:
        known: name → `module:class`.
        name: wanted.
        what: it is, for the message.

    Raises:
        UserError: there is none of that name; names those that there are.
    """
    if name not in known:
        raise UserError(f"no {what} {name!r}", mend=f"choose among {', '.join(known)}")
    module, _, attribute = known[name].partition(":")
    return getattr(import_module(module), attribute)


def write_name(folder: Path, name: str, **more: str) -> None:
    """Say in a new or empty folder whose it is."""
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"learner": name, **more})
    (folder / FILE).write_text(content + "\n", encoding="utf-8")


def read_name(folder: Path, what: str, mend: str) -> str:
    """Whose a folder is.

    Args:
        folder: that `write_name` was told of.
        what: it holds; mend: what to give instead, for the message.

    Raises:
        UserError: it does not say.
    """
    try:
        name: str = json.loads((folder / FILE).read_text(encoding="utf-8"))["learner"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"no {what}: {FILE} cannot be read ({type(error).__name__})",
            where=str(folder),
            mend=mend,
        ) from None
    return name

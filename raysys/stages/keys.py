"""`raysys key`: make, list and revoke the API keys of a served application."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raysys.errors import UserError
from raysys.serving.keys import ROLES, Key, KeyFile, Role

FILE = "keys.json"
"""Where the keys of a workspace lie unless told otherwise."""


def create(
    path: Path, name: str, roles: list[str], days: float | None, per_second: int | None
) -> None:
    """Make a key and print it, once: only its hash is kept.

    Raises:
        UserError: an unknown role, no role, or see `KeyFile.create`.
    """
    known: dict[str, Role] = {role: role for role in ROLES}
    wrong = [role for role in roles if role not in known]
    if wrong or not roles:
        raise UserError(
            f"{wrong[0]!r} is no role" if wrong else "a key without a role may do nothing",
            where="--role",
            mend=f"one or more of: {', '.join(ROLES)}; none of them implies another",
        )
    meant = tuple(known[role] for role in roles)
    key, secret = KeyFile(path).create(name, meant, days, per_second)
    until = f"until {key.expires:%Y-%m-%d}" if key.expires else "without end"
    console = Console(stderr=True)
    console.print(
        f"key {key.id} for {escape(key.name)}, may {', '.join(key.roles)}, {until}; kept as a hash "
        f"in {path}\nThis is the only time that it is shown:"
    )
    print(secret)  # alone on stdout: KEY=$(raysys key create …)


def show(path: Path, *, as_json: bool) -> None:
    """Print what is kept of all keys."""
    keys = KeyFile(path).read()
    now = datetime.now(UTC)
    if as_json:
        told = [
            {**key.model_dump(mode="json", exclude={"sha256"}), "state": key.state(now)}
            for key in keys
        ]
        print(json.dumps(told, indent=1))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("id", "name", "roles", "state", "created", "expires", "per second"):
        table.add_column(column)
    for key in keys:
        table.add_row(*_cells(key, now))
    Console().print(table)


def revoke(path: Path, which: str) -> None:
    """Refuse a key, or all of one name, from now on."""
    ended = KeyFile(path).revoke(which)
    names = ", ".join(f"{key.id} ({key.name})" for key in ended)
    print(f"revoked {names}; servers know within seconds" if ended else "it was revoked already")


def _cells(key: Key, now: datetime) -> list[str]:
    return [
        key.id,
        escape(key.name),
        ", ".join(key.roles),
        key.state(now),
        f"{key.created:%Y-%m-%d}",
        f"{key.expires:%Y-%m-%d}" if key.expires else "never",
        str(key.per_second or ""),
    ]

"""What a deployment can be told of its edge: who may call, how often, and from which pages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from raysys.config import Settings


def under_home(path: str) -> Path:
    """A path of the serve config: a relative one lies under RAYSYS_HOME, or where Ray started."""
    found = Path(path).expanduser()
    return found if found.is_absolute() else Path(os.environ.get("RAYSYS_HOME", ".")) / found


def _origin(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or text != f"{parts.scheme}://{parts.netloc}":
        raise ValueError("an origin reads https://shop.example or http://localhost:3000, no path")
    return text


class AuthArgs(Settings):
    """Who may call.

    Attributes:
        keys: file of API keys (`raysys key create` makes it), read again when it changes; a
            relative path lies under RAYSYS_HOME. Null: no keys, and only this machine is answered.
        open: true: answer anybody without a key, from anywhere.
    """

    keys: str | None = None
    open: bool = False

    @property
    def keys_path(self) -> Path | None:
        """The file of keys; see `keys`."""
        return None if self.keys is None else under_home(self.keys)

    def settled(self) -> AuthArgs:
        """The same with an absolute path, so that all replicas read one file."""
        path = self.keys_path
        return self if path is None else self.model_copy(update={"keys": str(path.resolve())})


class LimitArgs(Settings):
    """How often one key, or one address, may call.

    Attributes:
        per_second: requests over any second, of keys that have no number of their own; where there
            are no keys, of each address. null: no limit.
        pages_per_second: with keys, requests over any second for pages, from one address (of
            IPv6: one /64); who sends a key is counted by that. null: no limit.
        redis: `redis://host:6379/0`, where all replicas count together (extra `redis`). Null:
            each replica counts alone, so that N replicas let N times as many through.
    """

    per_second: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    pages_per_second: Annotated[int, Field(ge=1, le=1_000_000)] | None = 50
    redis: Annotated[str, Field(pattern=r"^(redis|rediss|unix)://.+$")] | None = None


Origin = Annotated[str, AfterValidator(_origin)]
"""Scheme, host and port of pages whose scripts may call."""

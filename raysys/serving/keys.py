"""API keys: made once, kept as hashes in a small file, looked up in constant time.

A key reads `rsk_<id>_<secret>`: 8 hex digits that name it, then 32 random bytes in base 62. The
file holds its SHA-256. A slow hash (bcrypt, Argon2) protects secrets that people choose, which can
be guessed; 256 random bits cannot, so one fast hash a request is enough (NIST SP 800-63B, 5.1.2.2,
asks for salt and a slow hash below 112 bits only).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field

from raysys.config import Settings, parse_settings
from raysys.errors import UserError

log = logging.getLogger("raysys")

Role = Literal["read", "events", "admin"]
"""`read`: lists, profiles, text tasks. `events`: sends what users did. `admin`: changes what is
served. None implies another: a key that promotes bundles need not read what users bought."""

ROLES: tuple[Role, ...] = get_args(Role)
LOOK_S = 1.0  # how often a server looks whether the file changed

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET = 43  # digits of base 62 that hold 32 bytes
_KEY = re.compile(rf"rsk_([0-9a-f]{{8}})_[0-9A-Za-z]{{{_SECRET}}}")
_NOBODY = "0" * 64


class Key(Settings):
    """What is kept of a key.

    Attributes:
        id: names it, in lists and logs; no secret.
        name: whose it is, for people.
        sha256: of the whole key, hex.
        roles: what it may do.
        created: UTC.
        expires: UTC, from then on it is refused; null: never.
        revoked: UTC, since when it is refused; null: it is not.
        per_second: requests that are answered, over any second; null: the server's default.
    """

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    roles: Annotated[tuple[Role, ...], Field(min_length=1)]
    created: datetime
    expires: datetime | None = None
    revoked: datetime | None = None
    per_second: Annotated[int, Field(ge=1, le=1_000_000)] | None = None

    def state(self, now: datetime) -> str:
        """`valid`, `revoked` or `expired`."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and now >= self.expires else "valid"


def who_is(key: Key | None) -> str:
    """Who asks, as the registry's journal names them; None: nobody needs a key here."""
    return "a caller of this machine" if key is None else f"key {key.id} ({key.name})"


class _Content(Settings):
    """The file."""

    version: Literal[1] = 1
    keys: tuple[Key, ...] = ()


class KeyFile:
    """The keys in a file: JSON, mode 0600, replaced at once by each change.

    Args:
        path: made by the first `create`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[Key, ...]:
        """All keys, oldest first.

        Raises:
            UserError: missing, damaged, or anybody may write into it.
        """
        mend = "make a key: `raysys key create NAME --role read`"
        try:
            with self.path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                raw = file.read()
        except OSError as error:
            raise UserError(f"no keys: {error.strerror}", where=str(self.path), mend=mend) from None
        if mode & (stat.S_IWGRP | stat.S_IWOTH):  # others could add a key of their own
            raise UserError(
                "others may write into this file of keys",
                where=str(self.path),
                mend=f"chmod 600 {self.path}, and look through `raysys key list`",
            )
        try:
            content = json.loads(raw)
            if not isinstance(content, dict):
                raise ValueError("no mapping")
        except ValueError as error:
            raise UserError(
                f"damaged file of keys: {error}", where=str(self.path), mend="restore it"
            ) from None
        keys = parse_settings(_Content, content, where=str(self.path)).keys
        if len({key.id for key in keys}) < len(keys):
            raise UserError("two keys have one id", where=str(self.path), mend="restore the file")
        return keys

    def create(
        self,
        name: str,
        roles: tuple[Role, ...],
        days: float | None = None,
        per_second: int | None = None,
    ) -> tuple[Key, str]:
        """Add a key; returns what is kept of it, and the key itself, which nobody can show again.

        Args:
            name: whose it is; a name may have several keys, so that they can be exchanged.
            roles: see `ROLES`.
            days: until it expires; None: never.
            per_second: see `Key`.

        Raises:
            UserError: a bad name, role, number of days or rate; a damaged file.
        """
        if days is not None and not 0 < days <= 36_500:
            raise UserError(f"{days:g} is no number of days", where="--days", mend="1 to 36500")
        with self._locked():
            kept = self.read() if self.path.exists() else ()
            taken = {key.id for key in kept}
            while (key_id := secrets.token_hex(4)) in taken:
                pass
            secret = f"rsk_{key_id}_{_base62(int.from_bytes(secrets.token_bytes(32)))}"
            now = datetime.now(UTC).replace(microsecond=0)
            content = {
                "id": key_id,
                "name": name,
                "sha256": _hash(secret),
                "roles": tuple(dict.fromkeys(roles)),
                "created": now,
                "expires": None if days is None else now + timedelta(days=days),
                "per_second": per_second,
            }
            key = parse_settings(Key, content, where="raysys key create")
            self._write((*kept, key))
        return key, secret

    def revoke(self, which: str) -> list[Key]:
        """Refuse a key from now on; returns those that this changed.

        Args:
            which: an id, or a name: then all keys of that name.

        Raises:
            UserError: there is none.
        """
        with self._locked():
            kept = self.read()
            meant = {key.id for key in kept if which in (key.id, key.name)}
            if not meant:
                known = ", ".join(f"{key.id} ({key.name})" for key in kept)
                raise UserError(
                    f"no key {which!r}", where=str(self.path), mend=f"there are: {known or 'none'}"
                )
            now = datetime.now(UTC).replace(microsecond=0)
            ended = [
                key.model_copy(update={"revoked": now})
                for key in kept
                if key.id in meant and key.revoked is None
            ]
            by_id = {key.id: key for key in ended}
            self._write(tuple(by_id.get(key.id, key) for key in kept))
        return ended

    def _write(self, keys: tuple[Key, ...]) -> None:
        text = _Content(keys=keys).model_dump_json(indent=1) + "\n"
        fresh = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        fresh.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(fresh, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # a revocation must outlive a crash
        fresh.replace(self.path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time: the file is read, changed and replaced."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(f".{self.path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class KeyRing:
    """The keys a server knows: read from a file, and again within seconds after it changes.

    A file that is gone ends all keys. One that is damaged, or that others may write into, ends
    none and adds none: the last good ones stay, and the log says why.

    Args:
        path: of a `KeyFile`.

    Raises:
        UserError: the file is missing or damaged at the start.
    """

    def __init__(self, path: Path) -> None:
        self._file = KeyFile(path)
        self._keys = {key.id: key for key in self._file.read()}
        self._stamp = self._stat()
        self._looked = time.monotonic()
        self._alone = secrets.token_bytes(32)

    def find(self, secret: str) -> Key | None:
        """The key that this secret is, expired and revoked ones too; None: there is none."""
        if time.monotonic() - self._looked > LOOK_S:
            self.look()
        form = _KEY.fullmatch(secret)
        key = self._keys.get(form.group(1)) if form else None
        # an unknown id costs a comparison as well: the time does not say which ids there are
        same = hmac.compare_digest(_hash(secret), key.sha256 if key else _NOBODY)
        return key if same else None

    def named(self, key_id: str) -> Key | None:
        """The key of an id, expired and revoked ones too; None: there is none."""
        if time.monotonic() - self._looked > LOOK_S:
            self.look()
        return self._keys.get(key_id)

    def signing(self) -> bytes:
        """A secret that all replicas share and no holder of some of the keys knows: 32 bytes.

        It is another one after a key was made.
        """
        if time.monotonic() - self._looked > LOOK_S:
            self.look()
        if not self._keys:  # the file is gone: a hash of nothing would be no secret
            return self._alone
        told = sorted(f"{k.id} {k.sha256}" for k in self._keys.values())
        return hashlib.sha256("\n".join(told).encode()).digest()

    def look(self) -> None:
        """Read the file again if it changed."""
        self._looked = time.monotonic()
        stamp = self._stat()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        if stamp is None:
            log.error("the file of keys %s is gone: no key is valid", self._file.path)
            self._keys = {}
            return
        try:
            self._keys = {key.id: key for key in self._file.read()}
        except UserError as error:
            log.error("the keys stay as they were: %s", error)

    def _stat(self) -> tuple[int, ...] | None:
        try:
            found = self._file.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def _base62(number: int) -> str:
    digits = []
    for _ in range(_SECRET):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))

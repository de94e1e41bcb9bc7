"""The event log of many nodes: a Redis Stream, and a key for each id that must be known.

One Lua script looks an id up, numbers the entry and appends it, so that it is there once whatever
happens on the way. Redis answers when its append-only file is synced: that is what `appendfsync
always` means, and without it the log refuses to start. Entries are numbered by a counter of our
own, as offsets must rise by themselves when a clock does not.

    NAME:log        the stream; an entry's id is OFFSET-0
    NAME:end        the counter
    NAME:id:DIGEST  an id that is known, until it may be forgotten
    NAME:positions  consumers
    NAME:lock:WHAT  held by one process
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

from raysys.errors import UserError, missing_extra
from raysys.eventlog.entries import Appended, Entry, Held, LogUnavailable, NewEntry, Outcome
from raysys.eventlog.group import GroupCommit
from raysys.eventlog.rolled import Rolled
from raysys.eventlog.settings import LogSettings

log = logging.getLogger("raysys")

_APPEND: Final = """
local outcomes = {}
local known, stream, counter, received, least = KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2]
if tonumber(redis.call('GET', counter) or '0') < tonumber(least) then
  redis.call('SET', counter, least)
end
for at = 3, #ARGV, 3 do
  if redis.call('SET', known .. ARGV[at], '1', 'NX', 'PXAT', ARGV[at + 1]) then
    local offset = redis.call('INCR', counter)
    redis.call('XADD', stream, offset .. '-0', 'r', received, 'e', ARGV[at + 2])
    outcomes[#outcomes + 1] = 1
  else
    outcomes[#outcomes + 1] = 0
  end
end
outcomes[#outcomes + 1] = tonumber(redis.call('GET', counter) or '0')
return outcomes
"""
_RELEASE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""
_HOLD_MS: Final = 60_000
_DAY_MS: Final = 86_400_000
_AT_ONCE: Final = 1_000  # entries of one script: Redis does nothing else meanwhile


class RedisLog:
    """See `EventLog`.

    Args:
        settings: address, names, size of the queue, how long ids are known.
        folder: of the rolled files: offsets go on behind theirs, whatever the server remembers.

    Raises:
        UserError: the package is missing, or the server would lose what it acknowledged.
        LogUnavailable: no server answers.
    """

    def __init__(self, settings: LogSettings, folder: Path) -> None:
        try:
            import redis
        except ImportError:
            raise missing_extra("redis", "redis") from None
        self.settings = settings
        self._faults: Any = redis.RedisError
        self._redis: Any = redis.Redis.from_url(
            settings.url, socket_timeout=10, socket_connect_timeout=5, decode_responses=True
        )
        name = settings.name
        self._keys = [f"{name}:id:", f"{name}:log", f"{name}:end"]
        self._stream, self._counter = self._keys[1:]
        self._positions = f"{name}:positions"
        self._seeing = threading.Lock()
        with self._in_our_words():
            _check_durable(self._redis, settings.url)
            self._append = self._redis.register_script(_APPEND)
            self._release = self._redis.register_script(_RELEASE)
            (self._least,) = self._append(keys=self._keys, args=[0, Rolled(folder).last()])
        self._group = GroupCommit(self._write, settings.queue_events)

    def submit(self, entries: Sequence[NewEntry]) -> Future[Appended]:
        """See `EventLog`."""
        return self._group.submit(entries)

    def append(self, entries: Sequence[NewEntry]) -> Appended:
        """See `EventLog`."""
        return self.submit(entries).result()

    def end(self) -> int:
        """See `EventLog`."""
        with self._in_our_words():
            end = int(self._redis.get(self._counter) or 0)
        self._seen(end)
        return end

    def first(self) -> int:
        """See `EventLog`."""
        with self._in_our_words():
            oldest = self._redis.xrange(self._stream, count=1)
            return _offset(oldest[0][0]) if oldest else self.end() + 1

    def read(self, after: int, limit: int = 10_000) -> list[Entry]:
        """See `EventLog`."""
        with self._in_our_words():
            found = self._redis.xrange(self._stream, min=f"({after}-0", count=limit)
        self._seen(_offset(found[-1][0]) if found else after)
        return [_entry(name, fields) for name, fields in found]

    def wait(self, after: int, timeout_s: float) -> bool:
        """See `EventLog`."""
        with self._in_our_words():
            block = max(1, int(min(timeout_s, 5) * 1000))  # below the socket's own patience
            return bool(self._redis.xread({self._stream: f"{after}-0"}, count=1, block=block))

    def position(self, consumer: str) -> int:
        """See `EventLog`."""
        with self._in_our_words():
            return int(self._redis.hget(self._positions, consumer) or 0)

    def commit(self, consumer: str, offset: int) -> None:
        """See `EventLog`."""
        with self._in_our_words():
            self._redis.hset(self._positions, consumer, offset)

    def drop(self, until: int) -> int:
        """See `EventLog`."""
        with self._in_our_words():
            return int(self._redis.xtrim(self._stream, minid=f"{until + 1}-0", approximate=False))

    @contextlib.contextmanager
    def exclusively(self, name: str) -> Iterator[Held | None]:
        """See `EventLog`; kept up while it is held, gone a minute after its holder's death."""
        key, mark = f"{self.settings.name}:lock:{name}", uuid.uuid4().hex
        with self._in_our_words():
            mine = bool(self._redis.set(key, mark, nx=True, px=_HOLD_MS))
        if not mine:
            yield None
            return
        done = threading.Event()

        def hold() -> None:
            while not done.wait(_HOLD_MS / 4000):
                with contextlib.suppress(self._faults):
                    if self._redis.get(key) == mark:
                        self._redis.pexpire(key, _HOLD_MS)

        def held() -> bool:
            with self._in_our_words():
                return bool(self._redis.get(key) == mark)

        holder = threading.Thread(target=hold, name=f"hold {name}", daemon=True)
        holder.start()
        try:
            yield held
        finally:
            done.set()
            holder.join()
            with contextlib.suppress(self._faults):
                self._release(keys=[key], args=[mark])

    def close(self) -> None:
        """See `EventLog`."""
        self._group.close()
        self._redis.close()

    def _write(self, batches: Sequence[Sequence[NewEntry]]) -> list[Appended]:
        whole = [entry for batch in batches for entry in batch]
        now = time.time_ns() // 1_000_000
        outcomes: list[Outcome] = []
        end = 0
        with self._in_our_words():
            for at in range(0, len(whole), _AT_ONCE):
                arguments: list[str | int] = [now, self._least]
                for entry in whole[at : at + _AT_ONCE]:
                    newest = max(entry.timestamp, now) // _DAY_MS
                    until = (newest + self.settings.remember_days + 1) * _DAY_MS
                    body = json.dumps(
                        [entry.kind, entry.quarantined, entry.body],
                        separators=(",", ":"), ensure_ascii=False,
                    )  # fmt: skip
                    arguments += [entry.digest.hex(), until, body]
                *new, end = self._append(keys=self._keys, args=arguments)
                self._seen(end)
                outcomes += ["accepted" if one else "duplicate" for one in new]
        appended, at = [], 0
        for batch in batches:
            appended.append(Appended(outcomes[at : at + len(batch)], end))
            at += len(batch)
        return appended

    def _seen(self, offset: int) -> None:
        """Somebody was given this offset, or has read up to it: it must not be given again.

        A server may have forgotten: it lost all, or another took its place that lacked the end.
        """
        with self._seeing:
            self._least = max(self._least, offset)

    @contextlib.contextmanager
    def _in_our_words(self) -> Iterator[None]:
        try:
            yield
        except self._faults as error:
            raise LogUnavailable(f"Redis at {_shown(self.settings.url)}: {error}") from error


def _check_durable(server: Any, url: str) -> None:
    """Refuse a server that answers before it has synced.

    Raises:
        UserError: it does, or evicts keys.
    """
    wanted = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
    told: dict[str, str] = {}
    for name in wanted:
        told |= server.config_get(name)
    wrong = {name: told.get(name, "?") for name, value in wanted.items() if told.get(name) != value}
    if wrong:
        said = ", ".join(f"{name} {value}" for name, value in wrong.items())
        raise UserError(
            f"this Redis would lose acknowledged events: {said}",
            where=_shown(url),
            mend="; ".join(f"CONFIG SET {name} {wanted[name]}" for name in wrong)
            + "; and the same in redis.conf",
        )


def _shown(url: str) -> str:
    """An address without its password."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _offset(name: str) -> int:
    return int(name.partition("-")[0])


def _entry(name: str, fields: dict[str, str]) -> Entry:
    kind, quarantined, body = json.loads(fields["e"])
    return Entry(_offset(name), int(fields["r"]), kind, body, quarantined)

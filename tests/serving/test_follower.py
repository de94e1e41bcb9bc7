"""A state that follows a log whose older events lie in its rolled files alone."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from raysys.eventlog import blocks
from raysys.eventlog.local import LocalLog
from raysys.eventlog.rolled import Rolled, roll
from raysys.eventlog.settings import LogSettings
from raysys.eventlog.tidying import forget
from raysys.features.live import LiveFeatures
from raysys.serving.follower import Follower
from tests.eventlog.entries import NOW, entry
from tests.serving.eventing import DAY

SMALL = LogSettings(segment_mb=1)


def follower(log: LocalLog, bundle: Path) -> Follower:
    return Follower(log, Rolled(log.folder), LiveFeatures.load(bundle / "features"))


@pytest.mark.parametrize("begins", ["start", "catch_up"])
def test_rolled_events_are_counted_once_though_reading_them_failed(
    bundle: Path, tmp_path: Path, begins: str
) -> None:
    log, rolled = LocalLog(tmp_path / "log", SMALL), Rolled(tmp_path / "log")
    for piece in range(2):
        told = [entry(f"{piece}-{n}", NOW + n, query="x" * 1000) for n in range(1200)]
        log.append(told)
        roll(log, rolled)
    log.append([entry("last")])
    assert forget(log, rolled, NOW + DAY) > 0 and log.first() > 1200
    second = sorted(rolled.events.iterdir())[1]
    whole = second.read_bytes()
    second.write_bytes(whole[: len(whole) // 2])
    follows = follower(log, bundle)
    with pytest.raises(pa.ArrowInvalid):
        getattr(follows, begins)()
    assert (follows.followed.events, follows.followed.position) == (1200, 1200)
    second.write_bytes(whole)
    getattr(follows, begins)()
    follows.stop()
    assert (follows.followed.events, follows.followed.position) == (2401, 2401)
    log.close()


def test_a_damaged_end_of_the_log_is_counted_from_the_rolled_files(
    bundle: Path, tmp_path: Path
) -> None:
    log = LocalLog(tmp_path / "log", SMALL)
    log.append([entry("a")])
    head = log._head.read()
    assert head is not None
    log.append([entry("b"), entry("c")])
    roll(log, Rolled(log.folder))
    log.close()
    with blocks.segment_path(log.folder, 1).open("r+b") as file:
        file.seek(head.byte)
        file.write(b"?")
    (log.folder / "head").unlink()
    log = LocalLog(log.folder, SMALL)
    follows = follower(log, bundle)
    follows.catch_up()
    assert (follows.followed.events, follows.followed.position) == (3, 3)
    log.close()

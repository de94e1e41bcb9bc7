"""The latest moment at which anything came in, by the clocks of then."""

from __future__ import annotations

import time

import pytest

from raysys.eventlog.rolled import Rolled, last_received, roll
from tests.eventlog.conftest import Open
from tests.eventlog.entries import entries

HOUR_NS = 3_600_000_000_000


def test_a_log_without_an_entry_has_none(opened: Open, tmp_path) -> None:
    assert last_received(opened(), Rolled(tmp_path / "log")) == 0


def test_what_was_rolled_knows_a_clock_that_was_set_back(
    opened: Open, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, rolled = opened(), Rolled(tmp_path / "log")
    log.append(entries("a"))
    first = log.read(0)[-1].received
    assert last_received(log, rolled) == first
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() - 3 * HOUR_NS)
    log.append(entries("b"))
    roll(log, rolled)
    last = log.read(0)[-1].received
    assert last < first == last_received(log, rolled)

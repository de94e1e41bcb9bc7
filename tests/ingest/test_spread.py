"""Pieces on Ray: what they return, whose mistakes come back, and what a killed process costs."""

from __future__ import annotations

import os
import signal

import pytest
from ray.exceptions import OutOfMemoryError

from raysys.cluster import ray_session
from raysys.errors import UserError
from raysys.ingest.spread import InProcess, OnRay, Spread


@pytest.fixture(scope="module")
def on_ray():
    with ray_session():
        yield OnRay()


def test_nothing_to_do_is_done_at_once():
    def never(_: int) -> None:
        raise AssertionError

    assert list(OnRay().each(0, never)) == list(InProcess().each(0, never)) == []


def outcome(spread: Spread, n: int) -> list[int]:
    return sorted(answer["square"] for answer in spread.each(n, lambda i: {"square": i * i}))


@pytest.mark.slow
def test_every_piece_is_done_once(on_ray):
    assert outcome(on_ray, 60) == outcome(InProcess(), 60) == [i * i for i in range(60)]


@pytest.mark.slow
def test_a_users_mistake_comes_back_as_one(on_ray):
    def work(i: int) -> None:
        if i == 3:
            raise UserError("no such column", where="a.csv", mend="name another")

    with pytest.raises(UserError) as raised:
        list(on_ray.each(5, work))
    assert (raised.value.what, raised.value.where) == ("no such column", "a.csv")
    assert outcome(on_ray, 3) == [0, 1, 4]  # what was left is cancelled, and the session goes on


@pytest.mark.slow
def test_too_little_memory_is_told_with_the_step(on_ray):
    def work(_: int) -> None:
        raise OutOfMemoryError("the node was low on memory")

    with pytest.raises(UserError, match="no memory left: sessions") as raised:
        list(on_ray.each(2, work, "sessions"))
    assert "fewer CPUs" in raised.value.mend


@pytest.mark.slow
def test_a_killed_process_costs_its_own_piece(on_ray, tmp_path):
    def work(i: int) -> dict[str, int]:
        with (tmp_path / f"{i}").open("a") as tried:
            tried.write(".")
        if i == 4 and (tmp_path / "4").read_text() == ".":
            os.kill(os.getpid(), signal.SIGKILL)
        return {"i": i}

    assert sorted(answer["i"] for answer in on_ray.each(8, work)) == list(range(8))
    tries = [len((tmp_path / f"{i}").read_text()) for i in range(8)]
    assert tries == [1, 1, 1, 1, 2, 1, 1, 1]

"""A replica's process: one thread of BLAS, and no look at a whole bundle at every collection."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from raysys.serving.lease import Lease
from raysys.serving.pauses import keep_short, let_go


@pytest.fixture
def _as_before() -> Iterator[None]:
    callbacks, turn = list(gc.callbacks), sys.getswitchinterval()
    with threadpool_limits():
        yield
    sys.setswitchinterval(turn)
    gc.callbacks[:] = callbacks
    gc.unfreeze()


class _Ring:
    """Garbage that counting references does not free."""

    def __init__(self) -> None:
        self.itself = self


class _Service:
    def __init__(self) -> None:
        self.bundle = _Ring()

    def close(self) -> None:
        pass


@pytest.mark.usefixtures("_as_before")
def test_blas_keeps_to_one_thread():
    np.ones((2, 2)) @ np.ones((2, 2))  # loaded
    keep_short()
    blas = [each for each in threadpool_info() if each["user_api"] == "blas"]
    assert blas
    assert {each["num_threads"] for each in blas} == {1}


@pytest.mark.usefixtures("_as_before")
def test_who_reads_requests_need_not_wait_for_a_whole_answer():
    keep_short()
    assert sys.getswitchinterval() <= 0.001


@pytest.mark.usefixtures("_as_before")
def test_what_outlives_a_full_collection_is_not_looked_at_again():
    keep_short()
    keep_short()  # a second replica in the process of a test
    old = [[number] for number in range(1000)]
    gc.collect()
    looked_at = {id(each) for each in gc.get_objects()}
    assert not looked_at & {id(each) for each in old}
    frozen = gc.get_freeze_count()
    young = [[number] for number in range(1000)]
    gc.collect(1)
    assert gc.get_freeze_count() == frozen, "only what outlives a full one"
    gc.collect()
    assert gc.get_freeze_count() >= frozen + len(young)


@pytest.mark.usefixtures("_as_before")
def test_garbage_since_then_is_freed():
    keep_short()
    ring = weakref.ref(_Ring())
    gc.collect()
    assert ring() is None


@pytest.mark.usefixtures("_as_before")
def test_a_bundle_that_ended_is_freed():
    service = _Service()
    bundle = weakref.ref(service.bundle)
    keep_short()
    lease = Lease(service)  # type: ignore[arg-type]
    del service
    lease.retire()
    for thread in threading.enumerate():
        if thread.name == "close":
            thread.join()
    assert bundle() is not None, "a ring"
    del lease
    gc.collect()
    assert bundle() is None


@pytest.mark.usefixtures("_as_before")
def test_letting_go_twice_is_nothing_else():
    let_go()
    let_go()
    assert gc.get_freeze_count() == 0

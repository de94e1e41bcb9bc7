"""What would hold up all answers of a replica's process at once, and how it is kept from them.

Threads of BLAS: the products of one answer are small, and a second thread that turns in circles
while it waits for its part takes the core of another answer. Full garbage collections: they look
at every object of a bundle, hundreds of thousands, and nothing else runs meanwhile. The thread
that reads requests and sends answers: it needs the interpreter for microseconds, for which it would
wait until a thread that makes an answer has had it for 5 ms, Python's own measure.
"""

from __future__ import annotations

import gc
import sys
from typing import Final, Literal

from threadpoolctl import threadpool_limits

_TURN_S: Final = 0.001  # that a thread may keep the interpreter while another waits for it
_FULL: Final = 2  # the generation that a full collection looks at


def keep_short() -> None:
    """For the process of a replica, once its bundle is warm; safe to call again.

    numpy's BLAS keeps to one thread: `threads` answers are in work side by side. Whatever outlives
    a full collection is frozen, so that the next one does not look at it: rings of objects that are
    in use at that moment are freed when a bundle ends, and no request makes any.
    """
    threadpool_limits(1, user_api="blas")
    sys.setswitchinterval(_TURN_S)
    if _freeze not in gc.callbacks:
        gc.callbacks.append(_freeze)
    gc.collect()


def let_go() -> None:
    """A bundle has ended: the next full collection looks at everything, once, and frees its rings.

    What no ring holds was freed with the last reference to it.
    """
    gc.unfreeze()


def _freeze(phase: Literal["start", "stop"], told: dict[str, int]) -> None:
    if phase == "stop" and told["generation"] == _FULL:
        gc.freeze()

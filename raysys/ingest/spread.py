"""Who does the pieces of a pass: Ray's tasks on the cluster, or this process, one by one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final, Protocol

from raysys.errors import UserError
from raysys.storage import naming_full_disk

Work = Callable[[int], dict[str, Any] | None]
"""Does piece number i; what it returns is small and JSON can say it."""

_FAILURE: Final = "failure"
_AHEAD: Final = 8  # tasks asked for at a time, per CPU: enough for a cluster to grow by


class Spread(Protocol):
    """Does `work(0)` … `work(n - 1)`."""

    @property
    def cpus(self) -> int:
        """How many pieces can be done at a time."""

    def each(self, n: int, work: Work, name: str = "pieces") -> Iterator[dict[str, Any]]:
        """What every piece returns, as it is done.

        Args:
            n: how many pieces there are.
            work: does one of them.
            name: of the step, for whoever watches the cluster.

        Raises:
            UserError: a piece found one.
        """


class OnRay:
    """One Ray task a piece, on the session that is open.

    Pieces read and write files themselves and give back a few counts, so that Ray Data would carry
    nothing here but the numbers 0 … n - 1: `docs/architecture.md` says what that cost.
    """

    @property
    def cpus(self) -> int:
        """CPUs of the whole cluster."""
        import ray

        return max(1, int(ray.cluster_resources().get("CPU", 1)))

    def each(self, n: int, work: Work, name: str = "pieces") -> Iterator[dict[str, Any]]:
        """See `Spread.each`; a piece whose worker or node died is done again elsewhere.

        Raises:
            UserError: a piece found one, or needed more memory than its node has.
        """
        if n == 0:
            return
        import ray

        shared = [ray.put(work)]  # pickled once, and unpickled once a process, however large it is
        remote = ray.remote(num_cpus=1, scheduling_strategy="SPREAD", max_retries=3)
        task = remote(_piece).options(name=name)
        numbers = iter(range(n))
        waiting: list[Any] = []
        try:
            while True:
                while len(waiting) < _AHEAD * self.cpus and (i := next(numbers, None)) is not None:
                    waiting.append(task.remote(shared, i))
                if not waiting:
                    return
                (done,), waiting = ray.wait(waiting)
                yield _unpack(ray.get(done))
        except ray.exceptions.OutOfMemoryError as error:
            raise UserError(
                f"a task was stopped again and again, since its node had no memory left: {name}",
                where=str(error).splitlines()[0],
                mend="give the nodes more memory, or Ray fewer CPUs, so that fewer tasks run "
                "beside each other",
            ) from None
        finally:
            for each in waiting if ray.is_initialized() else ():  # cancel would start a new Ray
                ray.cancel(each)


class InProcess:
    """Everything here and now: for logs that are not worth a cluster."""

    cpus = 1

    def each(self, n: int, work: Work, name: str = "pieces") -> Iterator[dict[str, Any]]:
        """See `Spread.each`."""
        for number in range(n):
            yield _unpack(_answer(work, number))


class Below:
    """Another spread, whose pieces write below one folder: that is told where a disk is full."""

    def __init__(self, folder: Path, spread: Spread) -> None:
        self._folder, self._spread = folder, spread

    @property
    def cpus(self) -> int:
        """Those of the other spread."""
        return self._spread.cpus

    def each(self, n: int, work: Work, name: str = "pieces") -> Iterator[dict[str, Any]]:
        """See `Spread.each`."""
        return self._spread.each(n, partial(_below, self._folder, work), name)


def _below(folder: Path, work: Work, number: int) -> dict[str, Any] | None:
    with naming_full_disk(folder):
        return work(number)


def _piece(shared: list[Any], number: int) -> str:
    """A piece, in a task; `shared` holds the reference to the work."""
    return _answer(_fetched(shared[0]), number)


@lru_cache(maxsize=1)
def _fetched(work: Any) -> Work:
    import ray

    found: Work = ray.get(work)
    return found


def _answer(work: Work, number: int) -> str:
    """A piece's result as JSON; users' mistakes travel as data, so that no traceback joins them."""
    try:
        return json.dumps(work(number) or {})
    except UserError as error:
        told = {"what": error.what, "where": error.where, "mend": error.mend}
    return json.dumps({_FAILURE: told})


def _unpack(answer: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(answer)
    if _FAILURE in content:
        raise UserError(**content[_FAILURE])
    return content

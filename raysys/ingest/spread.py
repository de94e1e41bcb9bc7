"""Who does the pieces of a pass: Ray Data's tasks on the cluster, or this process, one by one."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

import pyarrow as pa

from raysys.errors import UserError

Work = Callable[[int], dict[str, Any] | None]
"""Does piece number i; what it returns is small and JSON can say it."""

_FAILURE: Final = "failure"


class Spread(Protocol):
    """Does `work(0)` … `work(n - 1)`."""

    @property
    def cpus(self) -> int:
        """How many pieces can be done at a time."""

    def each(self, n: int, work: Work) -> Iterator[dict[str, Any]]:
        """What every piece returns, as it is done.

        Raises:
            UserError: a piece found one.
        """


class OnRay:
    """One Ray Data task a piece, on the session that is open."""

    @property
    def cpus(self) -> int:
        """CPUs of the whole cluster."""
        import ray

        return max(1, int(ray.cluster_resources().get("CPU", 1)))

    def each(self, n: int, work: Work) -> Iterator[dict[str, Any]]:
        """See `Spread.each`."""
        import ray

        def do(batch: pa.Table) -> pa.Table:
            return pa.table({"answer": [_answer(work, i) for i in batch["number"].to_pylist()]})

        numbers = ray.data.from_items([{"number": i} for i in range(n)], override_num_blocks=n)
        done = numbers.map_batches(do, batch_size=1, batch_format="pyarrow")
        for row in done.iter_rows():
            yield _unpack(row["answer"])


class InProcess:
    """Everything here and now: for logs that are not worth a cluster."""

    cpus = 1

    def each(self, n: int, work: Work) -> Iterator[dict[str, Any]]:
        """See `Spread.each`."""
        for number in range(n):
            yield _unpack(_answer(work, number))


def _answer(work: Work, number: int) -> str:
    """A piece's result as JSON; users' mistakes travel as data, so that no traceback joins them."""
    try:
        return json.dumps(work(number) or {})
    except UserError as error:
        told = {"what": error.what, "where": error.where, "mend": error.mend}
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        told = {
            "what": "the disk is full",
            "where": str(error.filename or ""),
            "mend": "free some space, or give another --workspace",
        }
    return json.dumps({_FAILURE: told})


def _unpack(answer: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(answer)
    if _FAILURE in content:
        raise UserError(**content[_FAILURE])
    return content

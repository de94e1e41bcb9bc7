"""What is in stock, from a file that the shop writes anew whenever it likes."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq
from pydantic import Field

from raysys.catalogue import Catalogue
from raysys.config import Settings
from raysys.errors import UserError

log = logging.getLogger("raysys")
Mask = npt.NDArray[np.bool_]


class StockArgs(Settings):
    """Where the stock is told.

    Attributes:
        path: a CSV or Parquet file with the columns item_id and stock (a number), under RAYSYS_HOME
            as the registry; items that it does not name are in stock.
        refresh_s: how often it is looked at; a file that cannot be read leaves what was known.
        hide: show nothing that is out of stock, asked for or not; false: only where
            `filters.in_stock` is true.
    """

    path: str
    refresh_s: Annotated[float, Field(gt=0)] = 30
    hide: bool = True


class Stock:
    """Which items are in stock; safe to use from several threads.

    Args:
        args: where it is told.
        catalogue: numbers the items.

    Raises:
        UserError: the file is missing or has other columns.
    """

    def __init__(self, args: StockArgs, catalogue: Catalogue) -> None:
        self.args, self._catalogue = args, catalogue
        self._path = Path(args.path).expanduser()
        self._looking = threading.Lock()
        self._changed = self._stamp()
        self._there = self._read()
        self._looked = time.monotonic()

    def there(self) -> tuple[Mask, str]:
        """bool[n_items], not to be written to; and its version, in every process the same."""
        due = time.monotonic() - self._looked > self.args.refresh_s
        if due and self._looking.acquire(blocking=False):  # one looks, nobody waits
            try:
                self._look()
            finally:
                self._looking.release()
        return self._there

    def _look(self) -> None:
        self._looked = time.monotonic()
        try:
            stamp = self._stamp()
            if stamp != self._changed:
                self._there = self._read()
                self._changed = stamp
        except UserError as error:
            log.error("%s; the stock stays as it was known", error)

    def _stamp(self) -> tuple[int, int]:
        try:
            state = self._path.stat()
        except OSError as error:
            raise UserError(
                f"no stock file: {error.strerror}",
                where=str(self._path),
                mend="write it, or take `stock` out of the serve config",
            ) from None
        return state.st_mtime_ns, state.st_size

    def _read(self) -> tuple[Mask, str]:
        try:
            if self._path.suffix == ".parquet":
                table = pq.read_table(self._path, columns=["item_id", "stock"])
            else:
                kinds = csv.ConvertOptions(
                    column_types={"item_id": pa.string(), "stock": pa.float64()},
                    include_columns=["item_id", "stock"],
                )
                table = csv.read_csv(self._path, convert_options=kinds)
            gone = table.filter(pc.less_equal(table["stock"].cast(pa.float64()), 0))
            numbers = self._catalogue.numbers(gone["item_id"].cast(pa.string()))
        except (OSError, KeyError, pa.ArrowException) as error:
            raise UserError(
                f"the stock cannot be read: {str(error).splitlines()[0]}",
                where=str(self._path),
                mend="give it the columns item_id and stock, a number",
            ) from None
        there = np.ones(len(self._catalogue), dtype=bool)
        there[numbers[numbers >= 0]] = False
        return there, hashlib.blake2b(np.packbits(there).tobytes(), digest_size=8).hexdigest()

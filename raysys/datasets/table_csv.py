"""A CSV as Polars reads it, or Python where Polars cannot; and rows with fields too many."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from raysys.datasets.csv_records import records
from raysys.datasets.table_layouts import Layout
from raysys.errors import UserError

log = logging.getLogger("raysys")

_FEW: Final = 0.01  # of rows, that may have fields too many
_SHOWN: Final = 200  # characters of such a row


@dataclass
class Wide:
    """Records of a file that have more fields than it has columns: what is behind is cut off.

    Attributes:
        rows: all that were read.
        count: of such.
        line: of the first, but for one that is passed over at the beginning.
        example: the first.
        before: lines of the parts that were read already.
    """

    rows: int = 0
    count: int = 0
    line: int = 0
    example: str = ""
    before: int = 0

    def add(self, rows: Sequence[list[str]], width: int) -> None:
        """Count those of a part of a file."""
        found = [at for at, row in enumerate(rows) if any(map(str.strip, row[width:]))]
        self.count += len(found)
        if found and not self.line:
            first = rows[found[0]]
            ends = sum(field.count("\n") for row in rows[: found[0]] for field in row)
            self.line = self.before + found[0] + ends + 1
            self.example = " | ".join(map(str.strip, first))[:_SHOWN]

    def tell(self, path: Path, layout: Layout) -> None:
        """Warn of some.

        Raises:
            UserError: they are not few.
        """
        if not self.count:
            return
        mark = "a tab" if layout.delimiter == "\t" else repr(layout.delimiter)
        what = (
            f"{self.count:,} of {self.rows:,} rows have more than the {len(layout.columns)} fields "
            f"of the others, the first in line {self.line:,}: {self.example}"
        )
        if self.count > _FEW * self.rows:
            raise UserError(
                what,
                where=str(path),
                mend=f"put quotation marks around fields that hold {mark}, or write the file with "
                "another delimiter",
            )
        log.warning("%s: %s; what is too much is cut off", path.name, what)


def read_csv(text: bytes, layout: Layout, wide: Wide) -> pl.DataFrame:
    """All columns of a CSV as texts, and where marks stand that quote nothing, as Python reads it.

    Raises:
        PolarsError: it cannot be read.
    """

    def read(*, cut: bool) -> pl.DataFrame:
        return pl.read_csv(
            text,
            infer_schema_length=0,
            separator=layout.delimiter,
            quote_char='"' if layout.quoted else None,
            truncate_ragged_lines=cut,
            has_header=layout.header,
            new_columns=None if layout.header else list(layout.columns),
        )

    width = len(layout.columns)
    try:
        frame = read(cut=False)
    except pl.exceptions.ComputeError:
        rows = _records(text, layout)
        wide.add(rows, width)
        try:
            frame = read(cut=True)
        except pl.exceptions.ComputeError:
            shaped = [row[:width] + [None] * (width - len(row)) for row in rows if row]
            frame = pl.DataFrame(
                shaped[layout.header :],
                schema=dict.fromkeys(layout.columns, pl.String),
                orient="row",
            ).with_columns(pl.all().replace("", None))
    wide.rows += frame.height
    names = text[: layout.header_end(text)] if layout.header else b""  # of every part
    wide.before += text.count(b"\n") - names.count(b"\n")
    return frame


def _records(text: bytes, layout: Layout) -> list[list[str]]:
    """Those of a CSV that Polars cannot read, with its header."""
    said = text.decode().removeprefix("\ufeff")
    ways = [list(records(said, layout.delimiter, quoted=quoted)) for quoted in (True, False)]
    # a mark that is never closed swallows rows, so the way with most whole rows is right
    return max(ways, key=lambda way: sum(len(row) == len(layout.columns) for row in way))

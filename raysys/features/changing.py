"""What events change of a live state, apart from all that its bundle fixes.

Copied at once, while nothing is counted; written later, while counting and answering go on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Changing:
    """A copy.

    Attributes:
        states: arrays of every state, by kind and name.
        users: user_id and what is kept of each, by number.
        sessions: names that are still known, and n_sessions: numbers given so far.
        as_of: UTC ms of the newest event.
    """

    states: dict[str, dict[str, Arrays]]
    users: pa.Table
    sessions: pl.DataFrame
    n_sessions: int
    as_of: int

    def write(self, folder: Path, **more: Any) -> None:
        """Write into an existing folder: safetensors, Parquet, JSON.

        Args:
            folder: where to.
            more: facts to write beside ours into `state.json`.
        """
        for kind, states in self.states.items():
            (folder / kind).mkdir()
            for name, arrays in states.items():
                save_file(arrays, folder / kind / f"{name}.safetensors")
        pq.write_table(self.users, folder / "users.parquet", compression="zstd")
        self.sessions.write_parquet(folder / "sessions.parquet")
        facts = {"as_of": self.as_of, "sessions": self.n_sessions, **more}
        (folder / "state.json").write_text(json.dumps(facts) + "\n")

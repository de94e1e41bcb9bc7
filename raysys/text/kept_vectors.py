"""Vectors of texts that are kept in a folder, so that no text is encoded twice by one model."""

from __future__ import annotations

import fcntl
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from raysys.text.encoder import Encoder

Half = npt.NDArray[np.float16]

TEXTS_A_FILE: Final = 4096
"""Of texts that are new: so many are lost at most when a run is killed."""

_FILES: Final = 8  # with which they become one
_UNUSED: Final = 4  # times as many as are asked for: other settings may ask for them again


class KeptVectors:
    """What one model makes of texts, of each once; processes that ask at once wait for each other.

    Args:
        folder: of what is kept, of this model, so many tokens and one use alone, as what that use
            asks for no more is forgotten; made if it is missing.
        open_encoder: opens the model, which takes seconds: called when a text is new.
    """

    def __init__(self, folder: Path, open_encoder: Callable[[], Encoder]) -> None:
        self._folder, self._open = folder, open_encoder
        self._encoder: Encoder | None = None

    def of(
        self, texts: Sequence[str], advance: Callable[[int], object] = lambda n: None
    ) -> tuple[Half, int]:
        """Unit vectors float16[n, d] of n distinct texts, and how many of them were new.

        Args:
            texts: distinct; an empty one has zeros.
            advance: told how many more are there.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / ".lock").open("w") as lock:  # trials share what a workspace keeps
            fcntl.flock(lock, fcntl.LOCK_EX)
            return self._of(texts, advance)

    def _of(self, texts: Sequence[str], advance: Callable[[int], object]) -> tuple[Half, int]:
        place = {text: row for row, text in enumerate(texts)}
        found: Half | None = None
        known = np.zeros(len(texts), dtype=np.bool_)
        files, unused = sorted(self._folder.glob("*.parquet")), 0
        for path in files:
            held, vectors = _read(path)
            rows = np.array([place.get(text, -1) for text in held], dtype=np.int64)
            found = np.zeros((len(texts), vectors.shape[1]), np.float16) if found is None else found
            found[rows[rows >= 0]] = vectors[rows >= 0]
            known[rows[rows >= 0]] = True
            unused += int((rows < 0).sum())
        advance(int(known.sum()))
        fresh = np.flatnonzero(~known)
        for start in range(0, len(fresh), TEXTS_A_FILE):
            rows = fresh[start : start + TEXTS_A_FILE]
            vectors = self.encode([texts[row] for row in rows])
            found = np.zeros((len(texts), vectors.shape[1]), np.float16) if found is None else found
            found[rows] = vectors
            self._write([texts[row] for row in rows], vectors)
            advance(len(rows))
        if found is None:  # no text at all: only the model knows how wide it is
            found = self.encode([])
            return found, 0
        there = set(self._folder.glob("*.parquet"))
        if unused > _UNUSED * len(texts) or len(there) > _FILES:
            self._write(list(texts), found)
            for path in there:
                path.unlink(missing_ok=True)
        return found, len(fresh)

    def encode(self, texts: Sequence[str]) -> Half:
        """The same of any texts, by the model and without a look at what is kept."""
        if self._encoder is None:
            self._encoder = self._open()
        return self._encoder.encode(texts).astype(np.float16)

    def _write(self, texts: list[str], vectors: Half) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        wide = pa.binary(2 * vectors.shape[1])
        rows = [row.tobytes() for row in vectors]
        table = pa.table({"text": pa.array(texts, pa.string()), "vector": pa.array(rows, wide)})
        path = self._folder / f"{uuid.uuid4().hex}.parquet"
        fresh = path.with_suffix(".tmp")
        pq.write_table(table, fresh, compression="zstd")
        fresh.replace(path)


def _read(path: Path) -> tuple[list[Any], Half]:
    """Texts of one file and their vectors."""
    table = pq.read_table(path).combine_chunks()
    column = table["vector"]
    flat = b"".join(column.to_pylist())
    width = column.type.byte_width // 2
    return table["text"].to_pylist(), np.frombuffer(flat, np.float16).reshape(len(table), width)

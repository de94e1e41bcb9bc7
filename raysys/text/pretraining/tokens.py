"""Texts as token numbers in files that are mapped, not read: as many as the disk holds.

Tokens lie one text after the other without the marks of beginning and end, so that one store
serves every objective; a `Frame` puts the marks around what a batch takes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raysys.text.pretraining.words import segmenter, word_numbers

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Row = tuple[Sequence[int], Sequence[int]]
"""Token ids and token types of one text or pair."""

_COLUMNS = {"ids": np.int32, "words": np.int32, "ends": np.int64, "texts": np.int64,
            "characters": np.int32}  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """The marks that a tokenizer puts around texts.

    Attributes:
        begin, between, end: token ids before the first text, between two, after the last.
        typed: whether the model tells the texts of a pair apart by token types.
        pad: what fills a batch up.
        special: ids that stand for no text.
    """

    begin: tuple[int, ...]
    between: tuple[int, ...]
    end: tuple[int, ...]
    typed: bool
    pad: int
    special: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any, model: Any) -> Frame:
        """As the tokenizer frames a pair of words; typed if the model has types to tell by."""
        single = tokenizer("a", return_special_tokens_mask=True)
        begin, end = _marks(single["input_ids"], single["special_tokens_mask"])[::2]
        pair = tokenizer("a", "a", return_special_tokens_mask=True)
        _, between, _ = _marks(pair["input_ids"], pair["special_tokens_mask"])
        pad = tokenizer.pad_token_id
        return cls(
            begin=begin,
            between=between or end,  # a tokenizer that was taught no pairs
            end=end,
            typed="token_type_ids" in tokenizer.model_input_names
            and getattr(model.config, "type_vocab_size", 0) > 1,
            pad=0 if pad is None else int(pad),
            special=tuple(sorted(set(tokenizer.all_special_ids))),
        )

    def one(self, ids: Int32) -> Row:
        """One text between its marks."""
        row = [*self.begin, *ids.tolist(), *self.end]
        return row, [0] * len(row)

    def two(self, first: Int32, second: Int32) -> Row:
        """A pair between its marks; types 0, then 1 from the second text on."""
        head = [*self.begin, *first.tolist(), *self.between]
        tail = [*second.tolist(), *self.end]
        return head + tail, [0] * len(head) + [1] * len(tail)

    def batch(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Rows side by side: `input_ids`, `attention_mask` and, if typed, `token_type_ids`.

        A row of no token (a GPT has no marks to put around what it cannot read) is one `pad`.

        Returns:
            int64[b, longest] each.
        """
        rows = [row if row[0] else ([self.pad], [0]) for row in rows]
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), longest), self.pad, dtype=torch.int64)
        kinds = torch.zeros_like(ids)
        mask = torch.zeros_like(ids)
        for at, (row, types) in enumerate(rows):
            ids[at, : len(row)] = torch.tensor(row)
            kinds[at, : len(row)] = torch.tensor(types)
            mask[at, : len(row)] = 1
        found = {"input_ids": ids, "attention_mask": mask}
        return {**found, "token_type_ids": kinds} if self.typed else found


def _marks(ids: Sequence[int], special: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Special ids before the first word, between two, after the last."""
    plain = [at for at, mark in enumerate(special) if not mark]
    if not plain:
        return (), (), ()
    first, last = plain[0], plain[-1]
    inner = tuple(ids[at] for at in range(first, last) if special[at])
    return tuple(ids[:first]), inner, tuple(ids[last + 1 :])


class Tokens:
    """Tokenised pieces of texts, in files of a folder that all workers see.

    Args:
        folder: as `tokenise` wrote it. Only its path is pickled.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getstate__(self) -> dict[str, Path]:
        return {"folder": self.folder}

    def __len__(self) -> int:
        return len(self.ends)

    @cached_property
    def _counts(self) -> dict[str, int]:
        found: dict[str, int] = json.loads((self.folder / "tokens.json").read_text())
        return found

    def _map(self, name: str) -> npt.NDArray[Any]:
        kind = _COLUMNS[name]
        if not self._counts[name]:
            return np.empty(0, kind)  # an empty file cannot be mapped
        return np.memmap(self.folder / f"{name}.bin", kind, "r")

    @cached_property
    def ids(self) -> Int32:
        """Of all pieces, one after the other: int32[t]."""
        return self._map("ids")

    @cached_property
    def words(self) -> Int32:
        """Number of each token's word within its piece: int32[t]."""
        return self._map("words")

    @cached_property
    def ends(self) -> Int64:
        """Behind the last token of each piece: int64[n]."""
        return self._map("ends")

    @cached_property
    def texts(self) -> Int64:
        """Which text each piece is of, ascending: int64[n]."""
        return self._map("texts")

    @cached_property
    def characters(self) -> Int32:
        """Of each piece; those of a text add up to its length: int32[n]."""
        return self._map("characters")

    @property
    def lengths(self) -> Int64:
        """Tokens of each piece, without marks: int64[n]."""
        return np.diff(self.ends, prepend=0)

    def piece(self, row: int) -> slice:
        """Where a piece lies in `ids` and `words`."""
        return slice(int(self.ends[row - 1]) if row else 0, int(self.ends[row]))


def tokenise(
    texts: Iterable[Sequence[str]],
    tokenizer: Any,
    folder: Path,
    *,
    longest: int,
    pieces: bool = True,
) -> Tokens:
    """Write the tokens of texts into a folder.

    Args:
        texts: in batches.
        tokenizer: fast.
        folder: new or empty.
        longest: tokens of a piece, without marks.
        pieces: a longer text becomes several pieces; False: what is beyond is not read.

    A text without a token has no piece; with `pieces` False it has an empty one, so that piece i
    is text i.
    """
    folder.mkdir(parents=True, exist_ok=True)
    counts = dict.fromkeys(_COLUMNS, 0)
    files = {name: (folder / f"{name}.bin").open("wb") for name in _COLUMNS}
    cut = segmenter()
    done = tokens = 0

    def put(name: str, values: Sequence[int] | npt.NDArray[np.int32]) -> None:
        files[name].write(np.asarray(values, _COLUMNS[name]).tobytes())
        counts[name] += len(values)

    try:
        for batch in texts:
            if not len(batch):
                continue
            found = tokenizer(
                list(batch),
                add_special_tokens=False,
                truncation=True,
                max_length=longest,
                return_overflowing_tokens=pieces,
                return_attention_mask=False,
            )
            of_text = found["overflow_to_sample_mapping"] if pieces else range(len(batch))
            encodings = found.encodings
            for at, (which, encoding) in enumerate(zip(of_text, encodings, strict=True)):
                if not encoding.ids and pieces:
                    continue
                text = batch[which]
                more = at + 1 < len(encodings) and pieces and of_text[at + 1] == which
                first = at == 0 or of_text[at - 1] != which
                begin = 0 if first else encoding.offsets[0][0]
                end = encodings[at + 1].offsets[0][0] if more else len(text)
                tokens += len(encoding.ids)
                put("ids", encoding.ids)
                put("words", word_numbers(text, encoding.word_ids, encoding.offsets, cut))
                put("ends", [tokens])
                put("texts", [done + which])
                put("characters", [end - begin])
            done += len(batch)
    finally:
        for file in files.values():
            file.close()
    (folder / "tokens.json").write_text(json.dumps(counts))
    return Tokens(folder)

"""The network of a tagger: a transformer, what units look like beside it, a head, a CRF.

Either of the two readers may be missing: without a transformer it is a small convolutional tagger
over letters and known values, which learns in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from raysys.text.crf import Chain
from raysys.text.encoder import exact
from raysys.text.surface import BUCKETS
from raysys.text.tags import Tags

Pooling = Literal["first", "mean"]


@dataclass(frozen=True)
class Shape:
    """What makes two networks alike.

    Attributes:
        tags: whose potentials come out.
        crf: learn which tag follows which; else each unit stands alone, and only impossible
            sequences are excluded.
        surface: width of the vectors of what units look like; 0: the transformer alone.
        dropout: before the head, and of the surface's vectors.
    """

    tags: Tags
    crf: bool
    surface: int
    dropout: float


class EntityNetwork(nn.Module):
    """Batches of units to the potentials of their tags.

    Args:
        shape: see `Shape`.
        backbone: a Hugging Face encoder, or None.
    """

    def __init__(self, shape: Shape, backbone: Any | None) -> None:
        super().__init__()
        self.crf = shape.crf
        self.has_transformer = backbone is not None
        self.backbone = backbone if backbone is not None else nn.Identity()
        width = 0 if backbone is None else int(backbone.config.hidden_size)
        self.surface: nn.Embedding | None = None
        if shape.surface:
            self.surface = nn.Embedding(BUCKETS, shape.surface, padding_idx=0)
            nn.init.normal_(self.surface.weight, std=0.1)
            with torch.no_grad():
                self.surface.weight[0] = 0.0
            self.near = nn.Conv1d(shape.surface, shape.surface, 3, padding=1)
            self.far = nn.Conv1d(shape.surface, shape.surface, 3, padding=1)
            self.whole = nn.Linear(shape.surface, shape.surface)
            width += 2 * shape.surface
        self.dropout = nn.Dropout(shape.dropout)
        k = len(shape.tags)
        self.head = nn.Linear(width, k)
        self.register_buffer("allowed", torch.from_numpy(shape.tags.allowed()), persistent=False)
        self.transitions = nn.Parameter(torch.zeros(k + 1, k + 1), requires_grad=shape.crf)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Emissions and transitions of a batch made by `collate`; see `chain_of`."""
        lengths = batch["lengths"]
        _, u = batch["features"].shape[:2]
        inside = torch.arange(u, device=lengths.device)[None, :] < lengths[:, None]
        parts: list[Tensor] = []
        if self.has_transformer:
            hidden = self.backbone(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            )[0].float()
            parts.append(_pool(hidden, batch["unit_of_token"], u))
        if self.surface is not None:
            parts.extend(self._surface(batch["features"], inside))
        emissions = exact(self.head, self.dropout(torch.cat(parts, 2)))
        transitions = self.transitions.masked_fill(~self.allowed, -torch.inf)  # type: ignore[operator]
        return emissions, transitions

    def _surface(self, features: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """What each unit, its neighbours and the whole text look like: twice float32[b, u, d]."""
        assert self.surface is not None
        alone = self.dropout(self.surface(features).sum(2))
        mask = inside[:, :, None].to(alone.dtype)
        alone = alone * mask
        near = torch.relu(self.near(alone.transpose(1, 2))).transpose(1, 2) * mask
        whole = self.whole((alone.tanh()).sum(1) / mask.sum(1))[:, None, :]
        far = torch.relu(self.far(self.dropout(near).transpose(1, 2)).transpose(1, 2) + whole)
        return alone + near, far


def _pool(hidden: Tensor, unit: Tensor, units: int) -> Tensor:
    """Mean of the vectors of each unit's tokens: float32[b, units, d]; zeros where it has none.

    Args:
        hidden: float32[b, t, d].
        unit: int64[b, t], the unit of each token; -1: none.
        units: of the longest text.
    """
    slot = torch.where(unit < 0, units, unit)
    sums = hidden.new_zeros(hidden.shape[0], units + 1, hidden.shape[2])
    sums = sums.scatter_add(1, slot[:, :, None].expand_as(hidden), hidden)
    ones = hidden.new_zeros(hidden.shape[0], units + 1)
    counts = ones.scatter_add(1, slot, torch.ones_like(slot, dtype=hidden.dtype))
    return (sums / counts.clamp(min=1.0)[:, :, None])[:, :units]


def chain_of(network: nn.Module, batch: dict[str, Tensor]) -> Chain:
    """The potentials of a batch, by an `EntityNetwork` or what wraps one."""
    emissions, transitions = network(batch)
    return Chain(emissions, transitions, batch["lengths"])


@dataclass(frozen=True)
class Window:
    """What the network reads at once: a text, or a part of a long one.

    Attributes:
        text: number of the text.
        first: number of its first unit within the text.
        features: of every unit, see `surface.features`.
        ids: token ids, with the marks of beginning and end; none without a transformer.
        unit_of_token: the unit (from 0 within the window) of each token; -1: none.
    """

    text: int
    first: int
    features: list[list[int]]
    ids: list[int]
    unit_of_token: list[int]

    def __len__(self) -> int:
        return len(self.features)


def windows_of(units: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Where windows begin and end: they cover all units, neighbours share `overlap` of them."""
    if units <= size:
        return [(0, units)] if units else []
    starts = list(range(0, units - overlap, size - overlap))
    return [(start, min(start + size, units)) for start in starts]


def tokenize(
    tokenizer: Any, words: Sequence[Sequence[str]], pooling: Pooling, most: int
) -> list[tuple[list[int], list[int]]]:
    """Token ids of units, and the unit of every token, by the offsets of a fast tokenizer.

    The units are read with blanks between them, so that any tokenizer keeps them apart.

    Args:
        tokenizer: a fast one.
        words: of each window, its units.
        pooling: with `first`, only the first token of a unit counts as its own.
        most: tokens a window; units behind them have none.
    """
    texts = [" ".join(each) for each in words]
    read = tokenizer(texts, return_offsets_mapping=True, truncation=True, max_length=most)
    found = []
    for at, text in enumerate(texts):
        starts = np.cumsum([0, *(len(word) + 1 for word in words[at])])
        units: list[int] = []
        before = -1
        for start, end in read["offset_mapping"][at]:
            while start < end and text[start].isspace():
                start += 1
            unit = -1 if start >= end else int(np.searchsorted(starts, start, "right")) - 1
            units.append(-1 if pooling == "first" and unit == before else unit)
            before = unit if unit >= 0 else before
        found.append((list(read["input_ids"][at]), units))
    return found


def collate(windows: Sequence[Window], pad: int) -> dict[str, Tensor]:
    """Windows side by side, padded, on the CPU, as `EntityNetwork` reads them."""
    lengths = [len(window) for window in windows]
    most = max(len(row) for window in windows for row in window.features)
    features = np.zeros((len(windows), max(lengths), most), dtype=np.int64)
    for at, window in enumerate(windows):
        for place, row in enumerate(window.features):
            features[at, place, : len(row)] = row
    batch = {"features": torch.from_numpy(features), "lengths": torch.tensor(lengths)}
    if windows[0].ids:
        tokens = max(len(window.ids) for window in windows)
        shape = (len(windows), tokens)
        ids, mask = np.full(shape, pad, np.int64), np.zeros(shape, np.int64)
        unit = np.full(shape, -1, np.int64)
        for at, window in enumerate(windows):
            n = len(window.ids)
            ids[at, :n], mask[at, :n], unit[at, :n] = window.ids, 1, window.unit_of_token
        batch |= {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "unit_of_token": torch.from_numpy(unit),
        }
    return batch

"""A small transformer over items: vectors of items, and where a sequence of them points to.

SASRec (Kang and McAuley, ICDM 2018) when it looks back only, BERT4Rec (Sun et al., CIKM 2019) when
it looks both ways. Places enter as learned vectors and as learned biases by distance (Shaw et al.,
2018): the distance from the end is what counts in sessions, and one causal pass then serves every
prefix. With `cosine` both sides have unit length, so that frequent items do not win by their norm
(NISER: Gupta et al., 2019; CORE: Hou et al., SIGIR 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from raysys.learners.sequence_protocol import ItemFacts, Sequences

GAPS = 24  # buckets of the logarithm of seconds; 0: no gap is known


@dataclass(frozen=True)
class Shape:
    """What a network is built from; see `SequenceTransformerSettings` for what is not said here.

    Attributes:
        n_items: items; number n_items is the mask.
        width, layers, heads, max_length, dropout, item_dropout, cosine: as in the settings.
        both_ways: it looks at what comes later, too.
        n_attributes: distinct attributes; 0: none are read.
        text_width: of the items' text vectors; 0: none are read.
        time_gaps: seconds since the item before are read.
        repeats: what was seen already gets a logit of its own, by how long ago and by what is
            pointed to: shoppers come back to some things and never buy others twice.
    """

    n_items: int
    width: int
    layers: int
    heads: int
    max_length: int
    dropout: float
    item_dropout: float
    cosine: bool
    both_ways: bool
    n_attributes: int = 0
    text_width: int = 0
    time_gaps: bool = False
    repeats: bool = True


@dataclass(frozen=True)
class Padded:
    """A batch of sequences of at most `max_length`, filled up at the end.

    Attributes:
        items: int64[b, l], 0 where it is filled.
        there: bool[b, l].
        gaps: int64[b, l], buckets of time gaps.
    """

    items: torch.Tensor
    there: torch.Tensor
    gaps: torch.Tensor | None


def padded(sequences: Sequences, *, time_gaps: bool = False) -> Padded:
    """Sequences side by side; an empty one stays one unreal item long."""
    longest = max(1, int(sequences.sizes.max(initial=1)))
    there = np.arange(longest)[None, :] < sequences.sizes[:, None]
    items = np.zeros(there.shape, dtype=np.int64)
    items[there] = sequences.items
    gaps = None
    if time_gaps:
        gaps = np.zeros(there.shape, dtype=np.int64)
        if sequences.times is not None and len(sequences.times):
            passed = np.diff(sequences.times, prepend=sequences.times[0]).clip(0)
            bucket = 1 + np.minimum(np.log2(1 + passed), GAPS - 2).astype(np.int64)
            starts = sequences.offsets[:-1][sequences.sizes > 0]
            bucket[starts] = 0
            gaps[there] = bucket
    return Padded(
        torch.from_numpy(items),
        torch.from_numpy(there),
        None if gaps is None else torch.from_numpy(gaps),
    )


class Layer(nn.Module):
    """Attention with a bias by distance, then a feed-forward net; norms come first."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        d = shape.width
        self.heads = shape.heads
        self.dropout = shape.dropout
        self.before = nn.LayerNorm(d)
        self.between = nn.LayerNorm(d)
        self.looks = nn.Linear(d, 3 * d)
        self.joins = nn.Linear(d, d)
        self.widens = nn.Linear(d, 2 * d)
        self.narrows = nn.Linear(2 * d, d)
        for last in (self.joins, self.narrows):  # at first a layer changes little
            nn.init.normal_(last.weight, std=0.02)
            nn.init.zeros_(last.bias)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """x: float32[b, l, d]; bias: float32[b or 1, heads, l, l], -inf where none may look."""
        b, n, d = x.shape
        parts = self.looks(self.before(x)).view(b, n, 3, self.heads, d // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        drop = self.dropout if self.training else 0.0
        weights = q @ k.transpose(2, 3) * (d // self.heads) ** -0.5 + bias
        weights = nn.functional.dropout(weights.softmax(-1), drop)
        seen = (weights @ v).transpose(1, 2).reshape(b, n, d)
        x = x + nn.functional.dropout(self.joins(seen), drop)
        inner = nn.functional.dropout(nn.functional.gelu(self.widens(self.between(x))), drop)
        return x + nn.functional.dropout(self.narrows(inner), drop)


class Encoder(nn.Module):
    """Vectors of items and of sequences, in one space.

    Args:
        shape: what it is built from.
        facts: of the items; attributes and text vectors are read if `shape` says so.
    """

    attribute: torch.Tensor
    attribute_offsets: torch.Tensor
    vectors: torch.Tensor

    def __init__(self, shape: Shape, facts: ItemFacts) -> None:
        super().__init__()
        self.shape = shape
        d = shape.width
        self.table = nn.Parameter(torch.randn(shape.n_items + 1, d) * d**-0.5)
        self.places = nn.Parameter(torch.randn(shape.max_length + 1, d) * 0.1 * d**-0.5)
        self.distances = nn.Parameter(torch.zeros(shape.heads, 2 * shape.max_length + 3))
        self.gaps = nn.Embedding(GAPS, d) if shape.time_gaps else None
        if self.gaps is not None:
            nn.init.normal_(self.gaps.weight, std=0.1 * d**-0.5)
        self.of_attributes = None
        if shape.n_attributes:
            self.of_attributes = nn.EmbeddingBag(shape.n_attributes, d, mode="mean")
            nn.init.normal_(self.of_attributes.weight, std=d**-0.5)
            assert facts.attributes is not None and facts.attribute_offsets is not None
            self.register_buffer("attribute", torch.from_numpy(facts.attributes.astype(np.int64)))
            offsets = torch.from_numpy(facts.attribute_offsets.astype(np.int64))
            self.register_buffer("attribute_offsets", offsets)
        self.of_texts = None
        if shape.text_width:
            self.of_texts = nn.Linear(shape.text_width, d, bias=False)
            nn.init.normal_(self.of_texts.weight, std=d**-0.5)
            assert facts.vectors is not None
            self.register_buffer("vectors", torch.from_numpy(facts.vectors))
        self.ago = nn.Parameter(torch.zeros(shape.max_length + 2))
        self.returns = nn.Parameter(torch.zeros(d))
        self.layers = nn.ModuleList([Layer(shape) for _ in range(shape.layers)])
        self.after = nn.LayerNorm(d)

    def item_vectors(self, items: torch.Tensor | None = None) -> torch.Tensor:
        """Vectors of the given items (int64[c]), or of all: float32[c, d]."""
        n = self.shape.n_items
        rows = self.table[:n] if items is None else self.table[items]
        if self.of_attributes is not None:
            rows = rows + self._attributes(items)
        if self.of_texts is not None:
            rows = rows + self.of_texts(self.vectors if items is None else self.vectors[items])
        return nn.functional.normalize(rows, dim=1) if self.shape.cosine else rows

    def mask_vector(self) -> torch.Tensor:
        """What stands where an item is hidden: float32[1, d]."""
        row = self.table[self.shape.n_items :]
        return nn.functional.normalize(row, dim=1) if self.shape.cosine else row

    def _attributes(self, items: torch.Tensor | None) -> torch.Tensor:
        """The mean vector of each item's attributes, zero where it has none."""
        assert self.of_attributes is not None
        if items is None:
            found: torch.Tensor = self.of_attributes(self.attribute, self.attribute_offsets[:-1])
            return found
        start, stop = self.attribute_offsets[items], self.attribute_offsets[items + 1]
        sizes = stop - start
        ends = sizes.cumsum(0)
        rows = torch.arange(int(sizes.sum()), device=items.device)
        rows = rows + (start - (ends - sizes)).repeat_interleave(sizes)
        mean: torch.Tensor = self.of_attributes(self.attribute[rows], ends - sizes)
        return mean

    def forward(self, batch: Padded, rows: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """Where each sequence points to at each place: float32[b, l, d], of unit length if cosine.

        Args:
            batch: the sequences.
            rows: float32[c, d], vectors of items.
            where: int64[b, l], the row of each place; filled places may have any.
        """
        n = batch.items.shape[1]
        drop = self.shape.item_dropout if self.training else 0.0
        x = rows[where] + self.places[:n]
        if self.gaps is not None and batch.gaps is not None:
            x = x + self.gaps(batch.gaps)
        x = nn.functional.dropout(x, drop)
        bias = self._bias(n)
        if self.shape.both_ways:
            bias = bias.masked_fill(~batch.there[:, None, None, :], float("-inf"))
            empty = ~batch.there.any(1)
            bias = bias.masked_fill(empty[:, None, None, None], 0.0)
        for layer in self.layers:
            x = layer(x, bias)
        x = self.after(x)
        return nn.functional.normalize(x, dim=-1) if self.shape.cosine else x

    def again(self, hidden: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        """What is added to the logits of items already seen: float32[m].

        Args:
            hidden: float32[m, d], where the place points to that has seen the item.
            back: int64[m], steps back to it.
        """
        if not self.shape.repeats:
            return hidden.new_zeros(len(back))
        return 10.0 * (self.ago[back.clamp(max=len(self.ago) - 1)] + hidden @ self.returns)

    def _bias(self, n: int) -> torch.Tensor:
        """Of attention: float32[1, heads, n, n]."""
        at = torch.arange(n, device=self.distances.device)
        apart = at[:, None] - at[None, :]
        reach = self.shape.max_length + 1
        bias = self.distances[:, apart.clamp(-reach, reach) + reach][None]
        if not self.shape.both_ways:
            bias = bias.masked_fill((apart < 0)[None, None], float("-inf"))
        return bias

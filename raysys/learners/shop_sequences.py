"""A shop's examples and catalogue as learners of sequences read them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysys.catalogue import Catalogue
from raysys.features.examples import Examples
from raysys.learners.next_item_settings import NextItemSettings
from raysys.learners.protocol import Float32
from raysys.learners.sequence_protocol import ItemFacts, Sequences
from raysys.learners.validation import no_positives
from raysys.text.items import NO_TEXT, item_texts


def shop_sequences(examples: Examples, history: int) -> Sequences:
    """A sequence a user, in catalogue numbers: the history before the first request, then what
    was wanted of the retrieved rows, request by request in time order.

    Raises:
        UserError: nothing retrieved was wanted.
    """
    wanted: dict[int, list[int]] = {}
    for path in examples.files("examples"):
        columns = ["request", "item", "label", "retrieved"]
        table = pq.read_table(path, columns=columns, partitioning=None)
        kept = table.filter(pc.and_(pc.greater(table["label"], 0), table["retrieved"]))
        for request, item in zip(
            kept["request"].to_pylist(), kept["item"].to_pylist(), strict=True
        ):
            wanted.setdefault(request, []).append(item)
    requests = examples.requests().select(["request", "user", "history"]).to_pylist()
    lists: dict[int, list[int]] = {}
    last: dict[int, int] = {}
    for place, row in enumerate(requests):
        user = row["user"] if row["user"] >= 0 else -1 - place  # strangers are not one another
        if user not in lists:
            lists[user] = list(reversed(row["history"][:history]))
        lists[user].extend(sorted(wanted.get(row["request"], ())))
        last[user] = place
    if not any(wanted.get(row["request"]) for row in requests):
        raise no_positives(examples)
    order = sorted(lists, key=lambda user: last[user])  # by their last request in time
    return Sequences.of([lists[user] for user in order], ordered=True)


def item_facts(catalogue: Catalogue, columns: Sequence[str]) -> ItemFacts:
    """Categories of items as attributes; nothing where no column says anything."""
    parts, first = [], 0
    for column in columns:
        codes, labels = catalogue.codes(column)
        if labels:
            parts.append(np.where(codes >= 0, codes + first, -1))
            first += len(labels)
    if not parts:
        return ItemFacts()
    table = np.stack(parts, axis=1)
    sizes = (table >= 0).sum(axis=1)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return ItemFacts(table[table >= 0].astype(np.int32), offsets)


def text_vectors(catalogue: Catalogue, told: NextItemSettings, device: str) -> Float32:
    """Unit vectors of items' texts, float32[n_items, d]; zeros of items without any text.

    Raises:
        UserError: `text_model` cannot be read, or `text` names a column that items do not have.
    """
    from raysys.text.encoder import Encoder

    texts = item_texts(catalogue, told.text)
    encoder = Encoder.open(told.text_model, told.max_tokens, None, where="next_item.text_model")
    encoder.place(device)
    vectors = encoder.encode([text if text != NO_TEXT else "" for text in texts.distinct])
    return vectors[texts.codes]

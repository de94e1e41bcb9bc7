"""Copies of training rows, changed a little: of texts, and of histories.

    augment_table(table, "title", settings, row_id="item_id")    an Arrow table, also in map_batches
    augment_texts(texts, ids, settings)                          only the copies
    augment_histories(history, ids, settings)                    only the copies

Every copy says in `augmented` which method made it; originals have null there. A copy is a function
of the seed, the row's id, the method and the copy's number, of nothing else: neither the order of
rows nor how they are cut into batches matters. Only training rows may be given.
"""

from raysys.text.augment.histories import HistoryCopies, augment_histories
from raysys.text.augment.settings import Augmentation
from raysys.text.augment.table import augment_table, augment_texts

__all__ = ["Augmentation", "HistoryCopies", "augment_histories", "augment_table", "augment_texts"]

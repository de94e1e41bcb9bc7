from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys import schema
from raysys.catalogue import Catalogue
from raysys.errors import UserError
from raysys.text.histories import PAD, history_codes, history_text
from raysys.text.items import MAX_CHARACTERS, item_texts, join_parts
from tests.synthetic import make_catalogue


def catalogue(*rows: dict[str, str]) -> Catalogue:
    return Catalogue(pa.Table.from_pylist(list(rows), schema=schema.ITEMS))


def test_each_distinct_text_comes_once() -> None:
    texts = item_texts(
        catalogue(
            {"item_id": "a", "title": "Oat Milk", "size": "1 l"},
            {"item_id": "b", "title": "oat  milk", "size": "2 l"},
            {"item_id": "c", "title": "Bread"},
        ),
        ("title",),
    )
    assert texts.distinct == ("bread", "oat milk")
    assert texts.codes.tolist() == [1, 1, 0]
    assert texts.counts.tolist() == [1, 2]


def test_columns_are_read_in_the_order_given() -> None:
    shop = catalogue({"item_id": "a", "title": "Oat Milk", "brand": "Acme", "size": "1 l"})
    assert item_texts(shop, ("brand", "title")).distinct == ("acme, oat milk",)
    assert item_texts(shop).distinct == ("oat milk, acme, 1 l",)


def test_an_item_without_text_and_one_with_a_megabyte() -> None:
    shop = catalogue({"item_id": "a"}, {"item_id": "b", "title": "milk " * 200_000})
    for columns in ((), ("title",)):
        texts = item_texts(shop, columns)
        assert texts.distinct[texts.codes[0]] == "unknown item"
        assert len(texts.distinct[texts.codes[1]]) <= MAX_CHARACTERS


def test_an_unknown_column_is_a_users_error() -> None:
    with pytest.raises(UserError, match="no text column 'price'"):
        item_texts(make_catalogue(5), ("price",))


@given(st.lists(st.one_of(st.none(), st.text(max_size=30)), max_size=6))
def test_joined_parts_are_one_tidy_line(parts: list[str | None]) -> None:
    line = join_parts(parts)
    assert line == " ".join(line.split())
    assert len(line) <= MAX_CHARACTERS


def test_histories_are_codes_newest_first() -> None:
    shop = catalogue(
        {"item_id": "a", "title": "milk"},
        {"item_id": "b", "title": "bread"},
        {"item_id": "c", "title": "milk"},
    )
    texts = item_texts(shop, ("title",))
    histories = [np.array(h, np.int32) for h in ([2, 1, 0], [], [-1, 7, 1])]
    codes = history_codes(histories, texts, 2)
    milk, bread = texts.distinct.index("milk"), texts.distinct.index("bread")
    assert codes.tolist() == [[milk, bread], [PAD, PAD], [bread, PAD]]
    assert history_text(histories[0], texts, 3) == "milk; bread"
    assert history_text(histories[1], texts, 3) == ""

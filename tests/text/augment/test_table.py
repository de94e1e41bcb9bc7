"""Tables with their copies: labelled, weighed, the same however they are cut and wherever run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.errors import UserError
from raysys.text.augment import Augmentation, augment_table, augment_texts
from raysys.text.augment.table import counts

ALL = Augmentation(
    methods=(
        {"kind": "synonym_replacement", "probability": 0.8}, {"kind": "spelling_noise"},
        {"kind": "word_dropout"}, {"kind": "word_swap"}, {"kind": "crop"},
    ),
    copies=2,
    seed=5,
)  # fmt: skip
TITLES = [
    "Comfortable leather sofa, 3 seats", "Red lamp", "手机壳iPhone很好", None, "", "refrigerator",
    "Garden hose 12-Gauge 50 ft", "a",
]  # fmt: skip


def shop(**more: list[Any]) -> pa.Table:
    ids = [f"i{at}" for at in range(len(TITLES))]
    return pa.table({"item_id": ids, "title": TITLES, "price": list(range(len(TITLES))), **more})


def test_originals_stay_and_copies_follow_them() -> None:
    table = shop()
    found = augment_table(table, "title", ALL, row_id="item_id")
    frame = pl.DataFrame(found)
    originals = frame.filter(pl.col("augmented").is_null())
    assert originals.select("item_id", "title", "price").equals(pl.DataFrame(table))
    assert frame["price"].is_sorted()
    copies = frame.filter(pl.col("augmented").is_not_null())
    assert not copies.join(originals, on=["item_id", "title"], how="semi").height
    assert copies.select("item_id", "title").is_duplicated().sum() == 0
    made = counts(found["augmented"])
    assert set(made) == {"synonym_replacement", "spelling_noise", "word_dropout", "word_swap"}
    assert sum(made.values()) == copies.height > 10
    assert set(copies["item_id"]) <= {"i0", "i1", "i2", "i5", "i6"}  # nothing of null, "" and "a"
    assert found.schema.field("title") == table.schema.field("title")


def test_an_example_and_its_copies_weigh_what_it_weighed() -> None:
    table = shop(weight=[float(at + 1) for at in range(len(TITLES))])
    shared = pl.DataFrame(augment_table(table, "title", ALL, row_id="item_id"))
    sums = shared.group_by("price").agg(pl.col("weight").sum()).sort("price")["weight"]
    np.testing.assert_allclose(sums, np.arange(1, 9), rtol=1e-6)
    full = ALL.model_copy(update={"weights": "full"})
    whole = pl.DataFrame(augment_table(table, "title", full, row_id="item_id"))
    assert (whole["weight"] == whole["price"] + 1).all()
    assert whole.drop("weight").equals(shared.drop("weight"))


def test_only_training_rows_have_copies() -> None:
    split = ["train", "validation", "train", "train", "report", "report", None, "train"]
    found = pl.DataFrame(augment_table(shop(split=split), "title", ALL, row_id="item_id"))
    copies = found.filter(pl.col("augmented").is_not_null())
    assert set(copies["split"]) == {"train"} and set(copies["item_id"]) == {"i0", "i2"}
    others = found.filter(pl.col("split").fill_null("") != "train")
    assert others.height == 4 and (others["weight"] == 1).all()


def test_off_changes_nothing() -> None:
    table = shop()
    found = augment_table(table, "title", Augmentation())
    assert found.drop_columns(["augmented", "weight"]).equals(table)
    assert found["augmented"].null_count == len(found)


@pytest.mark.long
@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, len(TITLES) - 1), max_size=12), st.data())
def test_neither_order_nor_chunks_matter(rows: list[int], data: st.DataObject) -> None:
    table = shop().take(pa.array(rows, pa.int64()))
    table = table.set_column(0, "item_id", pa.array([f"r{at}" for at in range(len(rows))]))
    whole = pl.DataFrame(augment_table(table, "title", ALL, row_id="item_id"))
    order = data.draw(st.permutations(range(len(rows))))
    cut = data.draw(st.integers(0, len(rows)))
    parts = [
        augment_table(table.take(pa.array(some, pa.int64())), "title", ALL, row_id="item_id")
        for some in (order[:cut], order[cut:])
    ]
    found = pl.DataFrame(pa.concat_tables(parts))
    columns = ["item_id", "augmented", "title"]
    assert found.sort(columns).equals(whole.sort(columns))


SCRIPT = """
import json, sys
import polars as pl
from raysys.text.augment import Augmentation, augment_texts
texts = pl.Series(json.loads(sys.argv[1]))
settings = Augmentation.model_validate_json(sys.argv[2])
print(json.dumps(augment_texts(texts, texts, settings).rows()))
"""


@pytest.mark.long
def test_every_process_makes_the_same_copies() -> None:
    """Whatever its hash seed and number of threads."""
    here = augment_texts(pl.Series(TITLES), pl.Series(TITLES), ALL).rows()
    command = [sys.executable, "-c", SCRIPT, json.dumps(TITLES), ALL.model_dump_json()]
    env = {**os.environ, "PYTHONHASHSEED": "77", "POLARS_MAX_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert [tuple(row) for row in json.loads(done.stdout)] == here


def test_rows_without_an_id_go_by_their_text() -> None:
    found = augment_table(pa.table({"title": ["red sofa", "blue rug", "red sofa"]}), "title", ALL)
    rows = pl.DataFrame(found).select("augmented", "title").rows()
    third = len(rows) - [at for at, row in enumerate(rows) if row[0] is None][2]
    assert rows[:third] == rows[-third:]


@pytest.mark.parametrize(
    ("column", "row_id", "says"),
    [
        ("titel", None, "no column 'titel'"),
        ("title", "id", "no column 'id'"),
        ("price", None, "not text"),
        ("item_id", None, "is an id"),
        ("augmented", None, "already"),
    ],
)
def test_mistakes(column: str, row_id: str | None, says: str) -> None:
    table = shop() if column != "augmented" else augment_table(shop(), "title", ALL)
    with pytest.raises(UserError, match=says):
        augment_table(table, column, ALL, row_id=row_id)


@pytest.fixture
def ray() -> Iterator[None]:
    from raysys.cluster import ray_session

    with ray_session():
        yield


@pytest.mark.slow
def test_on_ray_data_it_is_the_same(ray: None) -> None:
    import ray.data

    table = pa.concat_tables([shop()] * 40)
    table = table.set_column(0, "item_id", pa.array([f"r{at}" for at in range(len(table))]))
    options = {"column": "title", "settings": ALL, "row_id": "item_id"}
    data = ray.data.from_arrow(table).repartition(7).map_batches(
        augment_table, batch_format="pyarrow", batch_size=17, fn_kwargs=options
    )  # fmt: skip
    found = pl.concat([pl.DataFrame(ray.get(ref)) for ref in data.to_arrow_refs()])
    here = pl.DataFrame(augment_table(table, **options))
    columns = ["item_id", "augmented", "title"]
    assert found.select(here.columns).sort(columns).equals(here.sort(columns))

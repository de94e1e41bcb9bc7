"""New items in a round: found, counted and served by the challenger, without a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys import learners, schema
from raysys.registry import Registry
from raysys.stages import learn
from raysys.storage import Workspace, read_manifest
from tests.serving.shop import DAY
from tests.stages import learning

NEW = "i00010-new"
LITTLE = {"covisitation": False, "learners": {}, "ensemble": None}


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """With an encoder of texts among the champion's learners; a lamp came in, and sold."""
    monkeypatch.setitem(learners.LEARNERS, "hashed_words", "tests.serving.shop:HashedWordsLearner")
    workspace = learning.shop(tmp_path / "shop", with_encoder=True)
    rows = learning.rows_of_the_shop()
    last = rows[-1]["timestamp"]
    sold: list[dict[str, Any]] = [
        {
            **{**rows[-1], "event_id": f"n{at}", "user_id": f"u{at}", "item_id": NEW},
            **{"timestamp": last - 2 * DAY + at, "session_id": f"bn{at}", "order_id": f"on{at}"},
        }
        for at in range(6)
    ]
    learning.write_log(workspace, sorted([*rows, *sold], key=lambda row: row["timestamp"]))
    path = workspace.ingest / "items.parquet"
    there = pq.read_table(path)
    lamp = {"item_id": NEW, "title": "Reading lamp", "category": "Lighting", "price": 12.5}
    fresh = pa.Table.from_pylist([lamp], schema=schema.ITEMS)
    pq.write_table(pa.concat_tables([there.cast(schema.ITEMS), fresh]), path)
    return workspace


@pytest.mark.long
def test_new_items_are_found_counted_and_proposed(shop: Workspace) -> None:
    settings = learning.settings(steps=LITTLE)
    manifest = learn.run(settings, shop)
    assert manifest.figures["outcome"] == "published"
    registry = Registry(shop.registry)
    champion, challenger = registry.load("champion"), registry.load("challenger")
    live, catalogue = challenger.features, challenger.features.catalogue
    assert len(catalogue) == len(champion.features.catalogue) + 1
    number = catalogue.number(NEW)
    assert number is not None and champion.features.catalogue.number(NEW) is None
    items = np.array([number], np.int32)
    sold = live.batch(0, items, live.as_of + 1)
    said = dict(zip(live.names, sold.features[0].tolist(), strict=True))
    assert said["item_purchases_28d"] > 5 and said["price"] == 12.5
    assert number in live.candidates(live.user_number("u3"), live.as_of + 1).items
    found = challenger.search.find("reading lamp", 5)
    assert found.items[0] == number
    encoder = challenger.learners["hashed_words"]
    np.testing.assert_array_equal(
        encoder.item_vectors[number], encoder.encode([catalogue.texts[number]])[0]
    )
    place = catalogue.numbers(champion.features.catalogue.table["item_id"])
    np.testing.assert_array_equal(
        encoder.item_vectors[place], champion.learners["hashed_words"].item_vectors
    )
    scored = {name: model.score(sold) for name, model in challenger.learners.items()}
    assert all(np.isfinite(each).all() for each in scored.values())
    page = (learn.folder_of(settings, shop) / "report.html").read_text()
    assert "new items" in page


@pytest.mark.long
def test_the_next_round_begins_with_them(shop: Workspace) -> None:
    settings = learning.settings(steps=LITTLE)
    learn.run(settings, shop)
    registry = Registry(shop.registry)
    registry.point("champion", registry.resolve("challenger"))
    learn.run(settings, shop, force=True)
    told = read_manifest(learn.folder_of(settings, shop))
    assert told.figures["outcome"] in ("published", "too_few")
    assert NEW in registry.load("challenger").features.catalogue.ids


@pytest.mark.long
def test_they_may_be_left_out(shop: Workspace) -> None:
    settings = learning.settings(steps={**LITTLE, "items": False})
    learn.run(settings, shop)
    challenger = Registry(shop.registry).load("challenger")
    assert challenger.features.catalogue.number(NEW) is None


@pytest.mark.long
def test_without_state_they_come_with_nothing_counted(shop: Workspace) -> None:
    settings = learning.settings(steps={**LITTLE, "state": False})
    learn.run(settings, shop)
    registry = Registry(shop.registry)
    live = registry.load("challenger").features
    number = live.catalogue.number(NEW)
    assert number is not None and live.as_of == registry.load("champion").features.as_of
    batch = live.batch(0, np.array([number], np.int32), live.as_of + 1)
    assert batch.column("item_purchases_28d")[0] == 0

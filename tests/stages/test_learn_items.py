"""New items in a round: found, counted and served by the challenger, without a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys import learners, schema
from raysys.registry import Registry
from raysys.stages import learn
from raysys.storage import Workspace
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
    kept = np.load(registry.path("challenger") / "learners" / "hashed_words" / "vectors.npy")
    assert len(kept) == len(catalogue)  # nobody places it anew when they load
    scored = {name: model.score(sold) for name, model in challenger.learners.items()}
    assert all(np.isfinite(each).all() for each in scored.values())
    page = (learn.folder_of(settings, shop) / "report.html").read_text()
    assert "new items" in page


@pytest.mark.long
def test_the_next_round_begins_with_them(shop: Workspace) -> None:
    """A shop that goes on selling for as long again, the lamp among what it sells."""
    settings = learning.settings(steps=LITTLE)
    learn.run(settings, shop)
    registry = Registry(shop.registry)
    first = registry.resolve("challenger")
    registry.point("champion", first)
    rows = learning.rows_of_the_shop()
    span = rows[-1]["timestamp"] - rows[0]["timestamp"] + DAY
    more = [
        {
            **{**row, "timestamp": row["timestamp"] + span},
            **{name: f"{row[name]}-again" for name in ("event_id", "session_id", "order_id")},
            **({"item_id": NEW} if not at % 40 else {}),
        }
        for at, row in enumerate(rows)
    ]
    items = pq.read_table(shop.ingest / "items.parquet")
    learning.write_log(shop, [*rows, *more])
    pq.write_table(items, shop.ingest / "items.parquet")
    manifest = learn.run(settings, shop)
    assert manifest.figures["outcome"] == "published"
    second = registry.resolve("challenger")
    assert second != first
    before, after = (registry.load(each).features for each in (first, second))
    assert len(after.catalogue) == len(before.catalogue)
    items_of = np.array([after.catalogue.number(NEW)], np.int32)
    sold = [each.batch(0, items_of, each.as_of + 1) for each in (before, after)]
    assert sold[1].column("item_purchases_28d")[0] != sold[0].column("item_purchases_28d")[0] > 0
    told = json.loads((learn.folder_of(settings, shop) / "report.json").read_text())
    assert told["new_items"] == 0


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
    live, champion = (registry.load(name).features for name in ("challenger", "champion"))
    number = live.catalogue.number(NEW)
    assert number is not None and live.as_of == champion.as_of
    assert live.users == champion.users and live.sessions.count == champion.sessions.count
    batch = live.batch(0, np.array([number], np.int32), live.as_of + 1)
    assert batch.column("item_purchases_28d")[0] == 0

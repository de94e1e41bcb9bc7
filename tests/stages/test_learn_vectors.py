"""Vectors of texts in a round: of items that came in, and of queries that are new."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys import schema
from raysys.features.examples import Examples
from raysys.features.live import LiveFeatures
from raysys.features.vectors import similarity_to
from raysys.registry import Registry
from raysys.stages import learn
from raysys.stages.features_settings import FeaturesSettings
from raysys.stages.learn_events import Window, numbered, read_since
from raysys.stages.learn_replay import Neighbourhoods, relive
from raysys.stages.learn_settings import WindowSettings
from raysys.stages.learn_shown import build_shown
from raysys.stages.text_vectors import query_vectors
from raysys.storage import Workspace, read_manifest
from raysys.text.encoder import Encoder
from tests.features.logs import write_events
from tests.serving.shop import DAY, START
from tests.stages import learning
from tests.text.tiny import write_tiny_bert

pytestmark = pytest.mark.long
NEW = "i00010-new"
QUERIES = ("Rye  bread", "rye bread", "lime soda")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Workspace:
    return learning.shop(tmp_path_factory.mktemp("shop"), texts_by=model)


def test_queries_that_the_champion_never_met_are_compared_as_in_a_replica(
    shop: Workspace, tmp_path: Path
) -> None:
    rows = learning.with_impressions(learning.rows_of_the_shop())
    asked: dict[str, str] = {}
    for row in rows:
        if row["event_type"] == "impression":
            row["query"] = QUERIES[int(row["order_id"][1:]) % 3]
            asked[row["request_id"]] = " ".join(row["query"].lower().split())
    cut = START + learning.TRAINED_DAYS * DAY
    write_events(tmp_path / "events", [row for row in rows if row["timestamp"] >= cut])
    champion = Registry(shop.registry).load("champion")
    live = LiveFeatures.load(Registry(shop.registry).path("champion") / "features")
    told = {**read_manifest(shop.features).settings, "examples": {"from": "log"}}
    features = FeaturesSettings.model_validate(told)
    frame = read_since(tmp_path / "events", live.as_of)
    events = numbered(frame, live, features.group_by)
    settings = WindowSettings(gate_days=10, fit_days=15, gap_minutes=0)
    window = Window.cut(settings, live.as_of, int(events.time[-1]), tuned=True)
    (tmp_path / "scratch").mkdir()
    requests = build_shown(frame, events, window, live, features, settings, tmp_path / "scratch")
    names = requests.frame["request_id"].to_list()
    assert requests.frame["text"].to_list() == [asked[name] for name in names]
    assert set(requests.frame["query"]) == {-1}
    queries = query_vectors(champion, requests.frame["text"])
    assert set(queries) == {"rye bread", "lime soda"}
    near = Neighbourhoods(live.covisitation, (live.covisitation,) * 3)
    relive(
        *(live, events, requests, near, tmp_path / "out"), frozen=None, history=24, queries=queries
    )
    examples = Examples(tmp_path / "out" / "after", (2,))
    batch, space = examples.batch(), live.resources.vectors["title"]
    assert batch.n_requests > 5
    for at, row in enumerate(examples.requests().to_pylist()):
        mine = slice(batch.offsets[at], batch.offsets[at + 1])
        assert row["query"] == asked[row["request_id"]]
        vector = queries[row["query"]]["title"]
        expected = similarity_to(space.items, batch.item[mine], vector[None, :])
        np.testing.assert_allclose(batch.column("fits")[mine], expected, rtol=1e-6)
        assert np.ptp(expected) > 0


def test_without_such_features_nothing_is_encoded(shop: Workspace) -> None:
    champion = Registry(shop.registry).load("champion")
    assert query_vectors(champion, pl.Series([None], dtype=pl.String)) == {}


def test_items_that_came_in_get_vectors_of_their_texts(shop: Workspace, model: Path) -> None:
    path = shop.ingest / "items.parquet"
    fresh = [{"item_id": NEW, "title": "Rye toast", "price": 1.0}, {"item_id": NEW + "x"}]
    there = pq.read_table(path).cast(schema.ITEMS)
    pq.write_table(
        pa.concat_tables([there, pa.Table.from_pylist(fresh, schema=schema.ITEMS)]), path
    )
    little = {"covisitation": False, "learners": {}, "ensemble": None}
    assert learn.run(learning.settings(steps=little), shop).figures["outcome"] == "published"
    registry = Registry(shop.registry)
    live = registry.load("challenger").features
    before = registry.load("champion").features
    items, catalogue = live.resources.vectors["title"].items, live.catalogue
    expected = Encoder.open(str(model), 16, None).encode(["rye toast"])[0]
    np.testing.assert_allclose(items[catalogue.number(NEW)], expected, atol=1e-3)
    assert not items[catalogue.number(NEW + "x")].any()  # it has no text
    place = catalogue.numbers(before.catalogue.table["item_id"])
    np.testing.assert_array_equal(items[place], before.resources.vectors["title"].items)
    both = np.array([catalogue.number(NEW), catalogue.number(NEW + "x")], np.int32)
    known = np.isfinite(live.batch(0, both, live.as_of + 1).column("axis"))
    assert registry.load("challenger").query_encoders is not None and known[0]

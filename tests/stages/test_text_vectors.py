"""Vectors that the features stage makes from texts: once each, by id, and with what made them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys import schema
from raysys.errors import UserError
from raysys.features.examples import Examples
from raysys.features.live import LiveFeatures
from raysys.features.resources import encoders_in
from raysys.ingest.spread import InProcess
from raysys.registry.query_encoders import QueryEncoders
from raysys.stages.features import run
from raysys.stages.features_start import planned_features
from raysys.storage import Manifest, Workspace
from raysys.text.encoder import Encoder
from raysys.text.kept_vectors import KeptVectors
from tests.features import every
from tests.features.logs import as_rows, workspace
from tests.features.test_columns import LOGGED, log, settings
from tests.synthetic import CATEGORIES
from tests.text.tiny import write_tiny_bert

pytestmark = pytest.mark.long
TITLES = [
    f"{category} {kind}"
    for category, (_, kinds) in CATEGORIES.items()
    for kind in kinds.split()[:2]
][: every.N_ITEMS]
QUERIES = ["Soft  Drinks", TITLES[1], "item"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("tiny"))


def plan(folder: Path, **more: Any) -> dict[str, Any]:
    """That of the other tests, its vectors made from texts."""
    content = every.PLAN.model_dump(mode="json")
    told = {"model": str(folder), "text": ["title", "brand"], "max_tokens": 16, **more}
    return {**content, "vectors": {"title": told}}


def with_texts(shop: Workspace, *more: dict[str, Any]) -> None:
    """The catalogue in words that the tiny model knows; `i003` has none."""
    rows = every.catalogue().table.to_pylist()
    for number, row in enumerate(rows):
        row |= {"title": TITLES[number] if number != 3 else None, "brand": None}
    table = pa.Table.from_pylist([*rows, *more], schema=schema.ITEMS)
    pq.write_table(table, shop.ingest / "items.parquet")
    Manifest(stage="ingest", inputs={"items": str(len(table))}).write(shop.ingest)


def a_shop(root: Path) -> Workspace:
    rows = as_rows(log(1, 300))
    for row in rows:
        row["query"] = row["query"] and QUERIES[int(row["query"][1:])]
    made = workspace(root, rows)
    with_texts(made)
    return made


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that were encoded, one after the other."""
    seen: list[str] = []
    encode = Encoder.encode

    def told(self: Encoder, texts: Any) -> Any:
        seen.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(Encoder, "encode", told)
    return seen


def made_by(shop: Workspace, model: Path, **more: Any) -> LiveFeatures:
    told = settings(**LOGGED, plan=plan(model, **more))
    run(told, shop, spread=InProcess())
    return LiveFeatures.load(shop.features / "state")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, model: Path) -> tuple[Workspace, LiveFeatures]:
    """A shop that only tests which read it share."""
    shop = a_shop(tmp_path_factory.mktemp("shop"))
    return shop, made_by(shop, model)


def test_items_and_queries_have_the_vectors_of_their_texts(made, model) -> None:
    live = made[1]
    space = live.resources.vectors["title"]
    encoder = Encoder.open(str(model), 16, None)
    assert space.items.dtype == np.float16 and space.queries is not None
    for number, text in enumerate(TITLES):
        expected = np.zeros(32) if number == 3 else encoder.encode([text])[0]
        np.testing.assert_allclose(space.items[number], expected, atol=1e-3)
    assert len(set(map(bytes, space.items))) == every.N_ITEMS  # no two the same
    for number, text in enumerate(live.queries):
        np.testing.assert_allclose(space.queries[number], encoder.encode([text])[0], atol=1e-3)
    items = np.arange(every.N_ITEMS, dtype=np.int32)
    mine = live.batch(0, items, live.as_of + 1, query=live.query_number("soft drinks"))
    assert np.isnan(mine.column("fits")).nonzero()[0].tolist() == [3]
    assert np.ptp(mine.column("fits")[[0, 1, 2, 4]]) > 0.01


def test_history_and_serving_say_the_same(made) -> None:
    shop, live = made
    encoders = QueryEncoders.of(shop.features / "state")
    assert encoders is not None and encoders.names == ("title",)
    checked = 0
    view = Examples(shop.features, (0, 1))
    batch, requests = view.batch(retrieved_only=False), view.requests().to_pylist()
    fits = batch.column("fits")
    for at, row in enumerate(requests):
        mine = slice(batch.offsets[at], batch.offsets[at + 1])
        asked = live.number_of_query(row["query"])
        again = live.batch(-1, batch.item[mine], live.as_of + 1, query=asked).column("fits")
        np.testing.assert_array_equal(fits[mine], again)  # to the last bit
        if row["query"]:
            vector = encoders.encode([row["query"]])[0]
            new = live.batch(
                *(-1, batch.item[mine], live.as_of + 1), query_vectors={"title": vector}
            ).column("fits")
            np.testing.assert_allclose(fits[mine], new, atol=1e-3)  # of float16
            checked += int(np.isfinite(new).sum())
    assert checked > 10


def test_a_new_item_costs_one_encoding(tmp_path, model, counted) -> None:
    shop = a_shop(tmp_path)
    before = made_by(shop, model)
    assert len(counted) == len(set(counted)) == every.N_ITEMS + 2  # one query is an item's title
    counted.clear()
    with_texts(shop, {"item_id": "i001x", "title": "Item cola"})  # moves the numbers of all later
    after = made_by(shop, model)
    assert counted == ["item cola"]
    place = after.catalogue.numbers(before.catalogue.table["item_id"])
    assert (place != np.arange(every.N_ITEMS)).any()
    old, new = (live.resources.vectors["title"].items for live in (before, after))
    np.testing.assert_array_equal(old, new[place])
    assert new[after.catalogue.number("i001x")].any()
    counted.clear()
    made_by(shop, model, text=["title"])  # the same texts by other settings
    assert counted == []


def test_another_model_makes_all_anew(tmp_path, model, counted) -> None:
    shop = a_shop(tmp_path / "shop")
    own = tmp_path / "own"
    shutil.copytree(model, own)
    first = made_by(shop, own).resources.vectors["title"].items
    told = settings(**LOGGED, plan=plan(own))
    before = planned_features(told, shop).fingerprint
    shutil.rmtree(own)
    write_tiny_bert(own, layers=1)  # under the same name
    assert planned_features(told, shop).fingerprint != before
    counted.clear()
    second = made_by(shop, own).resources.vectors["title"].items
    assert len(counted) == every.N_ITEMS + 2
    assert (first != second).any()


def test_the_state_holds_the_model_and_stands_alone(tmp_path, model) -> None:
    own = tmp_path / "own"
    shutil.copytree(model, own)
    (own / "pytorch_model.bin").write_bytes(b"never taken along")
    shop = a_shop(tmp_path / "shop")
    made_by(shop, own)
    shutil.rmtree(own)
    moved = tmp_path / "bundle"
    (shop.features / "state").rename(moved)
    (folder,) = encoders_in(moved / "resources").values()
    assert folder.parent == moved / "resources" and not list(folder.glob("*.bin"))
    live = LiveFeatures.load(moved)
    live.save(again := _fresh(tmp_path / "again"))
    for place in (moved, again):
        encoders, state = QueryEncoders.of(place), LiveFeatures.load(place)
        assert encoders is not None
        vector = encoders.encode([TITLES[0]])[0]
        np.testing.assert_allclose(vector, state.resources.vectors["title"].items[0], atol=1e-3)


def _fresh(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"model": "./nowhere"}, "no model folder"),
        ({"text": ["colour"]}, "no text column 'colour'"),
    ],
)
def test_what_cannot_be_read_ends_the_stage(tmp_path, model, more, expected) -> None:
    with pytest.raises(UserError, match=expected):
        told = settings(**LOGGED, plan=plan(model, **more))
        run(told, a_shop(tmp_path), spread=InProcess())


def test_what_is_kept_becomes_one_file_without_what_is_gone(tmp_path, model, counted) -> None:
    kept = KeptVectors(tmp_path / "kept", lambda: Encoder.open(str(model), 16, None))
    texts = ["milk", "cola", ""]
    vectors, fresh = kept.of(texts)
    assert fresh == 3 and not vectors[2].any() and vectors[0].any()
    for text in ("lime", "bread", "rye", "cake", "soap", "bar", "roll", "hand"):
        texts.append(text)
        assert kept.of(texts)[1] == 1
    assert len(list((tmp_path / "kept").glob("*.parquet"))) == 1
    counted.clear()
    again, fresh = kept.of(texts[::-1])
    assert fresh == 0 and counted == []
    np.testing.assert_array_equal(again[::-1][:3], vectors)
    kept.of(["milk"])
    assert kept.of(["milk", "hand"])[1] == 1  # it had not been asked for


def test_a_run_that_was_killed_goes_on_where_it_was(tmp_path, model, monkeypatch) -> None:
    monkeypatch.setattr("raysys.text.kept_vectors.TEXTS_A_FILE", 2)
    kept = KeptVectors(tmp_path / "kept", lambda: Encoder.open(str(model), 16, None))
    told: list[int] = []

    def killed(n: int) -> None:
        told.append(n)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept.of(TITLES[:7], killed)
    assert kept.of(TITLES[:7])[1] == 3

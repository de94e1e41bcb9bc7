"""Vectors, position bias, vocabularies, sessions: what a plan is given beside events."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from raysys.catalogue import Catalogue
from raysys.config import parse_settings
from raysys.errors import UserError
from raysys.features.keys import KeySpace
from raysys.features.live import LiveFeatures
from raysys.features.plan import FeaturePlan, VectorSpec
from raysys.features.resources import Resources, Vectors, load_resources
from raysys.features.sessions import Sessions
from raysys.features.vectors import similarity_to, similarity_to_last
from raysys.features.vocabulary import Vocabulary
from tests.features import every
from tests.features.every import N_ITEMS, PLAN


def write(folder, **tensors) -> None:
    whole = {"items": np.ones((N_ITEMS, 4), np.float16), "queries": np.ones((3, 4), np.float16)}
    held = {name: t for name, t in (whole | tensors).items() if t is not None}
    save_file(held, folder / "title.safetensors")


def test_vectors_and_position_bias_come_from_files(tmp_path) -> None:
    write(tmp_path)
    (tmp_path / "bias.json").write_text(json.dumps({"examination": [1, 0.5]}))
    plan = PLAN.model_copy(update={"examination": "bias.json"})
    resources = load_resources(plan, tmp_path)
    assert resources.examination.tolist() == [1, 0.5]
    assert resources.vectors["title"].items.dtype == np.float16
    assert load_resources(PLAN, tmp_path).examination.tolist() == PLAN.examination


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"items": None}, "no tensor 'items'"),
        ({"queries": None}, "`queries`: one of items"),
        ({"items": np.ones(4, np.float32)}, r"items: float32\[4\]"),
        ({"items": np.ones((N_ITEMS, 4))}, "float64"),
        ({"items": np.full((N_ITEMS, 4), np.nan, np.float32)}, "not finite"),
        ({"queries": np.ones((3, 5), np.float32)}, "items have 4 dimensions, queries 5"),
    ],
)
def test_vectors_that_are_none_are_refused(tmp_path, tensors, expected) -> None:
    write(tmp_path, **tensors)
    with pytest.raises(UserError, match=expected):
        load_resources(PLAN, tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no file"),
        ("{", "not JSON"),
        ("[]", "no curve"),
        ("[1, 0]", "numbers above 0"),
        ("[1, NaN]", "no curve"),
        ('{"positions": [1]}', "no curve"),
        ('["1"]', "no curve"),
    ],
)
def test_position_bias_that_is_none_is_refused(tmp_path, content, expected) -> None:
    write(tmp_path)
    if content is not None:
        (tmp_path / "bias.json").write_text(content)
    with pytest.raises(UserError, match=expected):
        load_resources(PLAN.model_copy(update={"examination": "bias.json"}), tmp_path)


def test_a_file_that_is_missing_or_something_else_is_named(tmp_path) -> None:
    with pytest.raises(UserError, match=r"no file .*title\.safetensors"):
        load_resources(PLAN, tmp_path)
    (tmp_path / "title.safetensors").write_text("vectors")
    with pytest.raises(UserError, match="is not safetensors"):
        load_resources(PLAN, tmp_path)


def parquet(folder, **columns) -> FeaturePlan:
    """A file that names whose each vector is, and the plan that reads it."""
    whole = {"item_id": ["i002", "i000", "gone", None, None]}
    whole |= {"query": [None, None, None, "B ", "never"]}
    whole |= {"vector": [[1.0, 2.0], [3.0, 4.0], [9.0, 9.0], [5.0, 6.0], [7.0, 8.0]]}
    held = {name: each for name, each in (whole | columns).items() if each is not None}
    pq.write_table(pa.table(held), folder / "title.parquet")
    return PLAN.model_copy(update={"vectors": {"title": VectorSpec(file="title.parquet")}})


def read(plan, folder) -> Vectors:
    told = {"catalogue": every.catalogue(), "queries": ["a", "b"]}
    return load_resources(plan, folder, **told).vectors["title"]


def test_rows_that_are_named_fit_any_catalogue(tmp_path, caplog) -> None:
    caplog.set_level("WARNING", logger="raysys")
    space = read(parquet(tmp_path), tmp_path)
    assert space.items.shape == (N_ITEMS, 2) and space.items.dtype == np.float32
    assert space.items[2].tolist() == [1, 2] and space.items[0].tolist() == [3, 4]
    assert not space.items[[1, *range(3, N_ITEMS)]].any()
    assert "10 of 12 items have none in title.parquet" in caplog.text
    assert space.queries is not None and space.queries.tolist() == [[0, 0], [5, 6]]


def test_half_precision_and_items_alone_are_enough(tmp_path) -> None:
    rows = pa.array([np.array(v, np.float16) for v in ([1, 2], [3, 4])], pa.list_(pa.float16(), 2))
    plan = parquet(tmp_path, item_id=["i001", "i000"], query=None, vector=rows)
    space = read(plan, tmp_path)
    assert space.items.dtype == np.float16 and space.items[1].tolist() == [1, 2]
    assert space.queries is None


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"vector": None}, "has the columns item_id, query"),
        ({"item_id": None, "query": None}, "has the columns vector"),
        ({"item_id": ["i1", "i1", "x", None, None]}, "two vectors of the item 'i1'"),
        ({"query": [None, None, None, "a", "A"]}, "two vectors of the query 'a'"),
        ({"query": [None, "b", None, "a", None]}, "row 1 names an item and a query"),
        ({"item_id": [1, 2, 3, None, None]}, "item_id is int64"),
        ({"vector": [1.0, 2.0, 3.0, 4.0, 5.0]}, "vector is double"),
        ({"vector": [[1.0], [1.0, 2.0], [1.0], [1.0], [1.0]]}, "several lengths, or of none: 1, 2"),
        ({"vector": [[1.0], None, [1.0], [1.0], [1.0]]}, "several lengths, or of none: 1, none"),
        ({"vector": [[float("inf")], [1.0], [1.0], [1.0], [1.0]]}, "not finite"),
        ({"vector": [[None], [1.0], [1.0], [1.0], [1.0]]}, "some numbers are null"),
    ],
)
def test_named_rows_that_are_none_are_refused(tmp_path, columns, expected) -> None:
    with pytest.raises(UserError, match=expected):
        read(parquet(tmp_path, **columns), tmp_path)


def test_a_file_of_named_rows_that_is_something_else_is_named(tmp_path) -> None:
    plan = parquet(tmp_path)
    (tmp_path / "title.parquet").write_text("vectors")
    with pytest.raises(UserError, match="is not Parquet"):
        read(plan, tmp_path)
    (tmp_path / "title.parquet").unlink()
    with pytest.raises(UserError, match="no file"):
        read(plan, tmp_path)


def test_the_forms_of_vectors_do_not_mix() -> None:
    content = PLAN.model_dump(mode="json")
    for given, expected in (
        ({"file": "a.parquet", "queries": "queries"}, "a Parquet file has none"),
        ({"file": "a.safetensors", "model": "a"}, "unknown key .allowed: file, items, queries"),
        ({"model": "a", "queries": "q"}, "unknown key .allowed: max_tokens, model, text"),
        ({}, "file: required"),
    ):
        with pytest.raises(UserError, match=expected):
            parse_settings(FeaturePlan, {**content, "vectors": {"title": given}}, where="plan")


def built(**changes) -> LiveFeatures:
    plan = PLAN.model_copy(update=changes.pop("plan", {}))
    given = {"queries": ["a", "b", "c"], "resources": every.resources()} | changes
    return LiveFeatures(plan, every.catalogue(), ["u0"], ["s0"], **given)


def test_resources_must_fit_the_plan_and_the_catalogue() -> None:
    assert built()
    with pytest.raises(UserError, match="vectors 'title' were not given"):
        built(resources=Resources())
    with pytest.raises(UserError, match="3 vectors of queries, but there are 2 queries"):
        built(queries=["a", "b"])
    few = Resources({"title": Vectors(np.ones((3, 8), np.float32))})
    with pytest.raises(UserError, match="3 vectors of items, but there are 12 items"):
        built(resources=few)
    narrow = Resources({"title": Vectors(np.ones((N_ITEMS, 1), np.float32))})
    with pytest.raises(UserError, match="components are 0 to 0"):
        built(resources=narrow)
    with pytest.raises(UserError, match="the file of position bias was not read"):
        built(plan={"examination": "bias.json"})


def test_similarity_is_the_cosine_however_many_rows_are_asked() -> None:
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(30, 16)).astype(np.float16)
    matrix[7] = 0
    items = rng.integers(0, 30, 20_000).astype(np.int32)  # more than one chunk
    last = rng.integers(-1, 30, (20_000, 4)).astype(np.int32)
    many = similarity_to_last(matrix, items, last)
    wide = matrix.astype(np.float64)
    for row in (*range(50), 8191, 8192, 19_999):
        known = [at for at in last[row] if at >= 0 and at != 7]
        alone = similarity_to_last(matrix, items[row : row + 1], last[row : row + 1])
        np.testing.assert_array_equal(alone[0], many[row])  # to the last bit
        if items[row] == 7 or not known:
            assert np.isnan(many[row])
            continue
        mean, mine = wide[known].mean(0), wide[items[row]]
        cosine = mean @ mine / np.linalg.norm(mean) / np.linalg.norm(mine)
        assert many[row] == pytest.approx(cosine)
    shared = similarity_to_last(matrix, items, last[:1])
    np.testing.assert_array_equal(shared, similarity_to_last(matrix, items, last[[0] * 20_000]))
    other = rng.normal(size=(1, 16)).astype(np.float32)
    close = similarity_to(matrix, items, other)
    np.testing.assert_array_equal(close, similarity_to(matrix, items, other[[0] * 20_000]))
    mine = wide[items[0]]
    expected = mine @ other[0] / np.linalg.norm(mine) / np.linalg.norm(other[0])
    assert close[0] == pytest.approx(expected)


def test_a_query_vector_may_come_with_the_request() -> None:
    state = every.live()
    items = np.arange(N_ITEMS, dtype=np.int32)
    known = state.batch(0, items, 1, query=2).column("fits")
    held = state.resources.vectors["title"].queries
    assert held is not None
    given = state.batch(0, items, 1, query_vectors={"title": held[2]}).column("fits")
    np.testing.assert_array_equal(known, given)
    assert np.isnan(state.batch(0, items, 1).column("fits")).all()


def test_codes_stay_as_they_were_when_the_catalogue_changes(tmp_path) -> None:
    state = every.live()
    before = state.batch(0, np.arange(N_ITEMS, dtype=np.int32), 1)
    assert before.column("brand")[:4].tolist() == [0, 1, 2, 3]  # b3 is rare: the unseen one's
    state.save(tmp_path)
    table = state.catalogue.table.to_pylist()
    table[0] |= {"brand": "a new brand", "department": "a new department"}
    table[1] |= {"brand": None, "department": None}
    changed = Catalogue(pa.Table.from_pylist(table, schema=state.catalogue.table.schema))
    pq.write_table(changed.table, tmp_path / "catalogue.parquet")
    after = LiveFeatures.load(tmp_path).batch(0, np.arange(N_ITEMS, dtype=np.int32), 1)
    assert after.column("brand")[0] == 3  # unseen: a code of its own
    assert np.isnan(after.column("brand")[1])
    assert np.isnan(after.column("department")[:2]).all()
    for name in ("brand", "department"):
        np.testing.assert_array_equal(after.column(name)[2:], before.column(name)[2:])


def test_a_vocabulary_counts_and_sorts() -> None:
    words = Vocabulary.fit(["b", "a", None, "b", "a", "c"], min_count=2)
    assert words.labels == ("a", "b")
    codes, missing = words.encode(["c", "b", None], unseen=2)
    assert codes.tolist() == [2, 1, -1]
    assert missing.tolist() == [False, False, True]


def test_queries_are_known_however_they_are_typed() -> None:
    state = LiveFeatures(every.PLAN.model_copy(update={"vectors": {}, "features": [
        feature for feature in PLAN.features if not hasattr(feature, "vectors")
    ]}), every.catalogue(), ["u0"], queries=["fish", "red shoes"])  # fmt: skip
    assert state.query_number("  Red\tSHOES ") == 1
    assert state.query_number("ﬁsh") == 0
    assert [state.query_number(text) for text in ("blue shoes", "  ", None)] == [-1, -1, -1]


def test_sessions_keep_their_numbers_and_new_ones_get_the_next(tmp_path) -> None:
    state = every.live()
    state.apply(every.as_columns([(0, 1, every.KINDS[1], 5, 1, 1.0, 0, 6, 0, 0)]))
    assert state.sessions.number(0, "new") == -1
    assert state.sessions.open(0, "new") == 7
    assert state.sessions.open(1, "new") == 8  # another user's
    assert state.sessions.open(0, "new") == 7
    state.save(tmp_path)
    loaded = LiveFeatures.load(tmp_path).sessions
    assert loaded.number(1, "new") == 8
    assert loaded.open(2, "later") == 9
    assert loaded.number(0, None) == -1
    few = Sessions(keep=2)
    assert [few.open(0, name) for name in ("a", "b", "c")] == [0, 1, 2]
    assert [few.number(0, name) for name in ("a", "b", "c")] == [-1, 1, 2]


def test_keys_that_do_not_fit_are_refused() -> None:
    space = KeySpace({}, {"user": 10**6, "item": 10**6, "query": 10**6, "store": 5})
    space.check("fine", ["user", "item", "query"])
    with pytest.raises(UserError, match=r"2,147,483,648 \(session\) × 1,000,000 \(item\)"):
        space.check("wide", ["session", "item", "query"])


def test_a_number_beyond_its_column_is_noticed() -> None:
    space = KeySpace({}, {"user": 4, "item": 4, "query": 4, "store": 4})
    rows = every.as_columns([(1, 4, 0, 0, 1, 1.0, 0, 0, 0, 0)])
    with pytest.raises(OverflowError, match="item 4 of 4"):
        space.of(["user", "item"], rows)
    assert space.of(["item", "user"], rows).tolist() == [17]
    assert space.of([], rows).tolist() == [0]


def test_keys_are_one_to_one() -> None:
    rng = np.random.default_rng(0)
    codes = {"category": np.array([0, 1, 2, -1], np.int32)}
    space = KeySpace(codes, {"user": 7, "item": 4, "query": 3, "store": 5})
    rows = every.as_columns(
        [
            (rng.integers(-1, 7), rng.integers(-1, 4), 0, rng.integers(0, 10**9), 1, 1.0,
             rng.integers(-1, 5), rng.integers(-1, 9), rng.integers(-1, 3), 0)
            for _ in range(400)
        ]
    )  # fmt: skip
    for columns in (["user", "category", "hour"], ["session", "weekday"], ["query", "store"]):
        keys = space.of(columns, rows)
        parts = np.stack([space.part(column, rows) for column in columns])
        known = (parts >= 0).all(axis=0)
        np.testing.assert_array_equal(keys >= 0, known)
        n_keys = len(np.unique(keys[known]))
        assert n_keys == len(np.unique(parts[:, known], axis=1).T)

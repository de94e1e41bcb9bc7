"""What the shop tells of users: labels with frozen codes, numbers, and updates in any batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.config import parse_settings
from raysys.errors import UserError
from raysys.features.incoming import Incoming
from raysys.features.live import LiveFeatures
from raysys.features.plan import FeaturePlan
from raysys.features.user_attributes import (
    UserAttributes,
    as_numbers,
    require_attributes,
    texts_of,
)
from raysys.features.user_updates import UserUpdates
from tests.features.every import told_of_users
from tests.synthetic import make_catalogue

TABLES = {
    "user_item": {"keys": ["user", "item"]},
    "item": {"keys": ["item"]},
    "user": {"keys": ["user"]},
}
FEATURES = [
    {"name": "tier", "kind": "user_attribute", "attribute": "tier"},
    {
        **{"name": "often", "kind": "user_attribute", "attribute": "tier"},
        **{"min_count": 2, "unseen": "own"},
    },
    {"name": "age", "kind": "user_attribute", "attribute": "age", "read_as": "number"},
]
PLAN = FeaturePlan.model_validate({"tables": TABLES, "features": FEATURES})
TOLD = {
    "u0": {"tier": "gold", "age": "40"},
    "u1": {"tier": "silver"},
    "u2": {"age": "old", "town": "Ulm"},
    "registered": {"tier": "gold", "age": "7.5"},
}
USERS = ["u0", "u1", "u2", "nobody tells of"]
NAN = float("nan")


def live(plan: FeaturePlan = PLAN) -> LiveFeatures:
    attributes = UserAttributes.fit(plan, texts_of(plan, told_of_users(TOLD)), USERS)
    return LiveFeatures(plan, make_catalogue(3), USERS, attributes=attributes)


def read(state: LiveFeatures, user_id: str) -> list[float]:
    """The three features as a request of the user has them."""
    items = np.arange(3, dtype=np.int32)
    rows = state.batch(state.user_number(user_id), items, 1).features
    np.testing.assert_array_equal(rows, np.repeat(rows[:1], 3, axis=0))
    return rows[0].tolist()


def updates(state: LiveFeatures) -> UserUpdates:
    return UserUpdates(state, state.open_user)


def test_labels_have_codes_and_numbers_are_read() -> None:
    state = live()
    expected = {
        "u0": [0, 0, 40],
        "u1": [1, 1, NAN],  # one silver: too rare for `often`, which gives it the highest code
        "u2": [NAN, NAN, NAN],
        "nobody tells of": [NAN, NAN, NAN],
        "a stranger": [NAN, NAN, NAN],
    }
    for user_id, values in expected.items():
        np.testing.assert_array_equal(read(state, user_id), values)


def test_the_newest_word_counts_whole() -> None:
    state = live()
    assert updates(state).take([{"user_id": "u0", "attributes": {"tier": "silver"}}]) == 1
    np.testing.assert_array_equal(read(state, "u0"), [1, 1, NAN])
    told = {"user_id": "u0", "attributes": {"tier": "platinum", "age": " +3e1 "}}
    updates(state).take([told])
    np.testing.assert_array_equal(read(state, "u0"), [NAN, 1, 30])  # unseen since the plan was made
    assert updates(state).take([told]) == 0
    updates(state).take([{"user_id": "u0"}])
    np.testing.assert_array_equal(read(state, "u0"), [NAN, NAN, NAN])


def test_somebody_new_gets_a_number_only_where_something_matters() -> None:
    state = live()
    many = [{"user_id": f"n{n}", "attributes": {"tier": "gold", "age": str(n)}} for n in range(99)]
    assert updates(state).take([*many, {"user_id": "x", "attributes": {"town": "Ulm"}}]) == 99
    assert state.user_number("x") == -1 and state.n_users == len(USERS) + 99
    for number in (0, 50, 98):
        np.testing.assert_array_equal(read(state, f"n{number}"), [0, 0, number])
    assert not state.met(state.user_number("n5")) and not state.met(-1)


attribute = st.dictionaries(
    st.sampled_from(["tier", "age", "town"]), st.sampled_from(["gold", "silver", "tin", "8", ""])
)
update = st.fixed_dictionaries(
    {"user_id": st.sampled_from([*USERS[:3], "new", "newer"]), "attributes": attribute}
)


@given(st.lists(update, max_size=10), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_neither_batches_nor_repetition_nor_tables_matter(
    told: list[dict[str, Any]], batch: int
) -> None:
    one, two, three = live(), live(), live()
    for each in told:
        updates(one).take([each])
    for _ in range(2):
        for start in range(0, len(told), batch):
            updates(two).take(told[start : start + batch])
    newest = {each["user_id"]: each["attributes"] for each in told}
    rows = [{"user_id": user_id, **each} for user_id, each in sorted(newest.items())]
    names = sorted({name for row in rows for name in row} | {"user_id"})
    columns = {name: pa.array([row.get(name) for row in rows], pa.string()) for name in names}
    updates(three).take_rows(pa.table(columns))
    for user_id in (*USERS, "new", "newer"):
        expected = [read(state, user_id) for state in (one, two, three)]
        np.testing.assert_array_equal(expected[0], expected[1])
        np.testing.assert_array_equal(expected[0], expected[2])
        told_of = {state.attributes_of(user_id) for state in (one, two, three)} - {b""}
        assert len(told_of) <= 1 or np.isnan(expected[0]).all()


def test_what_is_kept_says_the_same(tmp_path: Path) -> None:
    state = live()
    updates(state).take([{"user_id": "new", "attributes": {"tier": "silver", "age": "5"}}])
    state.save(tmp_path)
    again = LiveFeatures.load(tmp_path)
    for user_id in (*USERS, "new"):
        np.testing.assert_array_equal(read(again, user_id), read(state, user_id))
    updates(again).take([{"user_id": "u2", "attributes": {"tier": "gold"}}])
    np.testing.assert_array_equal(read(again, "u2"), [0, 0, NAN])


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("3", 3), ("-0.5", -0.5), ("+4.", 4), (".25", 0.25), (" 1e3 ", 1000), ("1E-2", 0.01)),
        *((None, NAN), ("", NAN), ("1,5", NAN), ("nan", NAN), ("inf", NAN), ("1e999", NAN)),
        *(("0x1f", NAN), ("1_000", NAN), ("--1", NAN), ("3 or 4", NAN), ("٣", NAN)),
    ],
)
def test_texts_as_numbers(text: str | None, number: float) -> None:
    found = as_numbers(pa.chunked_array([pa.array([text], pa.string())]))
    np.testing.assert_array_equal(found, np.float32([number]))
    assert found.dtype == np.float32


def test_an_attribute_that_nobody_has_is_named_with_those_there_are() -> None:
    features = [{"name": "f", "kind": "user_attribute", "attribute": "teir"}]
    plan = FeaturePlan.model_validate({"tables": TABLES, "features": features})
    with pytest.raises(UserError) as found:
        require_attributes(plan, told_of_users(TOLD))
    assert "'teir'" in str(found.value) and "age, tier, town" in str(found.value)
    with pytest.raises(UserError, match="ingest"):
        require_attributes(plan, told_of_users({}))


@pytest.mark.parametrize(
    "more",
    [{"attribute": "user_id"}, {"read_as": "number", "unseen": "own"}, {"attribute": ""}],
)
def test_what_makes_no_sense_is_refused(more: dict[str, Any]) -> None:
    feature = {"name": "f", "kind": "user_attribute", "attribute": "tier", **more}
    with pytest.raises(UserError, match="feature"):
        parse_settings(FeaturePlan, {"tables": TABLES, "features": [feature]}, where="plan")


def test_codes_of_other_labels_are_told_anew() -> None:
    """As off-policy evaluation reads what was recorded under another bundle's labels."""
    here, there = live(), live()
    told = told_of_users({**TOLD, "u9": {"tier": "bronze"}, "u8": {"tier": "bronze"}})
    there.attributes = UserAttributes.fit(PLAN, texts_of(PLAN, told), USERS)
    tier, often, age = there.attributes.features
    said = np.float32([2, 1, 0, NAN])  # silver, gold, bronze, nothing
    expected = {tier.name: [1, 0, NAN, NAN], often.name: [1, 0, 1, NAN]}
    for feature in (tier, often):
        # `often` of the other plan: bronze 0, gold 1; silver is too rare, and has the highest
        found = here.attributes.recoded(feature, said, there.attributes)
        np.testing.assert_array_equal(found, np.float32(expected[feature.name]))
    np.testing.assert_array_equal(here.attributes.recoded(age, said, there.attributes), said)


def test_who_is_told_of_takes_no_number_from_who_comes() -> None:
    state = live()
    incoming = Incoming(state, new_users=2)
    told = [{"user_id": f"n{n}", "attributes": {"tier": "gold"}} for n in range(5)]
    UserUpdates(state, incoming.number_told).take(told)
    assert state.n_users == len(USERS) + 2
    assert [incoming.number(name) >= 0 for name in ("x", "y", "z", "n0", "n4")] == [
        *(True, True, False, True, False)
    ]

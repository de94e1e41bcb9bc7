"""Whatever is sent, no answer is a fault of the server."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

some = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
texts = st.text(max_size=40) | st.sampled_from(["u1", "u2", "i00001", "i00002", "milk", "item"])
plain = texts.map(lambda text: re.sub(r"[\x00-\x1f\x7f]", "", text))
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
columns = st.sampled_from(["category", "brand", "department", "min_price", "max_price", "x"])
fields: dict[str, st.SearchStrategy[Any]] = {
    "user_id": texts | values,
    "session_id": texts | values,
    "query": texts | values,
    "place": st.sampled_from(["home", "item", "cart"]) | values,
    "item_ids": st.lists(texts, max_size=5) | values,
    "item_id": texts | values,
    "filters": st.dictionaries(columns, st.lists(texts, max_size=3) | values, max_size=2) | values,
    "k": st.integers(-2, 60) | values,
    "explain": st.booleans() | values,
    "surprise": values,
}
bodies = st.fixed_dictionaries({}, optional=fields) | values
calls = st.sampled_from(["recommend", "search", "similar", "rank"])


def check(response: Any) -> None:
    assert response.status_code in (200, 400, 404, 405, 413, 422), response.text
    kind = "json" if response.status_code == 200 else "problem+json"
    assert response.headers["content-type"] == f"application/{kind}"
    response.json()


@pytest.mark.long
@some
@given(call=calls, body=bodies)
def test_any_json(client: TestClient, call: str, body: Any) -> None:
    content = json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    check(client.post(f"/v1/{call}", content=content, headers=headers))


@pytest.mark.long
@some
@given(
    call=calls,
    body=st.fixed_dictionaries(
        {
            "user_id": plain.filter(bool),
            "query": plain.filter(lambda text: bool(text.strip())),
            "item_ids": st.lists(plain.filter(bool), min_size=1, max_size=6, unique=True),
        },
        optional={"k": st.integers(1, 50), "explain": st.booleans()},
    ),
)
def test_any_sensible_request(client: TestClient, call: str, body: dict[str, Any]) -> None:
    known = {
        "recommend": {"user_id", "item_ids", "k", "explain"},
        "search": {"user_id", "query", "k", "explain"},
        "similar": {"user_id", "k", "explain"},
        "rank": {"user_id", "query", "item_ids", "explain"},
    }
    sent = {name: value for name, value in body.items() if name in known[call]}
    if call == "similar":
        sent["item_id"] = "i00003"
    response = client.post(f"/v1/{call}", json=sent)
    check(response)
    if call != "rank":
        assert response.status_code == 200
        assert len(response.json()["items"]) <= body.get("k", 10)


@pytest.mark.long
@some
@given(call=calls, content=st.binary(max_size=200))
def test_any_bytes(client: TestClient, call: str, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    check(client.post(f"/v1/{call}", content=content, headers=headers))


@pytest.mark.long
@some
@given(user=st.text(min_size=1, max_size=250))
def test_any_user(client: TestClient, user: str) -> None:
    from urllib.parse import quote

    path = f"/v1/users/{quote(user, safe='')}/profile"
    response = client.get(path)
    if response.status_code != 307:  # a slash in the id leads elsewhere
        assert response.status_code in (200, 404, 422)

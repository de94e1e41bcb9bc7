"""What a replica asks itself before it is ready, of catalogues as they come."""

from __future__ import annotations

import pyarrow as pa

from raysys import schema
from raysys.catalogue import Catalogue
from raysys.serving.api import RankRequest, SearchRequest
from raysys.serving.warming import warming_requests


def test_texts_and_ids_that_no_request_may_hold_are_passed_over() -> None:
    rows = [
        {"item_id": "a\x00", "title": "milk\x1a 2l"},
        {"item_id": "b" * 201, "title": "rye\x7f bread"},
        {"item_id": "c", "title": "green tea"},
    ]
    catalogue = Catalogue(pa.Table.from_pylist(rows, schema=schema.ITEMS))
    rounds = list(warming_requests(["u\x07", "v"], catalogue))
    asked = [each for one in rounds for each in one]
    users = {each.user_id for each in asked}
    assert users == {"v", "a stranger"}
    assert "green tea" in {each.query for each in asked if isinstance(each, SearchRequest)}
    assert {tuple(e.item_ids) for e in asked if isinstance(e, RankRequest)} == {("c",)}

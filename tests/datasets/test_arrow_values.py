"""Values that Parquet has and other formats do not: ids in bytes, long decimals, lists."""

from __future__ import annotations

import json
import uuid
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys.datasets.drafting import draft_items, draft_users
from raysys.datasets.files import find, read
from raysys.datasets.mapping import EventFiles, ItemFiles, UserFiles
from tests.ingest.shop import START, take

ONE = uuid.UUID("4bcaee72-69fd-47bf-9e66-be333c60cad0")
UUIDS = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([ONE.bytes, None], pa.binary(16)))
ODD = {
    "uuid": (UUIDS, str(ONE)),
    "sixteen": (pa.array([ONE.bytes, None], pa.binary(16)), str(ONE)),
    "dictionary": (pa.array([ONE.bytes, None], pa.binary(16)).dictionary_encode(), str(ONE)),
    "four": (pa.array([b"\xff\x00ab", None], pa.binary(4)), "ff006162"),
    "bytes": (pa.array([b"caf\xe9", None]), "caf\ufffd"),
    "view": (pa.array([b"caf\xe9", None], pa.binary_view()), "caf\ufffd"),
    "long": (pa.array([Decimal("1.25"), None], pa.decimal256(50, 2)), "1.25"),
    "lasting": (pa.array([timedelta(seconds=5), None], pa.duration("ms")), "PT5S"),
    "list": (pa.array([[ONE.bytes], None], pa.list_(pa.binary(16))), f'["{ONE}"]'),
    "pair": (pa.array([["a", 'b"é'], None], pa.list_(pa.string(), 2)), '["a", "b\\"é"]'),
    "object": (
        pa.array([{"a": ONE.bytes, "b": [1]}, None], pa.struct({"a": pa.binary(16),
                                                                  "b": pa.list_(pa.int8())})),
        f'{{"a": "{ONE}", "b": [1]}}',
    ),
    "map": (
        pa.array([[("a", b"\xe9")], None], pa.map_(pa.string(), pa.binary())), '{"a": "\ufffd"}'
    ),
}  # fmt: skip


def users(path: Path) -> dict[str, dict[str, str]]:
    files = UserFiles(paths=(str(path),), columns={"user_id": "id"})
    (block,) = read(find(files)[0], files)
    assert not block.faults
    drafted = draft_users(block.rows, files).select("user_id", "attributes")
    return {user: {one["key"]: one["value"] for one in told} for user, told in drafted.rows()}


@pytest.mark.parametrize("name", ODD)
def test_values_without_a_text_of_their_own_become_attributes(tmp_path: Path, name: str) -> None:
    values, text = ODD[name]
    pq.write_table(pa.table({"id": ["u1", "u2"], name: values}), tmp_path / "users.parquet")
    assert users(tmp_path / "users.parquet") == {"u1": {name: text}, "u2": {}}


def test_uuids_are_ids_and_bytes_can_be_put_aside(tmp_path: Path) -> None:
    names = [uuid.UUID(int=n + 1) for n in range(4)]
    ids = pa.array([one.bytes for one in names], pa.binary(16))
    log = {
        "user": ids, "item": ids, "session": ids, "what": ["view", "view", "view", "odd"],
        "time": [START + n for n in range(4)], "loose": pa.array([b"\xff"] * 4),
    }  # fmt: skip
    pq.write_table(pa.table(log), tmp_path / "log.parquet")
    columns = {
        "user_id": "user", "item_id": "item", "session_id": "session", "event_type": "what",
        "timestamp": "time", "query": "loose",
    }  # fmt: skip
    files = EventFiles(
        paths=(str(tmp_path / "log.parquet"),), columns=columns, time={"unit": "seconds"}
    )
    taken = take(tmp_path, files)
    events = taken.events.sort("timestamp")
    for name in ("user_id", "item_id", "session_id"):
        assert events[name].to_list() == [str(one) for one in names[:3]]
    (raw,) = taken.quarantine["raw"]
    assert json.loads(raw)["user"] == str(names[3])


def test_lists_say_what_json_lines_say(tmp_path: Path) -> None:
    rows = pl.DataFrame({
        "id": ["i1", "i2", "i3"], "kind": [["Home", "Kitchen"], None, []],
        "price": [[1.5], None, None],
    })  # fmt: skip
    rows.write_parquet(tmp_path / "items.parquet")
    rows.write_ndjson(tmp_path / "items.jsonl")
    pairs = rows.head(2).with_columns(pl.col("kind").list.to_array(2))
    pairs.write_parquet(tmp_path / "pairs.parquet")
    columns = {"item_id": "id", "category": "kind", "price": "price"}

    def items(name: str) -> pl.DataFrame:
        files = ItemFiles(paths=(str(tmp_path / name),), columns=columns)
        (block,) = read(find(files)[0], files)
        return draft_items(block.rows, columns)

    said = items("items.jsonl")
    assert said["category"].to_list() == ['["Home", "Kitchen"]', None, "[]"]
    assert said["_unparsed"].to_list() == ["price", None, None]
    assert items("items.parquet").equals(said)
    (tmp_path / "slow.jsonl").write_text(
        (tmp_path / "items.jsonl").read_text().replace("Home", r"\u0048ome")
    )
    assert items("slow.jsonl").equals(said)
    assert items("pairs.parquet").equals(said.head(2))

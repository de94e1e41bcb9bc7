"""The page on kinds of features: every YAML in it yields the values beside it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from raysys import schema
from raysys.catalogue import Catalogue
from raysys.config import parse_settings
from raysys.features.live import LiveFeatures
from raysys.features.log import EventColumns
from raysys.features.plan import FeaturePlan
from raysys.features.resources import load_resources
from raysys.features.user_attributes import UserAttributes, texts_of
from raysys.schema import EVENT_TYPES
from raysys.stages.text_vectors import make_vectors
from raysys.storage import Workspace
from tests.features.every import told_of_users
from tests.features.test_every_kind import kinds

PAGE = Path(__file__).parents[2] / "docs" / "feature-kinds.md"
REQUEST = "2026-01-15 09:00"
NEEDED = {
    "item": {"keys": ["item"]},
    "user": {"keys": ["user"]},
    "user_item": {"keys": ["user", "item"]},
}
_EXAMPLE = re.compile(r"^```yaml\n(.*?)^```\n(?:(?!^```yaml).)*?^(\| item \|.*?\n)\n", re.M | re.S)


def tables(text: str) -> list[list[dict[str, str]]]:
    """The Markdown tables of a text, rows by column."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        head, _, *rows = [
            [cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines()
        ]
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def shop() -> tuple[Catalogue, list[dict[str, str]], list[dict[str, str]]]:
    items, events = tables(PAGE.read_text(encoding="utf-8"))[:2]
    rows = [{**item, "item_id": item["item"], "price": float(item["price"])} for item in items]
    columns = {f.name: pa.array([row.get(f.name) for row in rows], f.type) for f in schema.ITEMS}
    return Catalogue(pa.table(columns, schema=schema.ITEMS)), items, events


def milliseconds(times: list[str]) -> np.ndarray:
    return pl.Series(times).str.to_datetime("%Y-%m-%d %H:%M").dt.epoch("ms").to_numpy()


def columns(events: list[dict[str, str]], numbers: dict[str, list[str]]) -> EventColumns:
    def number(name: str) -> np.ndarray:
        known = numbers[name]
        return np.array([known.index(e[name]) if e[name] else -1 for e in events], np.int32)

    def value(name: str) -> np.ndarray:
        return np.array([float(e[name] or "nan") for e in events])

    return EventColumns(
        user=number("user"),
        item=number("item"),
        kind=np.array([EVENT_TYPES.index(e["event"]) for e in events], np.int8),
        time=milliseconds([e["time"] for e in events]),
        quantity=value("quantity"),
        price=value("price"),
        store=np.full(len(events), -1, np.int32),
        order=number("session").astype(np.int64),
        session=number("session"),
        query=number("query"),
        position=np.array([int(e["position"] or 0) for e in events], np.int32),
    )


def computed(fragment: dict[str, Any], folder: Path) -> str:
    """The table of values that belongs beside a part of a plan."""
    catalogue, items, events = shop()
    numbers = {
        "user": ["u1", "u2"],
        "item": list(catalogue.ids),
        "session": ["a", "b", "c", "d"],
        "query": ["green tea", "tea"],
    }
    content = {**fragment, "tables": NEEDED | fragment.get("tables", {})}
    plan = parse_settings(FeaturePlan, content, where=PAGE.name)
    own = [each for each in items if each["vector"]]
    vectors = [[float(x) for x in each["vector"].split(",")] for each in own]
    rows = {
        "item_id": [each["item"] for each in own] + [None, None],
        "query": [None] * len(own) + numbers["query"],
        "vector": [*vectors, [1.0, 0.0], [0.8, 0.6]],
    }
    pq.write_table(pa.table(rows), folder / "title.parquet")
    of_texts = make_vectors(plan, Workspace(folder), folder / "models", catalogue, numbers["query"])
    told = told_of_users({"u1": {"tier": "silver", "household_size": "3"}, "u2": {"tier": "gold"}})
    live = LiveFeatures(
        *(plan, catalogue, numbers["user"]),
        attributes=UserAttributes.fit(plan, texts_of(plan, told), numbers["user"]),
        queries=numbers["query"],
        resources=load_resources(
            plan, folder, made=of_texts, catalogue=catalogue, queries=numbers["query"]
        ),
    )
    log = columns(events, numbers)
    now = int(milliseconds([REQUEST])[0])
    live.apply(log.slice(0, int(np.searchsorted(log.time, now))))
    own = log.slice(int(np.searchsorted(log.time, now)), len(log))  # of the request's own moment
    shown = own.take(np.flatnonzero(own.kind == EVENT_TYPES.index("impression")))
    positions = np.zeros(len(items), np.int32)
    positions[shown.item] = shown.position
    batch = live.batch(
        *(0, np.arange(len(items), dtype=np.int32), now),
        session=numbers["session"].index("d"),
        query=live.query_number("Green  Tea"),
        positions=positions,
    )
    lines = [f"| item | {' | '.join(live.names)} |", "|---" * (1 + len(live.names)) + "|"]
    digits = ".1f" if of_texts else ".4g"
    for row, item in enumerate(items):
        values = ["NaN" if np.isnan(v) else f"{v:{digits}}" for v in batch.features[row]]
        lines.append(f"| {item['item']} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def examples() -> list[tuple[dict[str, Any], str]]:
    text = PAGE.read_text(encoding="utf-8")
    return [(yaml.safe_load(block), table) for block, table in _EXAMPLE.findall(text)]


@pytest.mark.long
@pytest.mark.parametrize(("fragment", "table"), examples())
def test_the_page_shows_what_the_program_says(fragment, table, tmp_path) -> None:
    assert table == computed(fragment, tmp_path)


def test_every_yaml_has_its_values_and_every_kind_its_yaml() -> None:
    found = examples()
    assert len(found) == PAGE.read_text(encoding="utf-8").count("```yaml")
    shown = {feature["kind"] for fragment, _ in found for feature in fragment["features"]}
    assert shown == kinds()

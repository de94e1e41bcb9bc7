"""What the feature state weighs: by table, and by user, item or whatever it is kept for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow.parquet as pq
from safetensors import safe_open

from raysys.config import load_settings
from raysys.features.keys import CODES
from raysys.features.plan import FeaturePlan

if TYPE_CHECKING:
    from raysys.features.live import LiveFeatures

BYTES: Final = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "U8": 1}
"""Of one number, by what safetensors calls its type."""


def state_size(live: LiveFeatures) -> dict[str, Any]:
    """Records and bytes of all state, ready for JSON.

    Returns:
        `records` and `bytes` (memory held, room to grow included) over all;
        `tables`: by name its kind, keys, records, bytes and bytes_per_record;
        `entities`: by the first key of tables (`all` where there is none) the same, with `known`,
        how many of that kind have a number, and bytes_per_entity where that is known.
    """
    known = {"user": live.n_users, "item": len(live.catalogue), "store": len(live.stores)}
    known |= {"query": len(live.queries), "session": live.sessions.count}
    known |= {name: len(labels) for name, labels in live.labels.items()}
    held = {name: (len(state), state.nbytes) for name, state in live.state.all().items()}
    return _told(live.plan, held, known)


def saved_state_size(folder: Path) -> dict[str, Any]:
    """The same of a state that `LiveFeatures.save` wrote, from the headers of its files alone.

    Bytes are those of the records, without room to grow and without what finds them by key: a
    state in memory has up to a few times as many.
    """
    plan = load_settings(FeaturePlan, folder / "plan.yaml")
    facts = json.loads((folder / "state.json").read_text())
    labels = json.loads((folder / "vocabularies.json").read_text())
    rows = {
        key: pq.read_metadata(folder / f"{name}.parquet").num_rows
        for key, name in (("user", "users"), ("item", "catalogue"), ("query", "queries"))
    }
    known = {**rows, "store": len(facts["stores"]), "session": facts["sessions"]}
    known |= {name: len(labels[name]) for name in CODES}
    kinds = [(kind, getattr(plan, kind)) for kind in ("tables", "windows", "last")]
    held = {
        name: _records_and_bytes(folder / kind / f"{name}.safetensors")
        for kind, states in kinds
        for name in states
    }
    return _told(plan, held, known)


def _records_and_bytes(path: Path) -> tuple[int, int]:
    """How many records a state's file has, and how many bytes its arrays."""
    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        sizes = [BYTES[a.get_dtype()] * math.prod(a.get_shape()) for a in arrays.values()]
        return int(arrays["keys"].get_shape()[0]), sum(sizes)


def _told(
    plan: FeaturePlan, held: Mapping[str, tuple[int, int]], known: Mapping[str, int]
) -> dict[str, Any]:
    """As `state_size` says: from records and bytes by name of a state, and what has a number."""
    tables: dict[str, dict[str, Any]] = {}
    entities: dict[str, dict[str, Any]] = {}
    kinds = dict.fromkeys(plan.tables, "table") | dict.fromkeys(plan.windows, "window")
    for name, (records, size) in held.items():
        keys = plan.states[name].keys
        tables[name] = {
            "kind": kinds.get(name, "last"),
            "keys": list(keys),
            "records": records,
            "bytes": size,
            "bytes_per_record": round(size / max(1, records), 1),
        }
        entity: str = keys[0] if keys else "all"
        total = entities.setdefault(entity, {"records": 0, "bytes": 0})
        total["records"] += records
        total["bytes"] += size
    for kept_for, total in entities.items():
        if known.get(kept_for):
            total["known"] = known[kept_for]
            total["bytes_per_entity"] = round(total["bytes"] / known[kept_for], 1)
    return {
        "records": sum(table["records"] for table in tables.values()),
        "bytes": sum(table["bytes"] for table in tables.values()),
        "tables": tables,
        "entities": entities,
    }

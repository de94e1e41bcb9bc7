"""What the feature state weighs: by table, and by user, item or whatever it is kept for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysys.features.live import LiveFeatures


def state_size(live: LiveFeatures) -> dict[str, Any]:
    """Records and bytes of all state, ready for JSON.

    Returns:
        `records` and `bytes` (memory held, room to grow included) over all;
        `tables`: by name its kind, keys, records, bytes and bytes_per_record;
        `entities`: by the first key of tables (`all` where there is none) the same, with `known`,
        how many of that kind have a number, and bytes_per_entity where that is known.
    """
    tables: dict[str, dict[str, Any]] = {}
    entities: dict[str, dict[str, Any]] = {}
    kinds = dict.fromkeys(live.plan.tables, "table") | dict.fromkeys(live.plan.windows, "window")
    known = {"user": live.n_users, "item": len(live.catalogue), "store": len(live.stores)}
    known |= {"query": len(live.queries), "session": live.sessions.count}
    known |= {name: len(labels) for name, labels in live.labels.items()}
    for name, state in live.state.all().items():
        keys, records, held = live.state.specs[name].keys, len(state), state.nbytes
        tables[name] = {
            "kind": kinds.get(name, "last"),
            "keys": list(keys),
            "records": records,
            "bytes": held,
            "bytes_per_record": round(held / max(1, records), 1),
        }
        entity: str = keys[0] if keys else "all"
        total = entities.setdefault(entity, {"records": 0, "bytes": 0})
        total["records"] += records
        total["bytes"] += held
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

"""What a registry holds, in rows of plain values, for the terminal and the admin routes."""

from __future__ import annotations

import json
from typing import Any

from raysys.errors import UserError
from raysys.registry.bundle import TEXT, TEXT_FILE
from raysys.registry.gate import (
    Judgement,
    judge_figures,
    judge_learned,
    judge_unread,
    main_figures,
)
from raysys.registry.manifest import BundleManifest
from raysys.registry.store import Registry


def bundles(registry: Registry) -> list[dict[str, Any]]:
    """All bundles, newest first, as rows of plain values; a damaged one says so."""
    names: dict[str, list[str]] = {}
    for name, bundle_id in registry.pointers().items():
        names.setdefault(bundle_id, []).append(name)
    rows = []
    for bundle_id in registry.list():
        row: dict[str, Any] = {"bundle": bundle_id, "names": names.get(bundle_id, [])}
        try:
            manifest = BundleManifest.read(registry.bundles / bundle_id)
        except UserError as error:
            rows.append({**row, "damaged": error.what})
            continue
        metric, figure = next(iter(main_figures(manifest).items()), ("", None))
        rows.append(
            {
                **row,
                "surface": manifest.surface,
                "metric": metric,
                "figure": figure and figure.value,
                "interval": figure and [figure.to_dict()["low"], figure.to_dict()["high"]],
                "learners": list(manifest.learners),
                "created": manifest.created,
            }
        )
    return rows


def default_pointer(registry: Registry, manifest: BundleManifest) -> str:
    """The name that a bundle would be served by."""
    if manifest.surface != TEXT:
        return "champion"
    content = json.loads((registry.bundles / manifest.id / TEXT_FILE).read_text("utf-8"))
    return f"text-{content['task']}"


def judge_known(registry: Registry, challenger: BundleManifest, before: str | None) -> Judgement:
    """Compare a bundle with the one it would replace by what their manifests say.

    Args:
        registry: of both.
        challenger: what it says of itself.
        before: id of the one it would replace; None: there is none.
    """
    if before is None:
        return Judgement(True, "", "none", "there is no bundle of this name yet")
    if before == challenger.id:
        return Judgement(True, "", "none", "it has this name already")
    try:
        champion = BundleManifest.read(registry.bundles / before)
    except UserError as error:
        return judge_unread(error)
    return judge_learned(challenger, champion) or judge_figures(challenger, champion)

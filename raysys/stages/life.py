"""`raysys promote`, `rollback` and `bundles`: which bundle a name means, and whether it may."""

from __future__ import annotations

import getpass
import json
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from raysys.errors import UserError
from raysys.progress import task
from raysys.registry import TEXT, BundleManifest, Registry
from raysys.registry.gate import Judgement, judge_paired, judge_unread
from raysys.registry.listing import bundles, default_pointer, judge_known
from raysys.storage import Workspace, read_manifest


def promote(
    workspace: Workspace, bundle: str, pointer: str | None, *, force: bool, look: bool = False
) -> Judgement:
    """Give a bundle the champion's name, if its figures allow it.

    Args:
        workspace: its registry, and the features on which both are judged, where it has them.
        bundle: an id, or a pointer such as `challenger`.
        pointer: the name to give; None: `champion`, or `text-TASK` for a text task.
        force: whatever the figures say.
        look: judge only.

    Raises:
        UserError: no such bundle, a damaged one, or one that is worse and not forced; or the name
            means another one meanwhile than it was judged against.
    """
    registry = Registry(workspace.registry)
    challenger = registry.verify(bundle)
    name = pointer or default_pointer(registry, challenger)
    before = registry.pointers().get(name)
    judgement = judge(workspace, registry, challenger, before)
    if look:
        return judgement
    if not judgement.passes and not force:
        raise UserError(
            f"{challenger.id} is not promoted: {judgement.reason}",
            where=name,
            mend="--force promotes it all the same",
        )
    forced = "" if judgement.passes else ", forced"
    cause = f"promoted by {_who()}{forced}: {judgement.reason}"
    registry.point(name, challenger.id, cause=cause, expected=before or "")
    return judgement


def judge(
    workspace: Workspace, registry: Registry, challenger: BundleManifest, before: str | None
) -> Judgement:
    """Compare a bundle with the one it would replace: paired where both can score one period.

    Args:
        workspace: whose features to score, if both were trained on them.
        registry: of both.
        challenger: what it says of itself.
        before: id of the champion; None: there is none.
    """
    if before not in (None, challenger.id):
        try:
            champion = BundleManifest.read(registry.bundles / before)
        except UserError as error:
            return judge_unread(error)
        if _same_features(workspace, challenger, champion):
            try:
                registry.verify(champion.id)
            except UserError as error:
                return judge_unread(error)
            return _paired(workspace, registry, challenger.id, champion.id)
    return judge_known(registry, challenger, before)


def show_bundles(workspace: Workspace, *, history: bool, as_json: bool) -> None:
    """Print all bundles with their names and figures, newest first; or how names changed."""
    registry = Registry(workspace.registry)
    if history:
        changes = [vars(change) for change in registry.journal()]
        _print(changes, ("at", "name", "before", "after", "cause"), as_json=as_json)
        return
    _print(
        bundles(registry),
        ("bundle", "names", "surface", "metric", "figure", "created"),
        as_json=as_json,
    )


def rollback(workspace: Workspace, pointer: str) -> str:
    """Give the name back to the bundle that had it before; returns that bundle's id.

    Raises:
        UserError: it never meant another, or that one is gone or damaged.
    """
    return Registry(workspace.registry).rollback(pointer, cause=f"rolled back by {_who()}")


def _same_features(
    workspace: Workspace, challenger: BundleManifest, champion: BundleManifest
) -> bool:
    """Whether both were trained on the workspace's features, so that its last period is unseen."""
    if not (workspace.features / "manifest.json").is_file() or TEXT in (
        challenger.surface,
        champion.surface,
    ):
        return False
    here = read_manifest(workspace.features).fingerprint
    return challenger.data.get("features") == champion.data.get("features") == here


def _paired(workspace: Workspace, registry: Registry, challenger: str, champion: str) -> Judgement:
    """Both ensembles over the report period; users are drawn with all their requests."""
    from raysys.ensemble import Judgements
    from raysys.ensemble.folds import base_score
    from raysys.evaluation.intervals import Bootstrap
    from raysys.evaluation.metrics import ndcg
    from raysys.features.examples import Examples

    fold = int(read_manifest(workspace.features).figures["folds"]["report"])
    batch = Examples(workspace.features, (fold,)).batch()
    judgements = Judgements.of(batch)
    values = []
    with task("promote: scoring the last period with both", 2) as scoring:
        for bundle_id in (challenger, champion):
            bundle = registry.load(bundle_id)
            base = {name: base_score(name, model, batch) for name, model in bundle.learners.items()}
            score = bundle.ensemble.score(base, batch.offsets, batch).score
            values.append(ndcg(judgements, judgements.ranks(score), 10))
            scoring.advance()
    difference = Bootstrap(batch.user).difference(values[0], values[1])
    means = [float(np.nanmean(value)) for value in values]
    return judge_paired("ndcg@10", means[0], means[1], difference)


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        return "somebody"


def _print(rows: list[dict[str, Any]], columns: tuple[str, ...], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row, column) for column in columns))
    Console().print(table)


def _cell(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if column == "figure" and value is not None:
        low, high = row["interval"]
        ends = "" if low is None else f" [{low:.4f}, {high:.4f}]"
        return f"{value:.4f}{ends}"
    if column == "surface" and "damaged" in row:
        return f"damaged: {row['damaged']}"
    return ", ".join(value) if isinstance(value, list) else str(value or "")

"""A challenger out of a round, and what becomes of it: a bundle, a name, at most a canary."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from raysys.catalogue import Catalogue
from raysys.ensemble import BaseScores
from raysys.errors import UserError
from raysys.learners import load_model
from raysys.registry import RERANKER_FOLDER, Moved, Registry, write_search
from raysys.serving.rollout import CanaryArgs, Rollout, RolloutState, UserConfig, effective
from raysys.stages.learn_events import GATE
from raysys.stages.learn_gate import verdict
from raysys.stages.learn_replay import AFTER
from raysys.stages.learn_round import SCORES, Round
from raysys.stages.reference import reference_of
from raysys.storage import Workspace, replacing

if TYPE_CHECKING:
    from raysys.learners.protocol import TextEncoder


def publish(
    made: Round, registry: Registry, figures: dict[str, Any], workspace: Workspace
) -> dict[str, Any]:
    """Publish what a round made and name it; the same round gives the same bundle.

    Args:
        made: whose steps are done.
        registry: of the champion.
        figures: what the gate measured.
        workspace: see `reference_of`.
    """
    champion, told = made.champion, made.settings
    ensemble = made.ensemble()
    metric = figures["metric"]
    settings = {**champion.manifest.settings, "learn": told.model_dump(mode="json")}
    bundle = registry.publish(
        lambda fresh: _write(made, workspace, fresh),
        name_hint=champion.id.rpartition("-")[0],
        surface=champion.manifest.surface,
        learners=ensemble.families,
        # not of the features of the workspace: it knows what came after them
        data={"bundle": champion.id, "ingest": made.plan.ingest},
        settings=settings,
        figures={
            "ndcg10": {"full": figures["challenger"]["ndcg@10"]},
            "weights": {name: c.share for name, c in ensemble.fallbacks.items()},
            "methods": {name: c.method for name, c in ensemble.fallbacks.items()},
            "gate": {
                "against": champion.id,
                "metric": metric,
                "challenger": figures["challenger"][metric]["value"],
                "champion": figures["champion"][metric]["value"],
                "difference": figures["difference"][metric],
                "requests": figures["requests"],
                "first": figures["first"],
                "last": figures["last"],
                "effects": figures["effects"],
            },
        },
    )
    registry.point(told.publish.name, bundle, cause=f"learned from {champion.id}")
    return {"challenger": bundle}


def promote(made: Round, registry: Registry, bundle: str, figures: dict[str, Any]) -> str:
    """Do what `publish.promote` says; in words what became of the champion."""
    told, name = made.settings.publish, made.settings.champion
    if told.promote == "never":
        return "the champion stays"
    if told.promote == "when_better":
        judged = verdict(figures, better=True)
        if not judged.passes:
            return f"the champion stays: {judged.reason}"
        holder = registry.pointers().get(name)
        if holder == bundle:
            return f"it is the {name} now"
        if holder != made.plan.champion:
            return f"the champion stays: {name} means another bundle than when the round began"
        cause = f"promoted by raysys learn: {judged.reason}"
        try:
            registry.point(name, bundle, cause=cause, expected=holder)
        except Moved as error:
            return f"the champion stays: {error.what}"
        return f"it is the {name} now"
    rollout = Rollout(registry.root)
    try:
        state = rollout.read()
    except UserError as error:
        return f"no canary: {error.what}"
    tried = _tried(state, registry)
    promoted = registry.pointers().get(name)  # which is tried no more
    if tried not in (None, bundle, promoted):
        return f"no canary: {tried} is being tried"
    if any(halt.bundle == bundle for halt in state.halted):
        return "no canary: a guard has ended that of this very bundle"
    asked = CanaryArgs(**{**told.canary.model_dump(), "bundle": bundle})
    rollout.ask(asked)
    return f"a canary for {told.canary.share:.0%} of the users"


def _tried(state: RolloutState, registry: Registry) -> str | None:
    """Id of the bundle that an admin, or an earlier round, has tried; None: its end has come."""
    try:
        canary = effective(state, UserConfig(), registry.resolve)
    except UserError:  # it is gone
        return None
    return None if canary is None else canary.bundle


def _write(made: Round, workspace: Workspace, fresh: Path) -> None:
    """Fill an empty folder: what the round made, and what it left as it was."""
    shutil.copytree(made.folder / "relived" / "features", fresh / "features")
    ensemble = made.ensemble()
    for name in ensemble.families:
        own = made.folder / f"learner-{name}" / "model"
        source = own if made.tuned(name) is not None else made.bundle / "learners" / name
        shutil.copytree(source, fresh / "learners" / name)
    ensemble.save(fresh / "ensemble.json")
    catalogue = made.champion.features.catalogue
    if made.told["relived"].get("new_items"):
        catalogue = Catalogue.load(fresh / "features" / "catalogue.parquet")
        encoder = _place_items(fresh / "learners", ensemble.families, catalogue)
        write_search(fresh / "search", catalogue, encoder)
    else:
        shutil.copytree(made.bundle / "search", fresh / "search")
    # what it will be watched by: the newest that its learners have not seen
    examples = made.examples(AFTER, GATE)
    reference = reference_of(
        *(workspace, made.champion.manifest.surface, examples),
        *(BaseScores.read(made.folder / "gate" / SCORES, examples), ensemble),
        *(catalogue, made.settings.seed),
    )
    reference.save(fresh)
    if (made.bundle / RERANKER_FOLDER).is_dir():  # reads queries and items, which stay as they are
        shutil.copytree(made.bundle / RERANKER_FOLDER, fresh / RERANKER_FOLDER)


def _place_items(folder: Path, names: Iterable[str], catalogue: Catalogue) -> TextEncoder | None:
    """Give new items their place in the space of each encoder, once and for all.

    Returns:
        the encoder that search goes by; None: there is none.
    """
    first: TextEncoder | None = None
    for name in names:
        place = folder / name
        model = load_model(name, place, catalogue)
        # by name: `isinstance` would read `item_vectors`, which may be made anew at each look
        if not hasattr(model, "encode"):
            continue
        with replacing(place) as fresh:
            model.save(fresh)
        first = first or cast("TextEncoder", model)
    return first

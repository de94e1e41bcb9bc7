"""Bundles in memory: a trained surface, or a text task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from raysys.errors import UserError
from raysys.registry.manifest import BundleManifest, verify

if TYPE_CHECKING:
    from raysys.catalogue import Catalogue
    from raysys.ensemble import Ensemble
    from raysys.features.live import LiveFeatures
    from raysys.learners.protocol import Model, TextEncoder
    from raysys.learners.text_protocol import Task, TextModel
    from raysys.retrieval.search import Search

TEXT = "text"
"""Surface of bundles of text tasks."""

TEXT_FILE = "text.json"
MODEL_FOLDER = "model"


@dataclass(frozen=True)
class Bundle:
    """Everything needed to serve one trained surface, in memory.

    Attributes:
        id: the bundle's id.
        manifest: what it says of itself.
        features: candidates and features of the live state.
        learners: fitted learners by name.
        families: family of every learner, for the ensemble's fallbacks.
        ensemble: turns base scores into one.
        search: finds items by words and meaning.
    """

    id: str
    manifest: BundleManifest
    features: LiveFeatures
    learners: dict[str, Model]
    families: dict[str, str]
    ensemble: Ensemble
    search: Search

    @classmethod
    def load(cls, folder: Path) -> Bundle:
        """Verify every file of the bundle, then load it.

        Raises:
            UserError: a file is missing, added or changed; names it.
        """
        from raysys.ensemble import Ensemble
        from raysys.features.live import LiveFeatures
        from raysys.learners import load_model
        from raysys.retrieval.search import Search

        manifest = verify(folder)
        if manifest.surface == TEXT:
            raise UserError(
                f"{folder.name} is of a text task and ranks nothing",
                where=str(folder),
                mend="name it under `text` of a serve config, or give it to `raysys score`",
            )
        features = LiveFeatures.load(folder / "features")
        learners = {
            name: load_model(name, folder / "learners" / name, features.catalogue)
            for name in manifest.learners
        }
        # by name: `isinstance` would read `item_vectors`, which may be made anew at each look
        encoder = next((model for model in learners.values() if hasattr(model, "encode")), None)
        return cls(
            id=manifest.id,
            manifest=manifest,
            features=features,
            learners=learners,
            families=dict(manifest.learners),
            ensemble=Ensemble.load(folder / "ensemble.json"),
            search=Search.load(folder / "search", cast("TextEncoder | None", encoder)),
        )


@dataclass(frozen=True)
class TextBundle:
    """A fitted text task, in memory.

    Attributes:
        id: the bundle's id.
        manifest: what it says of itself.
        task: classify, entities, sentiment or relevance.
        model: predicts; thread-safe.
        columns: which columns of a shop's files were its text, joined by `join`.
        join: between texts of several columns.
    """

    id: str
    manifest: BundleManifest
    task: Task
    model: TextModel
    columns: tuple[str, ...]
    join: str

    @classmethod
    def load(cls, folder: Path) -> TextBundle:
        """Verify every file of the bundle, then load it.

        Raises:
            UserError: a file is missing, added or changed, or it is no bundle of a text task.
        """
        from raysys.learners.text import load_text_model

        manifest = verify(folder)
        if manifest.surface != TEXT:
            raise UserError(
                f"{folder.name} is no bundle of a text task, but of {manifest.surface!r}",
                where=str(folder),
                mend="give one that `raysys text fit` published",
            )
        content = json.loads((folder / TEXT_FILE).read_text(encoding="utf-8"))
        model = load_text_model(folder / MODEL_FOLDER)
        columns = tuple(content["columns"])
        return cls(manifest.id, manifest, content["task"], model, columns, content["join"])


def write_text(
    folder: Path, name: str, model: TextModel, columns: Sequence[str], join: str
) -> None:
    """Fill the empty folder of a text task's bundle.

    Args:
        folder: see `Registry.publish`.
        name: of the model's learner.
        model: fitted.
        columns: which columns of the files were the text.
        join: between them.
    """
    from raysys.learners.text import save_text_model

    save_text_model(name, model, folder / MODEL_FOLDER)
    content = {"task": model.task, "columns": list(columns), "join": join}
    (folder / TEXT_FILE).write_text(json.dumps(content, ensure_ascii=False) + "\n", "utf-8")


def write_search(folder: Path, catalogue: Catalogue, encoder: TextEncoder | None) -> None:
    """Write a bundle's `search/` folder: words of all items and, given an encoder, their vectors.

    Args:
        folder: made if it is missing.
        catalogue: its texts are what can be found.
        encoder: a fitted learner that places texts and items in one space; None: words only.
    """
    from raysys.retrieval.lexical import FIELD_WEIGHTS
    from raysys.retrieval.search import Search

    folder.mkdir(parents=True, exist_ok=True)
    fields = {name: catalogue.table[name].to_pylist() for name in FIELD_WEIGHTS}
    Search.build(catalogue.texts, encoder, fields).save(folder)

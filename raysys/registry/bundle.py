"""Bundles in memory: a trained surface, or a text task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from raysys.errors import UserError
from raysys.registry.manifest import BundleManifest, verify
from raysys.registry.query_encoders import QueryEncoders

if TYPE_CHECKING:
    from raysys.catalogue import Catalogue
    from raysys.ensemble import Ensemble
    from raysys.features.live import LiveFeatures
    from raysys.learners.protocol import Model, Reranker, SessionEncoder, TextEncoder
    from raysys.learners.text_protocol import Task, TextModel
    from raysys.retrieval.search import Search

TEXT = "text"
"""Surface of bundles of text tasks."""

TEXT_FILE = "text.json"
MODEL_FOLDER = "model"
RERANKER_FOLDER = "reranker"
RERANKER_FILE = "reranking.json"


@dataclass(frozen=True)
class Reranking:
    """A cross-encoder that looks once more at the best few of a list.

    Attributes:
        name: of its learner.
        model: reads query and item together; thread-safe.
        top: so many of the best it is meant for.
        weight: of what it says against the place an item had, 0 to 1.
    """

    name: str
    model: Reranker
    top: int
    weight: float


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
        reranking: of the best few; None: there is no such part.
        query_encoders: of queries that the log never had, for features; None: none asks for them.
    """

    id: str
    manifest: BundleManifest
    features: LiveFeatures
    learners: dict[str, Model]
    families: dict[str, str]
    ensemble: Ensemble
    search: Search
    reranking: Reranking | None = None
    query_encoders: QueryEncoders | None = None

    @cached_property
    def session_encoder(self) -> tuple[str, SessionEncoder] | None:
        """Name and model of the learner that proposes what comes next; None: there is none."""
        return _session_encoder(self.learners)

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
        encoder = _text_encoder(learners)
        return cls(
            id=manifest.id,
            manifest=manifest,
            features=features,
            learners=learners,
            families=dict(manifest.learners),
            ensemble=Ensemble.load(folder / "ensemble.json"),
            search=Search.load(folder / "search", encoder),
            reranking=_load_reranker(folder, features.catalogue),
            query_encoders=QueryEncoders.of(folder / "features"),
        )


@dataclass(frozen=True)
class Transformers:
    """Of a bundle what runs a network for every request, without its state, indexes and trees.

    Attributes:
        n_items: of its catalogue.
        texts: encodes queries; None: nobody does.
        sessions: encodes histories by a network; None: nobody does.
        reranker: reads pairs of query and item; None: there is none.
        queries: encodes queries for features that compare items with them; None: none does.
    """

    n_items: int
    texts: TextEncoder | None
    sessions: SessionEncoder | None
    reranker: Reranker | None
    queries: QueryEncoders | None = None


def load_transformers(folder: Path, device: str = "cpu") -> Transformers:
    """Verify a bundle and load its transformers alone, onto a device such as `cuda`.

    Raises:
        UserError: a file is missing, added or changed; names it.
    """
    from raysys.catalogue import Catalogue
    from raysys.learners import load_model
    from raysys.learners.protocol import Placeable

    manifest = verify(folder)
    catalogue = Catalogue.load(folder / "features" / "catalogue.parquet")
    learners = {
        name: load_model(name, folder / "learners" / name, catalogue)
        for name, family in manifest.learners.items()
        if family == "transformer"
    }
    texts, sessions = _text_encoder(learners), _session_encoder(learners)
    reranking = _load_reranker(folder, catalogue)
    found = Transformers(
        len(catalogue),
        texts,
        sessions[1] if sessions is not None and sessions[1].encodes_sessions else None,
        None if reranking is None else reranking.model,
        QueryEncoders.of(folder / "features"),
    )
    for model in (found.texts, found.sessions, found.reranker, found.queries):
        if isinstance(model, Placeable):
            model.place(device)
    return found


def _text_encoder(learners: Mapping[str, Model]) -> TextEncoder | None:
    # by name: `isinstance` would read `item_vectors`, which may be made anew at each look
    found = next((model for model in learners.values() if hasattr(model, "encode")), None)
    return cast("TextEncoder | None", found)


def _session_encoder(learners: Mapping[str, Model]) -> tuple[str, SessionEncoder] | None:
    from raysys.learners.protocol import SessionEncoder

    for name, model in learners.items():
        if isinstance(model, SessionEncoder):
            return name, model
    return None


def _load_reranker(folder: Path, catalogue: Catalogue) -> Reranking | None:
    from raysys.learners import load_model

    place = folder / RERANKER_FOLDER
    if not place.is_dir():
        return None
    told = json.loads((place / RERANKER_FILE).read_text(encoding="utf-8"))
    model = load_model(told["learner"], place / MODEL_FOLDER, catalogue)
    return Reranking(
        told["learner"], cast("Reranker", model), int(told["top"]), float(told["weight"])
    )


def write_reranker(folder: Path, name: str, model: Model, top: int, weight: float) -> None:
    """Fill a new folder `reranker` of a bundle.

    Args:
        folder: of the bundle.
        name: of the model's learner.
        model: fitted; a `Reranker`.
        top, weight: see `Reranking`.
    """
    place = folder / RERANKER_FOLDER
    (place / MODEL_FOLDER).mkdir(parents=True)
    model.save(place / MODEL_FOLDER)
    content = {"learner": name, "top": top, "weight": weight}
    (place / RERANKER_FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")


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

"""Vectors that a plan has made from texts: of the catalogue's items, and of the log's queries.

They are kept in the workspace by what was read and by which model, so that with a new item, or a
new query, only what is new about it is encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from raysys.catalogue import Catalogue
from raysys.cluster import device_here
from raysys.features.grown import Encode
from raysys.features.live import LiveFeatures
from raysys.features.plan import FeaturePlan, TextVectorSpec
from raysys.features.resources import Matrix, Vectors
from raysys.learners.protocol import Float32
from raysys.progress import task
from raysys.registry import Bundle
from raysys.storage import Workspace

_FOLDER = "vectors"


def models_of(plan: FeaturePlan) -> dict[str, str]:
    """Digest of the model behind each space that is made from texts, by the vectors' name.

    Raises:
        UserError: there is no such model.
    """
    if not plan.encoded:  # what follows costs an import of seconds
        return {}
    from raysys.text.model_files import model_digest

    return {name: model_digest(_folder_of(name, spec)) for name, spec in plan.encoded.items()}


def make_vectors(
    plan: FeaturePlan,
    workspace: Workspace,
    scratch: Path,
    catalogue: Catalogue,
    queries: Sequence[str],
) -> dict[str, Vectors]:
    """The spaces of a plan that are made from texts, by name, float16; with their models.

    An item without any text has no vector. Queries are encoded where a feature compares with them.

    Args:
        plan: its `vectors`.
        workspace: keeps what was encoded.
        scratch: where a copy of each model is left, for `Resources.save`.
        catalogue: the items.
        queries: normalised text by query number.

    Raises:
        UserError: no such model, or no such column of items.
    """
    if not plan.encoded:
        return {}
    from raysys.text.items import NO_TEXT, item_texts
    from raysys.text.kept_vectors import KeptVectors
    from raysys.text.model_files import copy_model

    digests, made = models_of(plan), {}
    for name, spec in plan.encoded.items():
        texts = item_texts(catalogue, spec.text)
        asked = list(queries) if name in plan.of_queries else []
        folder, digest = _folder_of(name, spec), digests[name]
        kept = KeptVectors(
            workspace.root / _FOLDER / f"{digest}-{spec.max_tokens}-{name}",
            partial(_open, str(folder), spec, name),
        )
        distinct = list(dict.fromkeys([*texts.distinct, *asked]))
        with task(f"features: vectors {name}", len(distinct)) as encoding:
            found, fresh = kept.of(distinct, encoding.advance)
            encoding.note = f"{fresh:,} of {len(distinct):,} texts are new"
        place = {text: row for row, text in enumerate(distinct)}
        rows = np.array([place[text] for text in texts.distinct], dtype=np.int64)
        items = found[rows[texts.codes]]
        items[np.array([text == NO_TEXT for text in texts.distinct])[texts.codes]] = 0
        of_queries = found[[place[query] for query in asked]] if asked else None
        model = scratch / digest
        if not model.exists():
            copy_model(folder, model, where=f"plan: vectors.{name}.model")
        made[name] = Vectors(items, of_queries, model)
    return made


def encoder_of(live: LiveFeatures) -> Encode | None:
    """What gives new items vectors by the models that a state holds; None: its plan has none."""
    if not live.plan.encoded:
        return None
    from raysys.text.items import NO_TEXT, item_texts

    def encode(name: str, items: Catalogue) -> Matrix:
        texts = item_texts(items, live.plan.encoded[name].text)
        lines = ["" if text == NO_TEXT else text for text in texts.distinct]
        found: Matrix = _held(live, name).encode(lines).astype(np.float16)[texts.codes]
        return found

    return encode


def query_vectors(bundle: Bundle, texts: pl.Series) -> dict[str, dict[str, Float32]]:
    """Vectors of queries that a bundle's state does not know: float32[d] by text and by their name.

    Args:
        bundle: whose features compare items with queries, or do not.
        texts: normalised; null where there is none.
    """
    distinct = sorted(texts.drop_nulls().unique().to_list())
    if bundle.query_encoders is None or not distinct:
        return {}
    return bundle.query_encoders.by_text(distinct)


def _held(live: LiveFeatures, name: str) -> Any:
    """The encoder that a state holds of a space."""
    return _open(str(live.resources.vectors[name].encoder), live.plan.encoded[name], name)


def _folder_of(name: str, spec: TextVectorSpec) -> Path:
    from raysys.text.models import model_folder

    return model_folder(spec.model, where=f"plan: vectors.{name}.model")


def _open(model: str, spec: TextVectorSpec, name: str) -> Any:
    from raysys.text.encoder import Encoder

    encoder = Encoder.open(model, spec.max_tokens, None, where=f"plan: vectors.{name}.model")
    encoder.place(device_here())
    return encoder

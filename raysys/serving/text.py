"""The answers behind `/v1/text/*`: one fitted text task a route, loaded and warm from the start."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from raysys.errors import UserError
from raysys.learners.text_protocol import SpanModel, check_labels
from raysys.registry import Registry, TextBundle
from raysys.serving.args import ServeArgs
from raysys.serving.problems import Problem, invalid
from raysys.serving.text_api import (
    ClassifyAnswer,
    EntitiesAnswer,
    EntitiesRequest,
    GradedText,
    JudgedText,
    LabelledText,
    LabelRequest,
    RelevanceAnswer,
    RelevanceRequest,
    SentimentAnswer,
    SpannedText,
)

log = logging.getLogger("raysys")

_WARM: Final = ["", "warm", "a longer text to warm up with, as long as those of a shop " * 4]


class TextService:
    """One replica's text tasks.

    Args:
        args: the deployment's.

    Raises:
        UserError: no such bundle, a damaged one, or one of another task.
    """

    def __init__(self, args: ServeArgs) -> None:
        registry = Registry(args.registry_path)
        self.bundles: dict[str, TextBundle] = {}
        for task, name in args.text.named().items():
            bundle = TextBundle.load(registry.path(args.pinned_text.get(task, name)))
            if bundle.task != task:
                raise UserError(
                    f"{name!r} was fitted for {bundle.task}, not for {task}",
                    where=f"text.{task}",
                    mend=f"name it under text.{bundle.task}",
                )
            self.bundles[task] = bundle

    def warm_up(self) -> None:
        """Predict once with every model, so that the first user does not pay for it."""
        for task, bundle in self.bundles.items():
            began = time.perf_counter()
            columns = {"text": _WARM, **({"query": _WARM} if task == "relevance" else {})}
            bundle.model.predict(pa.table(columns))
            log.info("%s warmed up in %.1f s", bundle.id, time.perf_counter() - began)

    def classify(self, asked: LabelRequest, arrived: float) -> ClassifyAnswer:
        """Answer POST /v1/text/classify.

        Raises:
            Problem: the deployment has no such task.
        """
        bundle, rows = self._predict("classify", asked.texts)
        results = [LabelledText(**_cut(row, asked.choices)) for row in rows]
        return ClassifyAnswer(results=results, **_head(bundle, arrived))

    def sentiment(self, asked: LabelRequest, arrived: float) -> SentimentAnswer:
        """Answer POST /v1/text/sentiment; see `classify`."""
        bundle, rows = self._predict("sentiment", asked.texts)
        results = [JudgedText(**_cut(row, asked.choices)) for row in rows]
        return SentimentAnswer(results=results, **_head(bundle, arrived))

    def entities(self, asked: EntitiesRequest, arrived: float) -> EntitiesAnswer:
        """Answer POST /v1/text/entities.

        Raises:
            Problem: the deployment has no such task, or its model does not know a label.
        """
        bundle = self._bundle("entities")
        model, table = bundle.model, pa.table({"text": list(asked.texts)})
        assert isinstance(model, SpanModel)
        for at, label in enumerate(asked.labels or ()):
            try:
                check_labels(model, [label], where=f"body.labels.{at}")
            except UserError as error:
                raise invalid(error.where, f"{error.what}; {error.mend}", label) from None
        rows = model.predict(table, asked.labels).to_pylist()
        results = [SpannedText(spans=row["spans"] or []) for row in rows]
        return EntitiesAnswer(results=results, **_head(bundle, arrived))

    def relevance(self, asked: RelevanceRequest, arrived: float) -> RelevanceAnswer:
        """Answer POST /v1/text/relevance; see `classify`."""
        bundle, rows = self._predict("relevance", asked.texts, asked.query)
        grades = np.array([row["grade"] for row in rows], dtype=np.float64)
        position = np.empty(len(grades), dtype=np.int64)
        position[np.argsort(-grades, kind="stable")] = np.arange(1, len(grades) + 1)
        results = [
            GradedText(**{**row, "grade": round(row["grade"], 6), "position": int(place)})
            for row, place in zip(rows, position, strict=True)
        ]
        return RelevanceAnswer(results=results, **_head(bundle, arrived))

    def _predict(
        self, task: str, texts: Sequence[str], query: str | None = None
    ) -> tuple[TextBundle, list[dict[str, Any]]]:
        bundle = self._bundle(task)
        columns = {"text": list(texts)}
        if query is not None:
            columns["query"] = [query] * len(texts)
        return bundle, bundle.model.predict(pa.table(columns)).to_pylist()

    def _bundle(self, task: str) -> TextBundle:
        bundle = self.bundles.get(task)
        if bundle is None:
            raise Problem(
                404,
                "no-such-task",
                f"this deployment has no text task {task!r}: fit one (`raysys text fit`), add "
                f"`text: {{{task}: text-{task}}}` to the args of the serve config, and deploy it",
            )
        return bundle


def _cut(row: dict[str, Any], choices: int) -> dict[str, Any]:
    return {**row, "choices": (row["choices"] or [])[:choices]}


def _head(bundle: TextBundle, arrived: float) -> dict[str, Any]:
    took = round(max(0.0, (time.perf_counter() - arrived) * 1000), 2)
    return {"request_id": uuid.uuid4().hex, "bundle": bundle.id, "took_ms": took}

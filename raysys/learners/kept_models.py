"""Models that a fit of several makes on its way: a kill does not cost those that had ended."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from types import TracebackType

import numpy as np
import pyarrow as pa

from raysys.config import Settings
from raysys.learners.text import load_text_model, save_text_model
from raysys.learners.text_protocol import TextContext, TextModel
from raysys.storage import digest, versions, write_atomic

log = logging.getLogger("raysys")


class KeptModels:
    """Fitted models in a fit's scratch, until the fit has ended.

    As a context it removes them when its block ends well; an error or a kill leaves them for the
    next fit of the same settings, seed, rows and versions.

    Args:
        name: of the fit's learner.
        settings: its own.
        context: of the fit.
        tables: all that it reads.
    """

    def __init__(
        self, name: str, settings: Settings, context: TextContext, *tables: pa.Table
    ) -> None:
        self.name = name
        told = [settings.model_dump(mode="json"), context.seed, versions()]
        mark = digest([told, [fingerprint_of(table) for table in tables]])
        self.folder = context.scratch / f"{name}-models-{mark}"
        self._ended = self.folder.with_name(f"{self.folder.name}.ended")

    def __enter__(self) -> KeptModels:
        shutil.rmtree(self._ended, ignore_errors=True)  # a kill may have come while it went
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self.folder.is_dir():
            self.folder.rename(self._ended)  # or half of a model would be taken for a whole one
            shutil.rmtree(self._ended, ignore_errors=True)

    def model(self, key: str, learner: str, fit: Callable[[], TextModel]) -> TextModel:
        """The model that was kept under a key, else a fitted one, which is kept.

        Args:
            key: names it within the fit, and its folder.
            learner: its name in `TEXT_LEARNERS`.
            fit: makes it.
        """
        place, done = self.folder / key, self.folder / f"{key}.json"
        if done.is_file():
            log.info("%s: %s was fitted before this run was cut off", self.name, key)
            return load_text_model(place)
        model = fit()
        shutil.rmtree(place, ignore_errors=True)  # half-written by a killed run
        place.parent.mkdir(parents=True, exist_ok=True)
        save_text_model(learner, model, place)
        write_atomic(done, json.dumps({"learner": learner}) + "\n")
        return model


def fingerprint_of(table: pa.Table) -> str:
    """Of a table's columns and rows, however they lie in memory: 16 hex digits."""
    whole = table.replace_schema_metadata(None).combine_chunks()
    whole = whole.take(np.arange(len(whole)))  # a slice may have a mask where nothing is null
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, whole.schema) as writer:
        writer.write_table(whole.combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()[:16]

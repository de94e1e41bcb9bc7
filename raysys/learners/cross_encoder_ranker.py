"""`cross_encoder_ranker`: a transformer that reads what was asked for and an item's text together.

The most exact of the text learners and the dearest: some milliseconds a candidate on a CPU, where
two towers take none. So its place is the second stage of a list, over the best few of the others
(`reranker` in the YAML of `raysys train`); as a member of the ensemble it reads all candidates.
It learns from judgements, or from behaviour: what was wanted of the candidates of each query.
(Nogueira and Cho, 2019: Passage Re-ranking with BERT.)
"""

from __future__ import annotations

import json
import shutil
import threading
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysys.catalogue import Catalogue
from raysys.errors import UserError
from raysys.features.batch import Batch
from raysys.features.examples import Examples
from raysys.learners.cross_encoder_ranker_settings import CrossEncoderRankerSettings
from raysys.learners.judged_pairs import judged_pairs
from raysys.learners.protocol import Context, Float32, Learner, Model, Report, Resources
from raysys.learners.ranker_pairs import Reads, asked_for, wanted_pairs, with_copies
from raysys.learners.validation import no_positives, require_positives
from raysys.storage import replacing
from raysys.text.items import ItemTexts, item_texts
from raysys.text.pairs import Pairs, Scale, trainable
from raysys.text.training.settings import CheckpointEvery

if TYPE_CHECKING:
    from raysys.text.cross_encoder import PairScorer

META = "cross_encoder_ranker.json"
SCORER = "scorer"
ENDED = "ended"
"""Where a fit with checkpoints leaves its outcome, in their folder."""

Int32 = npt.NDArray[np.int32]


class CrossEncoderRankerModel(Model):
    """A fitted cross-encoder over a catalogue.

    Args:
        scorer: the transformer, or the folder that holds it, which is opened at the first pair.
        texts: of the catalogue it scores.
        settings: as fitted.
        reads: what stands for what was asked: queries alone, or histories where there is none.
        augmented: see `Model.augmented`.
    """

    def __init__(
        self,
        scorer: PairScorer | Path,
        texts: ItemTexts,
        settings: CrossEncoderRankerSettings,
        reads: Reads,
        augmented: Mapping[str, int] | None = None,
    ) -> None:
        self.texts, self.settings, self.reads = texts, settings, reads
        self.augmented = dict(augmented or {})
        self._scorer, self._device = scorer, "cpu"
        self._opening = threading.Lock()

    @property
    def scorer(self) -> PairScorer:
        """The transformer; opened when first asked for, which takes seconds."""
        with self._opening:
            if isinstance(self._scorer, Path):
                from raysys.text.cross_encoder import PairScorer

                self._scorer = PairScorer(self._scorer, self.settings.max_tokens)
                self._scorer.module.to(self._device)
            return self._scorer

    def place(self, device: str) -> None:
        """See `Placeable`."""
        self._device = device
        self.scorer.module.to(device)

    def score(self, batch: Batch) -> Float32:
        """See `Model.score`; 0 for all candidates of a request that asks for nothing."""
        asked = asked_for(batch, self.texts, self.settings.history, self.reads)
        split = np.split(batch.item, batch.offsets[1:-1])
        found = self.pairs_of(list(zip(asked, split, strict=True)))
        return np.concatenate([np.empty(0, np.float32), *found])

    def pairs_of(self, asked: Sequence[tuple[str, Int32]]) -> list[Float32]:
        """See `Reranker`; 0 for all items of an empty query."""
        sizes = [len(items) for _, items in asked]
        codes = np.concatenate([np.empty(0, np.int32), *(self.texts.codes[i] for _, i in asked)])
        queries = [query for query, items in asked for _ in range(len(items))]
        texts = [self.texts.distinct[code] for code in codes]
        scores = np.zeros(len(queries), dtype=np.float32)
        pairs = Pairs.of(pa.table({"query": pa.array(queries, pa.string()), "text": texts}))
        rows = np.flatnonzero(pairs.readable)
        if len(rows):
            scores[rows] = self.scorer.scores(pairs.take(rows))[0]
        return np.split(scores, np.cumsum(sizes)[:-1]) if sizes else []

    def save(self, folder: Path) -> None:
        """See `Model.save`."""
        place = folder / SCORER
        if isinstance(self._scorer, Path):
            shutil.copytree(self._scorer, place)
        else:
            place.mkdir()
            self._scorer.save(place)
        content = {
            "settings": self.settings.model_dump(mode="json"),
            "reads": self.reads,
            "augmented": self.augmented,
        }
        text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        (folder / META).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, catalogue: Catalogue) -> CrossEncoderRankerModel:
        """See `Model.load`; items that the catalogue gained are read as any other."""
        content = json.loads((folder / META).read_text(encoding="utf-8"))
        settings = CrossEncoderRankerSettings(**content["settings"])
        texts = item_texts(catalogue, settings.text)
        augmented = content.get("augmented")
        return cls(folder / SCORER, texts, settings, content["reads"], augmented)


class CrossEncoderRanker(Learner[CrossEncoderRankerSettings]):
    """Fine-tunes a transformer on pairs of what was asked for and what was wanted."""

    name: ClassVar[str] = "cross_encoder_ranker"
    family: ClassVar[str] = "transformer"
    settings_model = CrossEncoderRankerSettings
    model_class: ClassVar[type[Model]] = CrossEncoderRankerModel
    steps: ClassVar[str] = "training.epochs"

    def length(self) -> tuple[str, float] | None:
        """See `Learner.length`: batches where `max_steps` counts them, else epochs."""
        return None if self.settings.fitted is not None else self.settings.training.length()

    def fit(self, examples: Examples, context: Context) -> CrossEncoderRankerModel:
        """See `Learner.fit`; one Ray Train run.

        Raises:
            UserError: nothing to learn from; files that are not there or do not fit.
        """
        return self._fit(examples, context, context.resources, None)

    def fit_local(
        self, examples: Examples, context: Context, report: Report | None = None
    ) -> CrossEncoderRankerModel:
        """See `Learner.fit_local`; with `report` the tail is left out and judged as it goes.

        It is told of batches, at every evaluation (`training.evaluate_every`, each epoch by
        itself), and judged as the training judges: on pairs of the tail, or the judgements' own
        validation. Checkpoints are written after so many batches as the context says.
        """
        return self._fit(examples, context, None, report)

    def _fit(
        self,
        examples: Examples,
        context: Context,
        resources: Resources | None,
        report: Report | None,
    ) -> CrossEncoderRankerModel:
        from raysys.text.cross_encoder import CrossEncoding, PairScorer
        from raysys.text.training import train

        told = self.settings
        texts = item_texts(context.catalogue, told.text)
        if told.fitted is not None:
            return CrossEncoderRankerModel(fitted_folder(told.fitted), texts, told, "queries")
        ended = context.checkpoint.root / ENDED if context.checkpoint else None
        if ended is not None and ended.is_dir():
            return CrossEncoderRankerModel.load(ended, context.catalogue)
        validation: Pairs | None = None
        reads: Reads = "queries"
        if told.judgements is not None:
            judged, held_out = judged_pairs(told.judgements, texts, context.catalogue)
        else:
            require_positives(examples)
            head, tail = examples.head_and_tail(told.last_fraction) if report else (examples, None)
            judged, reads = wanted_pairs(head, texts, told)
            held_out = None
            if tail is not None:
                held_out = wanted_pairs(tail, texts, told, reads)[0]
        learned, made = with_copies(judged, held_out, told)
        pairs = trainable(learned, where=self.name)
        if held_out is not None and held_out.num_rows:
            validation = trainable(held_out, where=self.name)
        if not any(np.ptp(pairs.grade[rows]) > 0 for rows in pairs.lists()):
            raise no_positives(examples)
        objective = CrossEncoding(
            told.model,
            pairs,
            validation,
            Scale.of(pairs.grade, where=self.name),
            loss=told.loss,
            max_tokens=told.max_tokens,
            list_size=told.list_size,
            temperature=told.temperature,
            where=f"{self.name}.model",
        )
        training, scratch = told.training, None
        if context.checkpoint is not None:
            every = CheckpointEvery(steps=context.checkpoint.every)
            training = training.model_copy(update={"checkpoint_every": every})
            scratch = context.checkpoint.root
        folder = context.scratch / f"{self.name}-{uuid.uuid4().hex[:8]}"
        if scratch is not None:  # a name that a fit that is taken up again has, too
            folder = scratch / self.name
            shutil.rmtree(folder, ignore_errors=True)
        try:
            fitted = train(
                *(objective, training, folder),
                seed=context.seed,
                resources=resources,
                report=report,
            )
            scorer = PairScorer(fitted.folder, told.max_tokens)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        model = CrossEncoderRankerModel(scorer, texts, told, reads, made)
        if ended is not None:
            with replacing(ended) as fresh:  # a kill while it is judged costs no fit
                model.save(fresh)
        return model


def fitted_folder(path: str) -> Path:
    """The folder of a fitted `cross_encoder`.

    Raises:
        UserError: it is none.
    """
    from raysys.text.cross_encoder import ENCODER, HEAD

    place = Path(path)
    if not ((place / ENCODER).is_dir() and (place / HEAD).is_file()):
        raise UserError(
            f"no fitted cross-encoder: {path!r}",
            where="cross_encoder_ranker.fitted",
            mend="fit one with `raysys text fit` (task relevance, learner cross_encoder), and give "
            "its folder under text/NAME/models",
        )
    return place

"""What `raysys compress` works on: a learner in a bundle, how to judge it, how to publish it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from raysys.catalogue import Catalogue
from raysys.datasets.splits import components
from raysys.errors import UserError
from raysys.evaluation.text_judge import TextJudge, TextVerdict
from raysys.features.examples import Examples
from raysys.learners import load_model
from raysys.learners.protocol import Compressible, Model
from raysys.learners.text import load_text_model
from raysys.learners.validation import NDCG
from raysys.registry import MODEL_FOLDER, BundleManifest, Registry
from raysys.stages.text import ROWS, folder_of, tables_of
from raysys.stages.text_settings import TextSettings
from raysys.storage import MANIFEST, Workspace, read_manifest
from raysys.text.compression.distil import Texts
from raysys.text.compression.runtime import RUNTIME


class Quality(Protocol):
    """How good a model is on validation; more is better."""

    @property
    def value(self) -> float:
        """Of the measure."""

    def loss_to(self, other: Any, seed: int) -> tuple[float, float, float]:
        """How much less than `other`'s, as a share of it, with its 95% interval (paired draws)."""


@dataclass(frozen=True)
class MeanQuality:
    """A measure that is a mean over requests.

    Attributes:
        each: float64[n], of every request; NaN where it says nothing.
    """

    each: npt.NDArray[np.float64]

    @property
    def value(self) -> float:
        """See `Quality`."""
        return float(np.nanmean(self.each))

    def loss_to(self, other: MeanQuality, seed: int) -> tuple[float, float, float]:
        """See `Quality.loss_to`."""
        whole, mine = other.each, self.each
        rng = np.random.default_rng(seed)
        draws = rng.integers(0, len(whole), (1000, len(whole)))
        means = np.nanmean(whole[draws], axis=1)
        shares = 1 - np.nanmean(mine[draws], axis=1) / np.where(means > 0, means, np.nan)
        low, high = np.nanpercentile(shares, [2.5, 97.5])
        return 1 - self.value / other.value, float(low), float(high)


@dataclass(frozen=True)
class JudgedQuality:
    """The criterion of a text task.

    Attributes:
        verdict: on the texts of `judge`.
        judge: draws for its intervals.
    """

    verdict: TextVerdict
    judge: TextJudge

    @property
    def value(self) -> float:
        """See `Quality`."""
        return self.verdict.figures[self.judge.criterion].value

    def loss_to(self, other: JudgedQuality, seed: int) -> tuple[float, float, float]:
        """See `Quality.loss_to`."""
        gain = self.judge.gain(self.verdict, other.verdict)
        whole = max(other.value, 1e-9)
        return -gain.value / whole, -gain.high / whole, -gain.low / whole


class Subject(Protocol):
    """A learner with a transformer inside.

    Attributes:
        measure: what `quality` is the mean of.
        encoder: the transformer's folder, below `learner`.
        learner: the learner's folder in the bundle.
        ground: what it is judged on, by name and fingerprint.
    """

    ground: dict[str, str]
    measure: str
    encoder: Path
    learner: Path

    def texts(self, limit: int) -> Texts:
        """Unlabelled texts, or pairs of them, to distil on; at most so many."""

    def quality(self, learner: Path) -> Quality:
        """Of the learner in a folder, with its transformer as it is there."""

    def vector_kinds(self) -> bool:
        """Whether it keeps vectors of items."""

    def vector_quality(self, kind: str) -> tuple[Quality, int]:
        """With its vectors kept as `kind`; and their bytes."""

    def publish(self, learner: Path, kind: str | None, note: dict[str, object]) -> str:
        """A new bundle with the learner of a folder and such vectors; returns its id."""


class RankingSubject:
    """A learner of a ranking bundle, judged by its own NDCG@10 on the validation fold.

    Where its transformer is judged, the vectors of all items that are ranked are made by it, though
    the bundle keeps those of the whole transformer: what is lost when both sides are the small
    one's bounds what is lost when the query's is.

    Args:
        workspace: with features that the bundle was trained on.
        bundle: a pointer or an id.
        name: of the learner; null: the first that has a transformer.
        requests: of the validation fold, drawn at random.
        seed: of the draw.

    Raises:
        UserError: nothing in the bundle to compress, or no features.
    """

    measure = "NDCG@10"

    def __init__(
        self, workspace: Workspace, bundle: str, name: str | None, requests: int, seed: int
    ) -> None:
        self.registry = Registry(workspace.registry)
        self.id = self.registry.resolve(bundle)
        self.manifest: BundleManifest = self.registry.verify(self.id)
        self.folder = self.registry.path(self.id)
        self.name, self.encoder = _with_transformer(self.folder / "learners", name, self.id)
        self.learner = self.folder / "learners" / self.name
        self.catalogue = Catalogue.load(workspace.features / "catalogue.parquet")
        features = read_manifest(workspace.features)
        self.ground = {"features": features.outcome}
        origin = self.manifest.data.get("features")  # a challenger of `raysys learn` names none
        if origin is not None and origin != features.fingerprint:
            raise UserError(
                f"the bundle was trained on other features ({origin}): it may have been fitted on "
                "what it would be judged by",
                where=self.id,
                mend="give --workspace of the bundle's own, or run `raysys train` on these",
            )
        fold = int(features.figures["folds"]["validation"])
        batch = Examples(workspace.features, (fold,)).batch()
        chosen = np.random.default_rng(seed).permutation(batch.n_requests)[:requests]
        self.batch = batch.take_requests(np.sort(chosen))
        self.ndcg = NDCG(self.batch)
        self.seed = seed

    def texts(self, limit: int) -> Texts:
        """Those of the catalogue."""
        distinct = sorted(set(self.catalogue.texts))
        if len(distinct) <= limit:
            return distinct
        drawn = np.random.default_rng(self.seed).choice(len(distinct), limit, replace=False)
        return [distinct[at] for at in np.sort(drawn)]

    def quality(self, learner: Path) -> Quality:
        """See `Subject`."""
        model = load_model(self.name, learner, self.catalogue)
        if isinstance(model, Compressible):
            shown = [self.batch.item, *self.batch.history]
            model = model.reencoded(np.unique(np.concatenate(shown)).astype(np.int32))
        return self._judged(model)

    def vector_kinds(self) -> bool:
        """See `Subject`."""
        return hasattr(load_model(self.name, self.learner, self.catalogue), "quantised")

    def vector_quality(self, kind: str) -> tuple[Quality, int]:
        """See `Subject`."""
        model = load_model(self.name, self.learner, self.catalogue)
        assert isinstance(model, Compressible)
        small = model.quantised(kind, seed=self.seed)
        assert isinstance(small, Compressible)
        return self._judged(small), small.vector_bytes

    def publish(self, learner: Path, kind: str | None, note: dict[str, object]) -> str:
        """See `Subject`."""

        def write(fresh: Path) -> None:
            shutil.copytree(self.folder, fresh, dirs_exist_ok=True)
            (fresh / MANIFEST).unlink()
            place = fresh / "learners" / self.name
            shutil.rmtree(place)
            place.mkdir()
            model = load_model(self.name, learner, self.catalogue)
            if kind is not None and isinstance(model, Compressible):
                model = model.quantised(kind, seed=self.seed)
            model.save(place)

        return _publish(self.registry, self.manifest, write, {self.name: note})

    def _judged(self, model: Model) -> Quality:
        return MeanQuality(self.ndcg.each(model.score(self.batch)))


class TextSubject:
    """A text task's bundle, judged by its criterion on the validation rows.

    Args:
        workspace: in which `raysys text fit` published the bundle.
        bundle: a pointer or an id.
        rows: of the validation split at most, drawn at random (whole queries, for relevance).
        seed: of the draw.

    Raises:
        UserError: nothing in the bundle to compress, or the rows it was fitted on are gone, be it
            for those of a later fit.
    """

    def __init__(self, workspace: Workspace, bundle: str, rows: int, seed: int) -> None:
        self.registry = Registry(workspace.registry)
        self.id = self.registry.resolve(bundle)
        self.manifest: BundleManifest = self.registry.verify(self.id)
        self.folder = self.registry.path(self.id)
        self.learner = self.folder / MODEL_FOLDER
        found = transformers_in(self.learner)
        if not found:
            raise UserError(
                "no transformer to compress in the bundle",
                where=f"bundle {self.id}",
                mend="its chosen learner counts words, which is small and fast already",
            )
        self.encoder = _only(found, self.learner, self.id)
        settings = TextSettings(**self.manifest.settings)
        path = folder_of(settings, workspace) / ROWS
        if not path.is_file():
            raise UserError(
                "the texts that the bundle was fitted on are not there",
                where=str(path),
                mend="run `raysys text fit` with the same --workspace again",
            )
        fitted = read_manifest(path.parent)
        self.ground = {"text": fitted.outcome}
        if (fitted.inputs, fitted.settings) != (self.manifest.data, self.manifest.settings):
            raise UserError(
                f"{settings.title} was fitted anew since the bundle (now "
                f"{fitted.figures['bundle']}), perhaps on what the bundle would be judged by",
                where=self.id,
                mend="compress the bundle of the latest `raysys text fit`, or fit with the "
                "bundle's settings and files again",
            )
        every = pl.read_parquet(path)
        self.train = every.filter(pl.col("split") == "train")
        held = every.filter(pl.col("split") == "validation")
        unit = components(held, settings.task)
        order = np.random.default_rng(seed).permutation(int(unit.max(initial=-1)) + 1)
        sizes = np.cumsum(np.bincount(unit)[order])
        taken = order[: max(1, int(np.searchsorted(sizes, rows, side="right")))]
        keep = np.isin(unit, taken)
        least = float(self.train["grade"].min()) if settings.task == "relevance" else 0.0  # type: ignore[arg-type]
        self.truth = tables_of(settings.task, held.filter(pl.Series(keep)))["validation"]
        self.judge = TextJudge(settings.task, self.truth, unit[keep], least_grade=least, seed=seed)
        self.measure = self.judge.criterion
        self.asked = ["query", "text"] if settings.task == "relevance" else ["text"]

    def texts(self, limit: int) -> Texts:
        """Those of the train rows, labels unread; with their queries, where both are read."""
        if load_text_model(self.learner).reads_pairs:
            pairs = self.train.select("query", "text").unique(maintain_order=True)
            return [(query, text) for query, text in pairs.head(limit).rows()]
        return self.train["text"].unique(maintain_order=True).head(limit).to_list()

    def quality(self, learner: Path) -> Quality:
        """See `Subject`."""
        model = load_text_model(learner)
        return JudgedQuality(
            self.judge.verdict(model.predict(self.truth.select(self.asked))), self.judge
        )

    def vector_kinds(self) -> bool:
        """It keeps none."""
        return False

    def vector_quality(self, kind: str) -> tuple[Quality, int]:
        """It keeps none."""
        raise ValueError("a text task has no vectors of items")

    def publish(self, learner: Path, kind: str | None, note: dict[str, object]) -> str:
        """See `Subject`."""

        def write(fresh: Path) -> None:
            shutil.copytree(self.folder, fresh, dirs_exist_ok=True)
            (fresh / MANIFEST).unlink()
            shutil.rmtree(fresh / MODEL_FOLDER)
            shutil.copytree(learner, fresh / MODEL_FOLDER)

        return _publish(self.registry, self.manifest, write, {self.manifest.surface: note})


def _publish(
    registry: Registry,
    manifest: BundleManifest,
    write: Callable[[Path], None],
    compressed: dict[str, object],
) -> str:
    """Another bundle of the same causes."""
    return registry.publish(
        write,
        name_hint=manifest.id.rpartition("-")[0] or manifest.id,
        surface=manifest.surface,
        learners=manifest.learners,
        data=manifest.data,
        settings=manifest.settings,
        figures={**manifest.figures, "compressed": compressed},
    )


def _with_transformer(root: Path, name: str | None, bundle: str) -> tuple[str, Path]:
    """Name of a learner, and its transformer's folder relative to the learner's."""
    found = {
        folder.name: transformers
        for folder in sorted(root.iterdir())
        if (transformers := transformers_in(folder))
    }
    if name is None and found:
        name = next(iter(found))
    if name is None or name not in found:
        there = ", ".join(found) or "none of its learners has one"
        raise UserError(
            f"no transformer to compress in {'the bundle' if name is None else name}",
            where=f"bundle {bundle}",
            mend=f"learners with a transformer: {there}",
        )
    return name, _only(found[name], root / name, bundle)


def _only(transformers: list[Path], learner: Path, bundle: str) -> Path:
    """A learner's transformer, relative to its folder.

    Raises:
        UserError: it has several: with one made faster the others cost what they did.
    """
    if len(transformers) > 1:
        there = ", ".join(str(place.relative_to(learner)) for place in transformers)
        raise UserError(
            f"{len(transformers)} transformers in one learner: only a learner with one can be "
            f"compressed ({there})",
            where=f"bundle {bundle}",
            mend="fit one that has a single transformer, rather than a blend of several",
        )
    return transformers[0].relative_to(learner)


def transformers_in(folder: Path) -> list[Path]:
    """Folders of whole Hugging Face models below a learner's folder.

    Raises:
        UserError: the transformer is compressed already.
    """
    places = sorted(path.parent for path in folder.rglob("config.json"))
    for place in places:
        if (place / RUNTIME).is_file():
            raise UserError(
                "its transformer is compressed already",
                where=str(place),
                mend="roll back to the bundle it was made of, or name that one's id",
            )
    return [place for place in places if any(place.glob("model*.safetensors"))]

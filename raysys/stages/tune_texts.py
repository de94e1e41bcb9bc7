"""What a search of a text learner is fitted and judged on: the outcome of `raysys text fit`.

Its rows and their splits are taken as they are, so that what a search finds can be compared with
what the task has, and nothing is judged by the test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from raysys.config import parse_settings
from raysys.datasets.splits import components
from raysys.errors import UserError
from raysys.evaluation.text_judge import Cut, TextJudge
from raysys.learners import LEARNERS
from raysys.learners.relevance_model import RelevanceModel
from raysys.learners.text import (
    TEXT_LEARNERS,
    make_text_learner,
    settings_for,
    text_learner_class,
)
from raysys.learners.text_protocol import Task, TextModel
from raysys.stages.text import ROWS, tables_of
from raysys.stages.text_augmentation import require_copies_fit, with_copies
from raysys.stages.text_judging import judge_of
from raysys.stages.text_relevant import calibrate, cut_of
from raysys.stages.text_settings import TextSettings
from raysys.storage import MANIFEST, Workspace, digest, file_digest, read_manifest
from raysys.tuning.ensemble import ENSEMBLE
from raysys.tuning.loggers import check_loggers
from raysys.tuning.metrics import OF_TEXTS, check_metrics
from raysys.tuning.settings import Pbt, Proxy, TuneSettings
from raysys.tuning.space import (
    NAMESPACES,
    Scalar,
    check_space,
    of_namespace,
    overlaid,
    starting_point,
)
from raysys.tuning.study import FULL, SEARCH
from raysys.tuning.texts import TextObjective

RESAMPLES = 100  # of intervals that no trial reports: the fewest that a judge draws


@dataclass(frozen=True)
class TextTask:
    """A fitted text task of the workspace.

    Attributes:
        folder: of its outcome.
        settings: by which it was fitted.
    """

    folder: Path
    settings: TextSettings

    @classmethod
    def open(cls, workspace: Workspace, name: str) -> TextTask:
        """Find it.

        Raises:
            UserError: there is none of that name; says which there are.
        """
        folder = workspace.text / name
        if not (folder / MANIFEST).is_file():
            there = sorted(path.parent.name for path in workspace.text.glob(f"*/{MANIFEST}"))
            raise UserError(
                f"no text task {name!r} in {workspace.root}",
                where="text",
                mend=f"there are {', '.join(there)}"
                if there
                else "run `raysys text fit` first, with the same --workspace",
            )
        content = read_manifest(folder).settings
        return cls(folder, parse_settings(TextSettings, content, where=str(folder)))

    @property
    def inputs(self) -> dict[str, str]:
        """What trials depend on; not which learners the task was fitted with."""
        told = self.settings.model_dump(
            mode="json", include={"task", "augmentation", "relevant_from"}
        )
        return {"text": digest([told, file_digest(self.folder / ROWS)])}

    def prepared(self, settings: TuneSettings) -> tuple[TuneSettings, dict[str, Scalar]]:
        """A search with what this task has told already, and the values that it starts from.

        What of the learner is neither searched nor set in the YAML of the search is as the task
        was fitted with, so that what is found there holds here.

        Raises:
            UserError: whatever cannot work.
        """
        told = self.settings.learners.get(settings.learner, {})
        start = check_texts(settings, self.settings.task, told)
        learner = make_text_learner(settings.learner, told, task=self.settings.task)
        require_copies_fit(self.settings, {settings.learner: learner})
        settings = with_objective(settings, self.settings.task)
        fixed = overlaid(without(told, settings.space), settings.settings)
        return settings.model_copy(update={"settings": fixed}), start

    def objective(
        self, settings: TuneSettings, study: str, folder: Path, proxy: Proxy | None = None
    ) -> TextObjective:
        """What the trials of a study do.

        Args:
            settings: of the search.
            study: its name.
            folder: of its checkpoints.
            proxy: what it is searched on; None: everything.

        Raises:
            UserError: validation texts that say nothing of any learner.
        """
        task, proxy = self.settings.task, proxy or Proxy()
        rows = pl.read_parquet(self.folder / ROWS)
        most = {"train": proxy.requests, "validation": proxy.validation_requests, "test": None}
        rows = pl.concat(  # the test is there for no copy to say what it says
            sample_rows(rows.filter(pl.col("split") == split), task, few, settings.seed)
            for split, few in most.items()
        )
        tables = with_copies(self.settings, tables_of(task, rows))
        held = rows.filter(pl.col("split") == "validation")
        _require_judgeable(held, task, few=proxy.validation_requests is not None)
        return TextObjective(
            learner=settings.learner,
            task=task,
            fixed=settings.settings,
            train=tables["train"],
            validation=tables["validation"],
            judging=self._judging(rows, tables),
            folder=folder,
            seed=settings.seed,
            grace=settings.grace if study == SEARCH else 0,
            every=settings.every,
            share=proxy.steps,
        )

    def objectives(self, settings: TuneSettings, folder: Path) -> Callable[[str], TextObjective]:
        """What gives the objective of each study; the best are refitted on everything."""

        def of_study(study: str) -> TextObjective:
            place = (folder / "scratch" / study).resolve()
            return self.objective(settings, study, place, None if study == FULL else settings.proxy)

        return of_study

    def _judging(self, rows: pl.DataFrame, tables: Mapping[str, pa.Table]) -> TextJudging:
        cut = cut_of(self.settings, tables)
        judge = judge_of(
            *(self.settings.task, rows, tables, "validation", cut), resamples=RESAMPLES
        )
        return TextJudging(judge, cut, tables["validation"])


@dataclass(frozen=True)
class TextJudging:
    """By what trials are compared: as `raysys text fit` compares learners; see `Judging`."""

    judge: TextJudge
    cut: Cut | None
    validation: pa.Table

    def finish(self, name: str, model: TextModel) -> None:
        """Calibrate a model that grades."""
        if isinstance(model, RelevanceModel) and self.cut is not None:
            calibrate(name, model, self.validation, self.cut)

    def figures(self, said: pa.Table) -> dict[str, float]:
        """Of predictions for the validation texts."""
        found = self.judge.verdict(said).figures
        return {name: each.value for name, each in found.items() if np.isfinite(each.value)}


def check_texts(
    settings: TuneSettings, task: Task | None = None, own: Mapping[str, Any] | None = None
) -> dict[str, Scalar]:
    """Hold a search of a text learner against what it searches, before anything is read.

    Args:
        settings: the YAML.
        task: of the texts; None: unknown, the learner's first.
        own: settings that the task was fitted with; None: unknown.

    Returns:
        The values that a search starts from.

    Raises:
        UserError: whatever cannot work.
    """
    where, name = f"tune {settings.folder_name}", settings.learner
    if name in LEARNERS or name == ENSEMBLE:
        raise UserError(
            f"{name} learns from requests, not from texts",
            where=f"{where}: text",
            mend="leave it out",
        )
    task = task or text_learner_class(name).tasks[0]
    settings = with_objective(settings, task)
    own = own or {}
    fixed = overlaid(without(own, settings.space), settings.settings)
    fixed = settings_for(name, fixed, task)
    learner = make_text_learner(name, fixed, task=task, where=f"{where}: settings")
    for namespace in NAMESPACES:
        if of_namespace(settings.space, namespace):
            raise UserError(
                f"texts have no settings of {namespace}",
                where=f"{where}: space",
                mend="`raysys text fit` reads and divides them: change its YAML",
            )
    check_space(settings.space, fixed, type(learner).settings_model, where=where)
    check_metrics(
        *(settings.objective.metric, settings.constraints, settings.objective.direction),
        OF_TEXTS[task],
    )
    check_loggers(settings.logging)
    if isinstance(settings.scheduler, Pbt):
        raise UserError(
            f"{name} has no settings that may change while it is fitted",
            where=f"{where}: scheduler",
            mend="choose asha, hyperband or none",
        )
    if settings.proxy is not None and settings.proxy.steps < 1 and learner.length() is None:
        raise UserError(
            f"{name} has no steps to take fewer of by these settings", where="proxy.steps"
        )
    started = make_text_learner(name, overlaid(own, settings.settings), task=task).settings
    return starting_point(settings.space, started, anywhere=True) or {}


def require_no_texts(settings: TuneSettings) -> None:
    """Refuse a text learner whose texts are not named.

    Raises:
        UserError: says how to name them.
    """
    if settings.learner in TEXT_LEARNERS:
        raise UserError(
            f"{settings.learner} learns from texts, and none are named",
            where=f"tune {settings.folder_name}",
            mend="run `raysys text fit`, and name its outcome: `text: text-classify`, say",
        )


def with_objective(settings: TuneSettings, task: Task) -> TuneSettings:
    """Settings whose objective, where none is given, is what `raysys text fit` chooses by."""
    if "metric" in settings.objective.model_fields_set:
        return settings
    goal = settings.objective.model_copy(update={"metric": OF_TEXTS[task][0]})
    return settings.model_copy(update={"objective": goal})


def without(settings: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Settings without some, by dotted name."""
    kept = dict(settings)
    for name in names:
        first, _, rest = name.partition(".")
        if first not in kept:
            continue
        if rest and isinstance(kept[first], Mapping):
            kept[first] = without(kept[first], [rest])
        else:
            del kept[first]
    return kept


def sample_rows(rows: pl.DataFrame, task: Task, most: int | None, seed: int) -> pl.DataFrame:
    """About so many rows, drawn by text, group or query: a list stays whole.

    Args:
        rows: `DRAFT`, of one split.
        task: whose.
        most: None: all.
        seed: of the draw.
    """
    if most is None or rows.height <= most:
        return rows
    unit = components(rows, task)
    sizes = np.bincount(unit)
    order = np.random.default_rng(seed).permutation(len(sizes))
    reached = np.cumsum(sizes[order])
    kept = order[: max(1, int(np.searchsorted(reached, most, side="right")))]
    return rows.filter(pl.Series(np.isin(unit, kept)))


def _grades_of_queries(held: pl.DataFrame) -> int:
    """The most that a query has."""
    most = held.group_by("query").agg(n=pl.col("grade").n_unique())["n"].to_list()
    return max(most, default=0)


def _require_judgeable(held: pl.DataFrame, task: Task, *, few: bool) -> None:
    """Look for something in the validation texts by which learners can be told apart.

    Raises:
        UserError: there is nothing.
    """
    if task == "entities" and not held["spans"].list.len().fill_null(0).sum():
        problem = "no validation text has a span"
    elif task == "relevance" and _grades_of_queries(held) < 2:
        problem = "no query of validation has texts of different grades"
    elif task in ("classify", "sentiment") and held["label"].n_unique() < 2:
        problem = "all validation texts have one label"
    else:
        return
    raise UserError(
        f"{problem}: trials cannot be told apart",
        where="validation",
        mend="raise proxy.validation_requests: these are a sample"
        if few
        else "give `raysys text fit` more texts, or another split",
    )

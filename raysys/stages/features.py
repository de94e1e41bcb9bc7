"""`raysys features`: from the log to examples, and the feature state at the log's end."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from raysys.cluster import ray_session
from raysys.errors import UserError
from raysys.features.chosen import Block, cut_blocks
from raysys.features.columns import families
from raysys.features.graded import label_rows
from raysys.features.labels import HOUR_MS
from raysys.features.numbered import NumberedLog
from raysys.features.numbering import number_log
from raysys.features.plan import CoVisitation
from raysys.features.position_log import CURVE, PAGE, read_curve, write_curve, write_shown
from raysys.features.replay import Recall
from raysys.features.requests import (
    DAY_MS,
    build_requests,
    fold_bounds,
)
from raysys.features.shown import LabelRows
from raysys.features.sizes import saved_state_size
from raysys.features.weeks import span_of_weeks
from raysys.features.work import Work
from raysys.ingest.spread import Below, OnRay, Spread
from raysys.progress import task
from raysys.stages.features_settings import FeaturesSettings, FromLog, FromRetrieval
from raysys.stages.features_start import parts_of, planned_features
from raysys.stages.text_vectors import make_vectors
from raysys.storage import (
    Manifest,
    Workspace,
    is_done,
    naming_full_disk,
    read_manifest,
    replacing,
    working_folder,
    write_atomic,
)

logger = logging.getLogger("raysys")

BLOCK_REQUESTS = 1_000
BLOCK_EVENTS = 200_000


def run(
    settings: FeaturesSettings,
    workspace: Workspace,
    *,
    force: bool = False,
    spread: Spread | None = None,
) -> Manifest:
    """Write examples by fold, requests, catalogue and state into `workspace.features`.

    What a killed run had done is not done again: its working folder stays until the stage is done,
    or is started with other settings.

    Args:
        settings: the YAML.
        workspace: of the shop.
        force: run although the outcome is there.
        spread: who does the pieces; None: tasks on Ray.

    Raises:
        UserError: no ingested log, folds that the log cannot fill, or a full disk.
    """
    upstream = read_manifest(workspace.ingest)
    planned = planned_features(settings, workspace)
    if not force and is_done(workspace.features, planned):
        return read_manifest(workspace.features)
    started = time.monotonic()
    marker = "events.type."
    types = [name.removeprefix(marker) for name in upstream.counts if name.startswith(marker)]
    for warning in settings.plan.idle(types):
        logger.warning(warning)
    session = ray_session() if spread is None else contextlib.nullcontext()
    with naming_full_disk(workspace.root):
        root = working_folder(workspace.features, planned, force)
        with session:
            work = Below(root, spread or OnRay())
            planned.counts, planned.figures = _work(settings, workspace, root, work)
        _publish(settings, workspace, root, planned, started)
    shutil.rmtree(root.parent)
    return planned


def _publish(
    settings: FeaturesSettings, workspace: Workspace, root: Path, planned: Manifest, started: float
) -> None:
    """Put what was made in the place of the last outcome; `started` is of `time.monotonic`."""
    with replacing(workspace.features) as folder:
        for kind in ("examples", "requests"):
            (root / "out" / kind).rename(folder / kind)
        (root / "catalogue.parquet").rename(folder / "catalogue.parquet")
        (root / "state").rename(folder / "state")
        if settings.position_bias is not None:
            shutil.copyfile(root / "position_bias" / PAGE, folder / PAGE)  # written but once
        planned.seconds = time.monotonic() - started
        planned.write(folder)


def _work(
    settings: FeaturesSettings, workspace: Workspace, root: Path, spread: Spread
) -> tuple[dict[str, int], dict[str, Any]]:
    """All pieces in a row; returns counts and figures of the manifest."""
    ingest = workspace.ingest
    work = Work(root, settings.plan, settings.candidates)
    catalogue = work.write_catalogue(ingest / "items.parquet")
    log = number_log(
        *(ingest / "events", catalogue, settings.group_by, root / "log", spread),
        seed=settings.seed,
    )
    folds = fold_bounds(settings, log.last + 1)
    parts = settings.parts or parts_of(root, len(log), spread.cpus)
    bias = _position_bias(settings, log, folds[-3], root / "position_bias", parts, spread)
    if bias is not None:  # the plan may read it
        write_atomic(workspace.root / CURVE, json.dumps(bias, indent=2) + "\n")
    make = partial(make_vectors, settings.plan, workspace, root / "models")
    work.write_resources(workspace.root, make)
    work.write_attributes(ingest / "users.parquet")
    step = int(settings.covisitation.refit_days * DAY_MS)
    needed = _asks_neighbours(settings)
    periods = range(folds[0], folds[-1], step) if needed else ()  # serving needs the last alone
    work = replace(work, moments=(*periods, folds[-1]), parts=parts)
    if isinstance(settings.examples, FromLog):
        blocks, recalls = _choose_logged(settings, settings.examples, work, ingest, folds, spread)
    else:
        blocks, recalls = _choose_retrieved(settings, work, ingest, folds, spread)

    def gathered(number: int) -> dict[str, Any]:
        return {"answer": [number, work.gather(blocks[number])["requests"]]}

    sizes = dict(_each(spread, "features: gathering", len(blocks), gathered))
    first = np.cumsum([0, *(sizes[block.number] for block in blocks)])
    kinds = families(settings.plan)
    pieces = [(k, part) for k in kinds for part in range(k.parts(parts))]
    pieces.sort(key=lambda piece: bool(piece[0].by))  # the whole ones take longest: first
    _each(
        *(spread, "features: replaying the log", len(pieces)),
        lambda n: work.replay(*pieces[n], blocks),
    )
    validation = len(folds) - 3
    splits = ["train"] * validation + ["validation", "report"]
    groups = np.array_split(np.arange(len(blocks)), min(len(blocks), 4 * spread.cpus))

    def write(number: int) -> None:
        if number == 0:  # it takes longest, and nothing can share it: first
            _state(work, kinds)
            return
        stitcher = work.stitcher()
        for at in groups[number - 1]:
            stitcher.stitch(blocks[at], splits[blocks[at].fold], int(first[at]))

    _each(spread, "features: writing examples and state", len(groups) + 1, write)
    state = saved_state_size(root / "state")
    counts = {
        "events": len(log),
        "users": len(log.users),
        "items": len(catalogue),
        "requests": sum(recall.requests for recall in recalls.values()),
        "examples": sum(recall.candidates for recall in recalls.values()),
        "state_records": state["records"],
        "state_bytes": state["bytes"],
    }
    figures = {
        "folds": {
            "train": list(range(validation)),
            "validation": validation,
            "report": validation + 1,
            "bounds": [str(np.datetime64(bound, "ms")) for bound in folds],
        },
        "names": list(settings.plan.names),
        "recall": {
            str(fold): {**asdict(recall), "recall": recall.found / max(1, recall.relevant)}
            for fold, recall in sorted(recalls.items())
        },
        "state": state,
        **({} if bias is None else {"position_bias": bias}),
    }
    return counts, figures


def _asks_neighbours(settings: FeaturesSettings) -> bool:
    """Whether anything of the examples comes from co-visitation: candidates, hard negatives."""
    if isinstance(settings.examples, FromRetrieval):
        return True
    negatives = settings.examples.negatives
    hard = negatives is not None and negatives.sizes[2] > 0
    return hard or any(isinstance(feature, CoVisitation) for feature in settings.plan.features)


def _position_bias(
    settings: FeaturesSettings,
    log: NumberedLog,
    end: int,
    folder: Path,
    parts: int,
    spread: Spread,
) -> dict[str, Any] | None:
    """The curve of `position_log`, of what happened before `end`; None if none is asked for."""
    bias = settings.position_bias
    if bias is None:
        return None
    told = _each(
        *(spread, "features: what was shown where", parts),
        lambda part: write_shown(log, settings.labels, end, folder, part, parts),
    )
    impressions = sum(each["impressions"] for each in told)
    _each(
        *(spread, "features: position bias", 1),
        lambda _: write_curve(bias, end, impressions, folder, parts),
    )
    return read_curve(folder)


def _choose_retrieved(
    settings: FeaturesSettings, work: Work, ingest: Path, folds: tuple[int, ...], spread: Spread
) -> tuple[list[Block], dict[int, Recall]]:
    """Requests of the log, and what retrieval would have offered."""
    with task("features: requests") as asking:
        requests = build_requests(work.log, settings)
        asking.note = f"{len(requests.frame):,} requests"
    times = requests.frame["time"].to_numpy()
    blocks = cut_blocks([int(at) for at in times[BLOCK_REQUESTS::BLOCK_REQUESTS]], folds)
    weeks = span_of_weeks(work.log, folds[0], folds[-1])
    _prepare(settings, work, ingest, weeks, spread, (int(times[0]), int(times[-1])))
    recalls = _each(
        *(spread, "features: choosing candidates", work.parts),
        lambda part: work.choose_retrieved(part, requests, blocks, settings.history),
    )
    return blocks, _sum(recalls)


def _choose_logged(
    settings: FeaturesSettings,
    examples: FromLog,
    work: Work,
    ingest: Path,
    folds: tuple[int, ...],
    spread: Spread,
) -> tuple[list[Block], dict[int, Recall]]:
    """What was shown or done."""
    blocks = cut_blocks(work.log.cuts(BLOCK_EVENTS), folds)
    weeks = span_of_weeks(work.log, folds[0], folds[-1])
    gains_of = labeller(settings, examples, folds)
    unsettled = _unsettled_ms(settings, examples, folds)

    def choose(part: int) -> dict[str, Any]:
        return work.choose_logged(
            *(part, gains_of, blocks),
            events=examples.events,
            share=examples.share,
            keep_empty=examples.keep_empty,
            inferred=examples.inferred,
            heaviest=examples.heaviest,
            negatives=examples.negatives,
            unsettled_ms=unsettled,
            history=settings.history,
            seed=settings.seed,
        )

    if examples.negatives is None:  # choosing needs nothing of what is prepared: beside it
        jobs = _preparations(settings, work, ingest, weeks)
        done = _each(
            *(spread, "features: baskets, promotions, choosing examples", len(jobs) + work.parts),
            lambda n: choose(n - len(jobs)) if n >= len(jobs) else jobs[n](),
        )
        recalls = [answer for answer in done if "recall" in answer]
        _fit_neighbourhoods(settings, work, spread)
    else:
        _prepare(settings, work, ingest, weeks, spread, (folds[0], folds[-1] - 1))
        recalls = _each(spread, "features: choosing examples", work.parts, choose)
    return blocks, _sum(recalls)


def _unsettled_ms(settings: FeaturesSettings, examples: FromLog, folds: tuple[int, ...]) -> int:
    """How long before a fold's end impressions have no final label yet (`longest_ms`).

    Raises:
        UserError: a fold is no longer than that.
    """
    if "impression" not in examples.events:
        return 0
    longest = settings.labels.longest_ms
    shortest = min(end - start for start, end in pairwise(folds))
    if longest >= shortest:
        raise UserError(
            f"what comes of an impression is known after {longest / HOUR_MS:g} hours, "
            f"and a fold has {shortest / HOUR_MS:g}: none would have a final label",
            where="features: labels.windows_hours",
            mend="shorten the windows of event types that are worth something, or lengthen "
            "train_days ÷ train_folds, validation_days and report_days",
        )
    return longest


def labeller(settings: FeaturesSettings, examples: FromLog, folds: tuple[int, ...]) -> LabelRows:
    """What gives rows their gains."""
    window = int(examples.within_minutes * 60_000)
    return partial(label_rows, settings=settings.labels, folds=folds, window_ms=window)


def _prepare(
    settings: FeaturesSettings,
    work: Work,
    ingest: Path,
    weeks: tuple[int, int],
    spread: Spread,
    asked: tuple[int, int] | None = None,
) -> None:
    """What all parts share: promotions, neighbourhoods, and what sells if it is asked for."""
    jobs = _preparations(settings, work, ingest, weeks)
    if asked is not None:
        amounts = isinstance(settings.examples, FromLog)  # negatives are drawn by them
        jobs.append(lambda: work.write_popular(*asked, amounts=amounts))
    _each(spread, "features: baskets, promotions, what sells", len(jobs), lambda n: jobs[n]())
    _fit_neighbourhoods(settings, work, spread)


def _preparations(
    settings: FeaturesSettings, work: Work, ingest: Path, weeks: tuple[int, int]
) -> list[Callable[[], None]]:
    """Baskets, with the neighbourhood if it is only one; and promotions. The longest first."""

    def baskets() -> None:
        work.write_baskets()
        if len(work.moments) == 1:
            work.fit_neighbourhood(0, settings.covisitation)

    return [
        baskets,
        lambda: work.write_promotions(ingest / "promotions.parquet", *weeks),
    ]


def _fit_neighbourhoods(settings: FeaturesSettings, work: Work, spread: Spread) -> None:
    """One for each period, as far as they are not fitted yet."""
    if len(work.moments) == 1:
        return
    _each(
        *(spread, "features: items bought together", len(work.moments)),
        lambda epoch: work.fit_neighbourhood(epoch, settings.covisitation),
    )


def _each(
    spread: Spread, name: str, n: int, do: Callable[[int], dict[str, Any] | None]
) -> list[Any]:
    """Every piece of a step, with its progress."""
    answers = []
    with task(name, n) as step:
        for answer in spread.each(n, do, name.removeprefix("features: ")):
            answers.append(answer.get("answer", answer))
            step.advance()
    return answers


def _state(work: Work, kinds: Any) -> None:
    if (work.root / "state").exists():
        return
    folder = work.root / ".state"
    shutil.rmtree(folder, ignore_errors=True)
    work.write_state(kinds, folder)
    folder.rename(work.root / "state")


def _sum(answers: list[dict[str, Any]]) -> dict[int, Recall]:
    """The recalls of all parts together, by fold."""
    total: dict[int, Recall] = {}
    for answer in answers:
        for fold, recall in answer["recall"].items():
            mine = total.setdefault(int(fold), Recall())
            for name, value in recall.items():
                setattr(mine, name, getattr(mine, name) + value)
    return total

"""What `raysys text fit` learns from: files and the workspace's log, read and divided."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from raysys.datasets import files, labelled
from raysys.datasets.labelled_names import settled
from raysys.datasets.splits import SPLITS, Divided, SplitSettings, distinct, divide, sampled
from raysys.progress import task
from raysys.stages.text_settings import TextSettings
from raysys.storage import Workspace, read_manifest
from raysys.text.behaviour_source import (
    JOIN,
    BehaviourSource,
    as_judged,
    notes_on_models,
    pairs_of_log,
)
from raysys.text.items import COLUMNS
from raysys.text.spans import attributes_to_spans

log = logging.getLogger("raysys")

Found = Sequence[Sequence[files.Part]]


def with_columns(settings: TextSettings) -> TextSettings:
    """Settings whose files name every column that the task needs.

    Raises:
        UserError: a column that nothing tells.
    """
    told = iter(settled(settings.files, settings.task))
    sources = tuple(
        each if isinstance(each, BehaviourSource) else next(told) for each in settings.sources
    )
    return settings.model_copy(update={"sources": sources})


def inputs_of(settings: TextSettings, found: Found, workspace: Workspace) -> dict[str, str]:
    """Fingerprints of all that the sources read.

    Raises:
        UserError: behaviour is among them, and nothing was ingested.
    """
    items = labelled.find_items(settings.files)
    told = {
        f"{number}{kind}/{part.label}": files.fingerprint(part)
        for kind, of_sources in (("", found), (".items", items))
        for number, parts in enumerate(of_sources)
        for part in parts
    }
    if settings.behaviour is not None:
        told["behaviour"] = read_manifest(workspace.ingest).outcome
    return told


def text_columns(settings: TextSettings) -> tuple[tuple[str, ...], str]:
    """The columns that a text was made of, and what stood between: of the files, if there are."""
    for source in settings.files:
        columns = getattr(source, "items", None) or source
        return columns.text or ("text",), columns.join  # tokens make a text without a name
    behaviour = settings.behaviour
    assert behaviour is not None
    return behaviour.text or COLUMNS, JOIN


def read_and_divide(
    settings: TextSettings, found: Found, workspace: Workspace, unlabelled: bool
) -> tuple[labelled.Labelled, Divided]:
    """What the sources say, divided; texts without a label too, if a learner puts them to use.

    Raises:
        UserError: nothing to learn from, or a split that stays empty.
    """
    read = _judged(settings, found, unlabelled) if settings.files else None
    behaviour = settings.behaviour
    if behaviour is not None:
        weak = _weak(settings, behaviour, workspace, alone=read is None)
    with task("text: dividing") as dividing:
        if behaviour is None:
            assert read is not None
            divided = divide(read, settings.split, settings.task)
        elif read is None:
            read = weak
            divided = divide(weak, _given(settings.split), settings.task)
            seen = notes_on_models(behaviour, workspace.ingest, settings.split, settings.learners)
            divided = Divided(divided.rows, divided.aside, "time", (*divided.notes, *seen))
        else:
            divided = _together(settings, behaviour, read, weak)
            rows = pl.concat([read.rows, weak.rows])
            read = labelled.Labelled(rows, read.aside, read.read + weak.read, read.notes)
        told = dict(divided.rows["split"].value_counts().rows())
        dividing.note = f"{divided.by}: " + ", ".join(f"{name} {told[name]:,}" for name in SPLITS)
    for note in divided.notes:
        log.warning("%s", note)
    return read, divided


def locate(text: str, values: Mapping[str, Sequence[str]]) -> tuple[list[dict[str, Any]], int]:
    """See `labelled.Locate`."""
    located = attributes_to_spans(text, values, absent=())
    return [vars(span) for span in located.spans], len(located.missed)


def _judged(settings: TextSettings, found: Found, unlabelled: bool) -> labelled.Labelled:
    """What the files say."""
    with task("text: reading") as reading:
        read = labelled.read(
            *(settings.files, found, settings.task, locate, reading.advance),
            unlabelled=unlabelled,
        )
        rows = distinct(read.rows, settings.task) if settings.distinct else read.rows
        rows = sampled(rows, settings.sample, settings.seed)
        reasons = [f"{count:,} {name}" for name, count in read.reasons.items()]
        reading.note = f"{rows.height:,} of {read.read:,} rows" + (
            f"; aside: {', '.join(reasons)}" if reasons else ""
        )
    return labelled.Labelled(rows, read.aside, read.read, read.notes)


def _weak(
    settings: TextSettings, source: BehaviourSource, workspace: Workspace, *, alone: bool
) -> labelled.Labelled:
    """What the log says."""
    with task("text: behaviour") as reading:
        rows = pairs_of_log(source, workspace.ingest, settings.split if alone else None)
        taken = sampled(rows, settings.sample, settings.seed)
        reading.note = f"{taken.height:,} pairs of {taken['query'].n_unique():,} queries"
    return labelled.Labelled(taken, pl.DataFrame(schema=labelled.QUARANTINE), rows.height)


def _together(
    settings: TextSettings,
    source: BehaviourSource,
    judged: labelled.Labelled,
    weak: labelled.Labelled,
) -> Divided:
    """Judgements divided as they would be alone; the log's pairs join their train.

    Those of queries that validation or test ask as well go aside.
    """
    divided = divide(judged, settings.split, settings.task)
    teaching = divided.rows.filter(pl.col("split") == "train")
    joining = as_judged(weak.rows, teaching, source).with_columns(split=pl.lit("train"))
    rows = pl.concat([divided.rows, joining])
    whole = divide(labelled.Labelled(rows, judged.aside), _given(settings.split), settings.task)
    note = f"{joining.height - whole.aside.height:,} pairs of train come from behaviour"
    aside = pl.concat([divided.aside, whole.aside])
    return Divided(whole.rows, aside, divided.by, (*divided.notes, note))


def _given(split: SplitSettings) -> SplitSettings:
    """Keeps the splits that rows have."""
    return split.model_copy(update={"by": "given", "names": {}})

"""Stage 1: a shop's log, whatever its form, into clean events, items and users by date."""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from raysys.cluster import ray_session
from raysys.config import Settings, StageSettings
from raysys.datasets import complete_journey, ga4, metarank, snowplow, ubi
from raysys.datasets import event_log as rolled_log
from raysys.datasets.mapping import EventFiles, ItemFiles, UserFiles
from raysys.datasets.source import Source
from raysys.ingest import pipeline, quality
from raysys.ingest.impressions import ImpressionSettings
from raysys.ingest.reading import has_come
from raysys.ingest.rule_settings import RuleSettings
from raysys.ingest.rules import Limits
from raysys.ingest.sessions import SessionSettings
from raysys.ingest.spread import Below, OnRay, Spread
from raysys.ingest.store import Store
from raysys.progress import task
from raysys.storage import Manifest, Workspace, is_done, naming_full_disk, read_manifest, replacing

logger = logging.getLogger("raysys")


class CompleteJourneySource(Settings):
    """The packaged grocery log; needs no other file."""

    kind: Literal["complete_journey"] = "complete_journey"


class FileSource(Settings):
    """A shop's own files, each with a mapping into the vocabulary."""

    kind: Literal["files"] = "files"
    title: str = "Behaviour log"
    events: tuple[EventFiles, ...] = Field(min_length=1)
    items: tuple[ItemFiles, ...] = ()
    users: tuple[UserFiles, ...] = ()


class IngestSettings(StageSettings):
    """What `raysys ingest --config` takes."""

    kind_name: ClassVar[str] = "ingest"

    source: Annotated[
        CompleteJourneySource
        | FileSource
        | ubi.UbiSource
        | ga4.GA4Source
        | snowplow.SnowplowSource
        | metarank.MetarankSource
        | rolled_log.EventLogSource,
        Field(discriminator="kind"),
    ]
    event_log: str | None = None
    """Folder of an event log, whose rolled files are read as well: what happened since."""

    limits: Limits = Limits()
    rules: RuleSettings = RuleSettings()
    sessions: SessionSettings = SessionSettings()
    impressions: ImpressionSettings = ImpressionSettings()


def run(
    settings: IngestSettings,
    workspace: Workspace,
    *,
    force: bool = False,
    spread: Spread | None = None,
) -> Manifest:
    """The manifest of `workspace.ingest`, which is written unless it holds this outcome already.

    Args:
        settings: the YAML.
        workspace: of the shop.
        force: run although the outcome is there, and read everything anew: nothing that is kept
            of earlier runs stands. A run after one that was cut off goes on with what that read.
        spread: who does the pieces; None: tasks on Ray.

    Raises:
        UserError: files that are not there, a mapping that does not fit them, nothing left, a full
            disk.
    """
    began = time.monotonic()
    source = _source(settings)
    if settings.event_log is not None:
        source = rolled_log.beside(source, settings.event_log)
    inputs = pipeline.inspect(source)
    manifest = Manifest(
        stage="ingest",
        inputs=inputs.named(),
        settings=settings.model_dump(mode="json"),
    )
    store = Store(workspace.pieces)
    if not force and is_done(workspace.ingest, manifest):
        done = read_manifest(workspace.ingest)
        wanted = store.begun  # empty, too, where somebody deleted the store: its outcome stands
        forgotten = wanted and wanted != done.figures.get("begun")
        if not forgotten and not has_come(done.figures.get("ahead"), settings.rules):
            return done
    treatment = pipeline.Treatment(
        settings.limits, settings.rules, settings.sessions, settings.impressions
    )
    session = ray_session() if spread is None else contextlib.nullcontext()
    work = Below(store.root, spread or OnRay())
    with naming_full_disk(workspace.root), session, replacing(workspace.ingest) as folder:
        if force:
            store.begin_anew()  # the old outcome has names of its own for what it is made of
        else:
            store.recover()
        outcome = pipeline.ingest(source, inputs, treatment, folder, work, store)
        manifest.variant = _variant(outcome, store.begun)
        manifest.inputs = inputs.named(outcome.unread)
        manifest.counts = counts(outcome)
        manifest.figures = {**figures(outcome), "begun": store.begun}
        with task("quality report"):
            page = folder / "report.html"
            quality.write_report(outcome, source.title, settings.limits, page, settings.rules)
        manifest.seconds = round(time.monotonic() - began, 2)
        manifest.write(folder)
    _warn_of_unread(outcome)
    return manifest


def _variant(outcome: pipeline.Outcome, begun: str) -> str:
    """What tells an outcome from others of the same files, by which later stages know it.

    A forced run was asked for because fingerprints do not tell all: what is made of what it read is
    told by its mark, `begun`. Of files that storage did not give, another part may come in each
    time; and rows that lay in the future come in without any file's change.
    """
    if outcome.unread:
        return uuid.uuid4().hex
    ahead = "" if outcome.ahead is None else f"without what is later than {outcome.ahead}"
    return " ".join(filter(None, [begun and f"read anew {begun}", ahead]))


def _warn_of_unread(outcome: pipeline.Outcome) -> None:
    """Say which files storage did not give: the outcome is without them, and not done."""
    if outcome.unread:
        named = sorted(outcome.unread)
        more = f" and {len(named) - 5:,} more" if len(named) > 5 else ""
        logger.warning(
            "%d files could not be read, and the next run tries them again: %s%s",
            *(len(named), ", ".join(named[:5]), more),
        )


def counts(outcome: pipeline.Outcome) -> dict[str, int]:
    """Rows of every table, in and out, by reason; for each `in == out + quarantined`."""
    flat: dict[str, int] = {}
    for table, tally in outcome.tallies.items():
        flat[f"{table}.in"] = tally.rows_in
        flat[f"{table}.out"] = tally.rows_out
        flat[f"{table}.quarantined"] = tally.quarantined
        flat |= {f"{table}.quarantined.{r}": n for r, n in sorted(tally.reasons.items())}
        flat |= {f"{table}.mended.{r}": n for r, n in sorted(tally.mended.items())}
        flat |= {f"{table}.flagged.{r}": n for r, n in sorted(tally.kept.items())}
        flat |= {f"{table}.ignored.{r}": n for r, n in sorted(tally.ignored.items())}
        flat |= {f"{table}.added.{r}": n for r, n in sorted(tally.added.items())}
    for side in outcome.tables:
        name = side["name"]
        flat[f"{name}.in"] = side["rows_in"]
        flat[f"{name}.out"] = side["rows_out"]
        flat[f"{name}.left_out.{side['reason']}"] = side["rows_in"] - side["rows_out"]
    flat |= {f"events.type.{name}": count for name, count in sorted(outcome.log.types.items())}
    return flat


def figures(outcome: pipeline.Outcome) -> dict[str, Any]:
    """The log in a few numbers, and examples of what the rules found."""
    log, entities = outcome.log, outcome.entities
    return {
        "users": log.users,
        "users_described": entities.described_users,
        "items": entities.items,
        "items_seen": entities.items_seen,
        "items_unknown": entities.unknown_items,
        "sessions": log.sessions,
        "orders": log.orders,
        "first": quality.moment(log.first),
        "last": quality.moment(log.last),
        "ahead": outcome.ahead,
        "revenue": {currency: round(amount, 2) for currency, amount in log.revenue.items()},
        "examples": {table: tally.examples for table, tally in outcome.tallies.items()},
    }


def _source(settings: IngestSettings) -> Source:
    chosen = settings.source
    match chosen:
        case CompleteJourneySource():
            return complete_journey.source()
        case ubi.UbiSource():
            return ubi.source(chosen)
        case ga4.GA4Source():
            return ga4.source(chosen)
        case snowplow.SnowplowSource():
            return snowplow.source(chosen)
        case metarank.MetarankSource():
            return metarank.source(chosen)
        case rolled_log.EventLogSource():
            return rolled_log.source(chosen)
    return Source(chosen.title, chosen.events, chosen.items, chosen.users)

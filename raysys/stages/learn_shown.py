"""Requests out of what was shown: logged examples of the window, as the features stage has them.

Their labels stop at the end of their part: no part knows of the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from raysys.errors import UserError
from raysys.features.chosen import cut_blocks, gather, read_block
from raysys.features.live import LiveFeatures
from raysys.features.log import EventColumns
from raysys.features.numbered import LogSlice
from raysys.features.shown import choose_shown
from raysys.stages.features import labeller
from raysys.stages.features_settings import FeaturesSettings, FromLog
from raysys.stages.learn_events import COLUMNS, PARTS, Requests, Window, new_queries
from raysys.stages.learn_settings import WindowSettings


@dataclass(frozen=True)
class RecentLog:
    """A stretch of the log in memory, as `choose_shown` reads it.

    Attributes:
        users: user_id by number.
        whole: its events.
        answers: request_id by hash.
    """

    users: list[str]
    whole: LogSlice
    answers: dict[int, str]

    def slices(self) -> Iterator[LogSlice]:
        """All of it at once."""
        yield self.whole

    def answer_names(self, answers: npt.NDArray[np.int64]) -> list[str | None]:
        """request_id of some answers."""
        return [self.answers.get(answer) for answer in answers.tolist()]


def build_shown(
    frame: pl.DataFrame,
    events: EventColumns,
    window: Window,
    live: LiveFeatures,
    features: FeaturesSettings,
    settings: WindowSettings,
    scratch: Path,
) -> Requests:
    """Requests of the window with the rows that were shown.

    Args:
        frame: the events as read.
        events: the same as numbers.
        window: and its parts.
        live: knows the users.
        features: how examples are drawn, and what labels are worth.
        settings: how many of each part; those that began within the gap before its end are left
            out, as hardly anything could come of them.
        scratch: an empty folder.

    Raises:
        UserError: negatives would have to be drawn.
    """
    examples = features.examples
    assert isinstance(examples, FromLog)
    if examples.negatives is not None:
        raise UserError(
            "the champion was trained on negatives that were drawn, not shown",
            where="features: examples.negatives",
            mend="train it anew on the longer log: `raysys ingest`, `features`, `train`",
        )
    hashed = frame["request_id"].hash().reinterpret(signed=True)
    answer = np.where(frame["request_id"].is_null().to_numpy(), 0, hashed.to_numpy())
    names = dict(zip(hashed.to_list(), frame["request_id"].to_list(), strict=True))
    probability = frame["sampling_probability"].cast(pl.Float32).fill_null(float("nan"))
    week = frame["week"].cast(pl.Int32).fill_null(-1).to_numpy()
    # a query that the state does not know has a number for as long as rows are chosen
    fresh, texts = new_queries(frame, live)
    known = len(live.queries)
    numbered = replace(events, query=np.where(fresh >= 0, known + fresh, events.query))
    whole = LogSlice(0, numbered, week, answer, probability.to_numpy())
    log = RecentLog(live.users, whole, names)
    blocks = cut_blocks([], window.bounds)
    choose_shown(
        *(log, live.plan, labeller(features, examples, window.bounds), blocks),  # type: ignore[arg-type]
        *(scratch / "chosen", 0, 1),
        events=examples.events,
        share=examples.share,
        keep_empty=examples.keep_empty,
        inferred=examples.inferred,
        heaviest=examples.heaviest,
        history=1,  # the state knows it
        seed=features.seed,
    )
    gap = round(settings.gap_minutes * 60_000)
    most = (settings.tune_requests, settings.blend_requests, settings.gate_requests)
    found, drawn, rows, first = [0] * len(PARTS), [], [], 0
    for block in blocks:
        gather(scratch / "chosen", 1, block, scratch / "blocks")
        requests = read_block(scratch / "blocks", "requests", block).with_row_index("at")
        settled = requests.filter(
            pl.col("time") + gap < block.end, pl.col("time") > window.since + gap
        )
        found[block.fold] = len(settled)
        kept = settled.bottom_k(
            min(most[block.fold], len(settled)), by=pl.col("request_id").hash(features.seed)
        ).sort("at")
        kept = kept.with_columns(
            fold=pl.lit(block.fold, pl.Int32),
            request=pl.int_range(first, first + len(kept), dtype=pl.Int32, eager=True),
        )
        first += len(kept)
        own = read_block(scratch / "blocks", "rows", block).join(
            kept.select(pl.col("at").cast(pl.Int32), "request"), on="at", maintain_order="left"
        )
        drawn.append(kept)
        rows.append(own.drop("at", "retrieved"))
    told = pl.concat(drawn).with_columns(
        text=(pl.col("query") - known).replace_strict(
            dict(enumerate(texts)) or {0: None}, default=None, return_dtype=pl.String
        ),
        query=pl.when(pl.col("query") < known).then("query").otherwise(-1).cast(pl.Int32),
    )
    told = told.select(*COLUMNS, "request_id")
    shown = pl.concat(rows)
    relevant = shown.filter(pl.col("label") > 0).select("request", "item", "label")
    return Requests(told, relevant, (found[0], found[1], found[2]), shown)

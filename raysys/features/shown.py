"""Examples out of the log itself: what was shown or done, as it was.

Rows that react to one answer (`request_id`) are a request; without one, what a user was shown or
did at one moment. A task has some of the users, whole, so that it sees what came of each row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from numba import njit

from raysys.features.attribution import slot_of
from raysys.features.chosen import REQUEST_COLUMNS, ROW_COLUMNS, Block, Chooser, rows_of
from raysys.features.log import EventColumns
from raysys.features.negative_rows import NegativeDraw, NegativeSources
from raysys.features.numbered import LogSlice, NumberedLog
from raysys.features.plan import FeaturePlan
from raysys.features.replay import Recall
from raysys.features.table import idle_ms
from raysys.schema import EVENT_TYPES

Bool = npt.NDArray[np.bool_]
Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

LabelRows = Callable[[LogSlice], Float32]
"""Gains of rows, float32[n]: given all events of some users, in time order, without what they cost,
how many were bought and their order."""

_LOOKED_AT = ("user", "item", "kind", "time", "store", "session", "query", "position")


def label_in_session(
    rows: LogSlice, gains: Float32, window_ms: int, known: Int64 | None = None
) -> Float32:
    """The best that came of each row: float32[n].

    That is the highest gain among the row's own event type and what the user did with the same
    item later in the same session, within the window.

    Args:
        rows: all events of some users, in time order.
        gains: float32[k] by event type, 0 for what is no success.
        window_ms: how long after the row something still counts as its outcome.
        known: int64[n], the last moment (UTC ms) of which each row may know; None: all may.
    """
    events = rows.events
    until = events.time + window_ms
    if known is not None:
        np.minimum(until, known, out=until)
    gain = gains[events.kind]
    return _best_later(events.user, events.item, events.session, events.time, gain, until)


def choose_shown(
    log: NumberedLog,
    plan: FeaturePlan,
    label_rows: LabelRows,
    blocks: Sequence[Block],
    folder: Path,
    part: int,
    parts: int,
    *,
    events: Sequence[str],
    share: float = 1.0,
    keep_empty: bool = False,
    inferred: str = "use",
    heaviest: float = 50.0,
    negatives: NegativeSources | None = None,
    unsettled_ms: int = 0,
    history: int = 24,
    seed: int = 0,
) -> dict[int, Recall]:
    """Choose examples among the events of one part's users.

    Args:
        log: what happened.
        plan: says which events make a user's history and orders (tables `user_item`, `user`).
        label_rows: gives the gains.
        blocks: cover the time of the requests.
        folder: of what is chosen.
        part, parts: whose users.
        events: types of the rows that become examples.
        share: of the requests, drawn by a hash of what they are, so that a longer log keeps them.
        keep_empty: keep requests that nothing came of.
        inferred: what becomes of impressions that ingest concluded: `use`, `weigh` by the inverse
            of the probability with which they were drawn, or `leave_out`.
        heaviest: most that a row weighs.
        negatives: each row with a gain above 0 draws rows that were not wanted; None: no row is
            made up.
        unsettled_ms: requests that began so shortly before their fold's end are left out: their
            labels may still change after it.
        history: items of the user kept with each request.
        seed: of the draw.

    Returns:
        per fold, how much was chosen; all that was relevant is found.
    """
    rows = _of_part(log, part, parts)
    labels = label_rows(rows)
    frame = _frame(rows, log, labels, events, seed)
    if inferred == "leave_out":
        frame = frame.filter(pl.col("probability").is_nan())
    frame = frame.filter(pl.col("chance") <= pl.lit(min(2**64 - 1, int(share * 2**64)), pl.UInt64))
    frame = frame.sort("user", maintain_order=True)  # by user, then by time
    drawn = pl.col("probability").cast(pl.Float64).fill_nan(1.0).max()
    weight = (1 / drawn).clip(upper_bound=heaviest) if inferred == "weigh" else pl.lit(1.0)
    items = frame.group_by("answer", "key", "item", maintain_order=True).agg(
        pl.col("label").max(),
        pl.col("position").first(),
        weight.alias("weight"),
        sampling_probability=drawn,
    )
    requests = frame.group_by("answer", "key", maintain_order=True).agg(
        pl.col("user", "time", "store", "week", "session", "query").first()
    )  # rows of a user are in time order: the first is the request's moment
    relevant = items.group_by("answer", "key").agg(
        n_relevant=(pl.col("label") > 0).sum().cast(pl.Int32)
    )
    requests = requests.join(relevant, on=["answer", "key"]).sort("user", "time", "answer", "key")
    low, high = blocks[0].start, blocks[-1].end
    requests = requests.filter(pl.col("time").is_between(low, high, closed="left"))
    if unsettled_ms:
        ends = np.array(sorted({block.fold: block.end for block in blocks}.values()))
        moments = requests["time"].to_numpy()
        end = ends[np.searchsorted(ends, moments, side="right")]
        requests = requests.filter(pl.Series(moments < end - unsettled_ms))
    if not keep_empty:
        requests = requests.filter(pl.col("n_relevant") > 0)
    requests = _with_past(requests, rows, plan, history).pipe(_named, log)
    requests = requests.with_row_index("request")
    items = items.join(requests.select("answer", "key", "request"), on=["answer", "key"])
    block_of = np.searchsorted([b.start for b in blocks[1:]], requests["time"], side="right")
    requests = requests.with_columns(block=pl.Series(block_of, dtype=pl.Int32))
    requests = requests.sort("block", maintain_order=True)
    ends = np.searchsorted(requests["block"], np.arange(len(blocks)), side="right")
    starts = np.concatenate([[0], ends[:-1]])
    place = np.empty(len(requests), dtype=np.int64)
    place[requests["request"].to_numpy()] = np.arange(len(requests))
    items = items.with_columns(at=pl.Series(place[items["request"].to_numpy()]))
    items = items.sort("at", "position", "item")
    item_ends = np.searchsorted(items["at"], ends)
    item_starts = np.concatenate([[0], item_ends[:-1]])
    chooser = Chooser(folder, part)
    draw = None if negatives is None else NegativeDraw(negatives, log)
    recalls: dict[int, Recall] = {}
    for n, block in enumerate(blocks):
        mine = requests[starts[n] : ends[n]]
        chosen = items[item_starts[n] : item_ends[n]].with_columns(
            at=(pl.col("at") - int(starts[n])).cast(pl.get_index_type()), retrieved=True
        )
        if draw is not None:
            chosen = draw.add(block, mine, chosen).sort("at", "position", "item")
        chosen = chosen.select(*ROW_COLUMNS)
        chooser.write(mine.select(*REQUEST_COLUMNS), chosen)
        recall = recalls.setdefault(block.fold, Recall())
        found = int(mine["n_relevant"].sum())
        recall.requests += len(mine)
        recall.candidates += len(chosen)
        recall.relevant += found
        recall.found += found
    chooser.close()
    return recalls


def _of_part(log: NumberedLog, part: int, parts: int) -> LogSlice:
    """All events of a part's users, in the order of the log, as far as they are looked at."""
    pieces = []
    for each in log.slices():
        mine = rows_of(each.events.user, part, parts)
        pieces.append(replace(each, events=each.events.only(_LOOKED_AT)).take(mine))
    return LogSlice.concat(pieces)


def _frame(
    rows: LogSlice, log: NumberedLog, labels: Float32, kinds: Sequence[str], seed: int
) -> pl.DataFrame:
    """Rows that may become examples, with what names their request and their place in the draw."""
    events = rows.events
    wanted = np.flatnonzero(np.isin(EVENT_TYPES, kinds)[events.kind] & (events.item >= 0))
    picked = events.take(wanted)
    store = _last_stores(events)[wanted]
    answer = rows.answer[wanted]
    users = pl.Series(log.users).hash(seed)
    by_moment = np.where(answer == 0, picked.time, 0)
    own = users.gather(picked.user) if len(picked) else users.clear()
    return pl.DataFrame(
        {
            **{n: getattr(picked, n) for n in ("user", "item", "time", "session", "query")},
            "position": picked.position,
            "store": store,
            "week": rows.week[wanted],
            "label": labels[wanted],
            "probability": rows.probability[wanted],
            "answer": answer,
            "key": by_moment,
            "own": own,
        }
    ).with_columns(
        # an answer is of one user, but a moment may be of many
        key=pl.when(pl.col("answer") == 0).then(pl.struct("user", "key").hash()).otherwise(0),
        chance=pl.when(pl.col("answer") == 0)
        .then(pl.struct("own", "key").hash(seed))
        .otherwise(pl.col("answer").hash(seed)),
    )


def _last_stores(events: EventColumns) -> Int32:
    """Of each row its store, else the last one of the user before; -1 where there is none."""
    last = np.full(int(events.user.max(initial=-1)) + 1, -1, dtype=np.int32)
    return _forward(events.user, events.store, last)


def _with_past(
    requests: pl.DataFrame, rows: LogSlice, plan: FeaturePlan, history: int
) -> pl.DataFrame:
    """With what the user had before: the last items, newest first, and how many orders."""
    events = rows.events
    order = _by_user(events.user)
    user, item, time, kind = (
        getattr(events, name)[order] for name in ("user", "item", "time", "kind")
    )
    of_item, of_user = (
        np.isin(EVENT_TYPES, plan.tables[name].events)[kind] for name in ("user_item", "user")
    )
    pair = _pairs(user, item)
    out = np.full((len(requests), history), -1, dtype=np.int32)
    orders = np.zeros(len(requests), dtype=np.int32)
    _histories(
        *(user, item, time, pair, of_item & (item >= 0), of_user),
        *(idle_ms(plan.tables[name].max_idle_days) for name in ("user_item", "user")),
        *(requests["user"].to_numpy(), requests["time"].to_numpy(), out, orders),
    )
    lists = pl.Series(out, dtype=pl.Array(pl.Int32, history)).arr.to_list()
    lists = lists.list.eval(pl.element().filter(pl.element() >= 0))
    return requests.with_columns(history=lists, n_orders=pl.Series(orders))


def _named(requests: pl.DataFrame, log: NumberedLog) -> pl.DataFrame:
    """With request_id: the log's own, or USER@MILLISECONDS."""
    users = pl.Series(log.users, dtype=pl.String)
    made = pl.format("{}@{}", users.gather(requests["user"]), "time")
    own = pl.Series(log.answer_names(requests["answer"].to_numpy()), dtype=pl.String)
    return requests.with_columns(
        request_id=pl.when(pl.col("answer") == 0).then(made).otherwise(own)
    )


@njit(cache=True)
def _best_later(user, item, session, time, gain, until):  # type: ignore[no-untyped-def]
    """From the last row back: successes are few, so they alone are listed by what they are of.

    Each leads to the next one that is worth more: what lies between is never the best of anything,
    and a list is no longer than there are different gains, however often somebody clicks.
    """
    n = len(user)
    wins = 0
    for row in range(n):
        wins += gain[row] > 0
    size = 16
    while size < 2 * wins:
        size *= 2
    mask = np.uint64(size - 1)
    newest = np.full(size, -1, dtype=np.int32)  # the earliest success met so far, by its number
    row_of = np.empty(wins, dtype=np.int64)
    following = np.empty(wins, dtype=np.int32)
    out = np.empty(n, dtype=np.float32)
    win = 0
    for row in range(n - 1, -1, -1):
        best = gain[row]
        at = slot_of(np.int64(user[row]) << 32 | np.uint32(item[row]), session[row], mask)
        other = newest[at]
        while other != -1:
            met = row_of[other]
            if user[met] == user[row] and item[met] == item[row] and session[met] == session[row]:
                break
            at = np.int64(np.uint64(at + 1) & mask)
            other = newest[at]
        if best > 0:
            while other != -1 and gain[row_of[other]] <= best:
                other = following[other]
            row_of[win] = row
            following[win] = other
            newest[at] = win
            win += 1
        while other != -1 and time[row_of[other]] <= until[row]:
            best = gain[row_of[other]]
            other = following[other]
        out[row] = best
    return out


@njit(cache=True)
def _by_user(user):  # type: ignore[no-untyped-def]
    """Rows user by user, each user's in their order: int64[n] (a counting sort)."""
    free = np.zeros(user.max() + 2 if len(user) else 1, dtype=np.int64)
    for row in range(len(user)):
        free[user[row] + 1] += 1
    for number in range(1, len(free)):
        free[number] += free[number - 1]
    order = np.empty(len(user), dtype=np.int64)
    for row in range(len(user)):
        order[free[user[row]]] = row
        free[user[row]] += 1
    return order


@njit(cache=True)
def _pairs(user, item):  # type: ignore[no-untyped-def]
    """Number of each row's (user, item), in order of appearance: int32[n]."""
    size = 16
    while size < 2 * len(user):
        size *= 2
    mask = np.uint64(size - 1)
    first = np.full(size, -1, dtype=np.int32)
    pair = np.empty(len(user), dtype=np.int32)
    n = 0
    for row in range(len(user)):
        at = slot_of(user[row], item[row], mask)
        met = first[at]
        while met != -1 and (user[met] != user[row] or item[met] != item[row]):
            at = np.int64(np.uint64(at + 1) & mask)
            met = first[at]
        if met == -1:
            first[at] = row
            pair[row] = n
            n += 1
        else:
            pair[row] = pair[met]
    return pair


@njit(cache=True)
def _forward(user, store, last):  # type: ignore[no-untyped-def]
    out = np.empty(len(user), dtype=np.int32)
    for row in range(len(user)):
        if store[row] >= 0:
            last[user[row]] = store[row]
        out[row] = last[user[row]]
    return out


@njit(cache=True)
def _histories(  # type: ignore[no-untyped-def]
    user,
    item,
    time,
    pair,
    of_item,
    of_user,
    item_idle,
    user_idle,
    request_user,
    request_time,
    out,
    orders,
):
    """As `LiveFeatures.history` and `orders` tell them, for requests by user, then time.

    A user's items are a list, newest first; of one moment, those met later for the first time (or
    for the first time since they aged out) are first.
    """
    n_pairs = pair.max() + 1 if len(pair) else 0
    following = np.full(n_pairs, -1, dtype=np.int64)
    before = np.full(n_pairs, -1, dtype=np.int64)
    last = np.zeros(n_pairs, dtype=np.int64)
    record = np.full(n_pairs, -1, dtype=np.int64)  # in which order they were first met
    met = 0
    items = np.empty(n_pairs, dtype=np.int32)
    row = 0
    head, moments, moment, current = -1, 0, np.int64(0), -1
    for request in range(len(request_user)):
        if request_user[request] != current:
            current = request_user[request]
            head, moments = -1, 0
            while row < len(user) and user[row] < current:
                row += 1
        while row < len(user) and user[row] == current and time[row] < request_time[request]:
            if of_user[row]:
                if moments and time[row] - moment > user_idle:
                    moments = 0
                if moments == 0 or time[row] > moment:
                    moments += 1
                    moment = time[row]
            if of_item[row]:
                p = pair[row]
                linked = record[p] != -1
                if not linked or time[row] - last[p] > item_idle:
                    record[p] = met
                    met += 1
                    items[p] = item[row]
                if linked:  # out of its place
                    if before[p] == -1:
                        head = following[p]
                    else:
                        following[before[p]] = following[p]
                    if following[p] != -1:
                        before[following[p]] = before[p]
                last[p] = time[row]
                left, right = -1, head
                while right != -1 and last[right] == last[p] and record[right] > record[p]:
                    left = right
                    right = following[right]
                before[p], following[p] = left, right
                if left == -1:
                    head = p
                else:
                    following[left] = p
                if right != -1:
                    before[right] = p
            row += 1
        at = head
        place = 0
        now = request_time[request] - 1
        while at != -1 and place < out.shape[1] and now - last[at] <= item_idle:
            out[request, place] = items[at]
            place += 1
            at = following[at]
        orders[request] = moments if now - moment <= user_idle else 0

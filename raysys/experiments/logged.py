"""Logs for off-policy evaluation, and the policy that is judged on them, read from tables.

The log has a row a shown slot: `reward` (or `click`), `propensity` (or `propensity_score`), and
may have `item_id`, `position`, `request_id`, `user_id`. What a deployment records of its answers, a
row a list with `item_ids` and `propensities`, becomes one with the events that came back.

A policy is either a column of the log with the probability of the shown item, or a table of its
own: any of `request_id`, `position`, `item_id`, and `probability` (1 where there is no such column:
the item that it would show there).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from raysys.errors import UserError
from raysys.experiments.event_sources import answering
from raysys.experiments.off_policy import LoggedRows
from raysys.experiments.reward_model import fit_reward_model
from raysys.experiments.users import scan

_OTHER_NAMES = {"click": "reward", "propensity_score": "propensity"}
_KEYS = ("request_id", "position", "item_id")


@dataclass(frozen=True)
class PolicyColumn:
    """The log itself says the judged policy's probability of what was shown."""

    name: str


def read_log(path: Path) -> pl.DataFrame:
    """A log as columns `reward`, `propensity`, and what else there is; CSV or Parquet.

    Raises:
        UserError: no such file, columns missing, or values that are no numbers.
    """
    frame = _read(path)
    names = {
        old: new
        for old, new in _OTHER_NAMES.items()
        if old in frame.columns and new not in frame.columns
    }
    frame = frame.rename(names)
    for name in ("reward", "propensity"):
        if name not in frame.columns:
            raise UserError(
                f"no column {name!r}",
                where=str(path),
                mend="a row a shown slot: reward, propensity, and item_id, position, user_id",
            )
    return _numbers(frame, ("reward", "propensity"), path)


def read_served(path: Path, events: Path, reward: str) -> pl.DataFrame:
    """Recorded answers and the events that they got, as a log of slots.

    Args:
        path: Parquet file or folder, a row a list: `request_id`, `item_ids` from the top,
            `propensities` of each given those above it, `user_id`; `session_id` may be there.
        events: with `request_id` and `item_id`; or the folder of an event log.
        reward: an event type; a slot's reward is 1 if its item got such an event in its request.

    Raises:
        UserError: columns are missing, or no event answers any list.
    """
    lists = scan(path, ("request_id", "item_ids", "propensities", "user_id"), "recorded answers")
    names = lists.collect_schema().names()
    user = pl.col("user_id").cast(pl.String)
    if "session_id" in names:
        user = user.fill_null("session " + pl.col("session_id").cast(pl.String))
    shown = (
        lists.select(
            "request_id", user.fill_null(pl.col("request_id")),
            pl.col("item_ids").alias("item_id"), pl.col("propensities").alias("propensity"),
            position=pl.int_ranges(1, pl.col("item_ids").list.len() + 1),
        )
        .filter(pl.col("item_id").list.len() > 0)
        .explode("item_id", "propensity", "position")
    )  # fmt: skip
    done = (
        answering(events)
        .filter(pl.col("event_type") == reward, pl.col("request_id").is_not_null())
        .select("request_id", "item_id", reward=pl.lit(1.0))
        .unique()
    )
    log = shown.join(done, on=["request_id", "item_id"], how="left", maintain_order="left")
    found = log.with_columns(pl.col("reward").fill_null(0.0)).collect()
    if not len(found):
        raise UserError("no list was shown", where=str(path))
    if not (found["reward"] > 0).any():
        raise UserError(
            f"no {reward} answers any of these lists",
            where=str(events),
            mend="events join by request_id and item_id: do they carry both?",
        )
    return _numbers(found, ("reward", "propensity"), path)


def read_policy(path: Path) -> pl.DataFrame:
    """A policy as a table of keys and `probability`.

    Raises:
        UserError: no key, a key twice, or probabilities of a slot that exceed one.
    """
    frame = _read(path)
    keys = [name for name in _KEYS if name in frame.columns]
    if "item_id" not in keys:
        raise UserError("no column 'item_id'", where=str(path))
    if "probability" not in frame.columns:
        frame = frame.with_columns(probability=pl.lit(1.0))
    frame = _numbers(frame.select(*keys, "probability"), ("probability",), path)
    if frame.select(keys).is_duplicated().any():
        raise UserError(f"rows with the same {', '.join(keys)}", where=str(path))
    slot = [name for name in keys if name != "item_id"]
    sums = frame.group_by(slot).agg(pl.col("probability").sum()) if slot else (
        frame.select(pl.col("probability").sum())
    )  # fmt: skip
    most = float(sums["probability"].max() or 0)  # type: ignore[arg-type]
    if most > 1 + 1e-6:
        raise UserError(f"probabilities of one slot add up to {most:.4g}", where=str(path))
    return frame


def logged_rows(log: pl.DataFrame, policy: pl.DataFrame | PolicyColumn) -> LoggedRows:
    """Join a log and a policy; with a table of the policy the reward is modelled too.

    Raises:
        UserError: the log lacks a key of the policy.
    """
    reward = log["reward"].to_numpy()
    cluster = _cluster(log)
    if isinstance(policy, PolicyColumn):
        if policy.name not in log.columns:
            raise UserError(
                f"the log has no column {policy.name!r}",
                mend=f"it has: {', '.join(log.columns[:20])}; or give --policy, a table",
            )
        chosen = _numbers(log, (policy.name,), Path("the log"))[policy.name].to_numpy()
        return LoggedRows(reward, log["propensity"].to_numpy(), chosen, cluster)
    keys = [name for name in policy.columns if name != "probability"]
    lacking = [name for name in keys if name not in log.columns]
    if lacking:
        raise UserError(f"the policy is by {', '.join(keys)}; the log lacks {', '.join(lacking)}")
    policy, shown = _as_text(policy, keys), _as_text(log, keys).with_row_index("row")
    target = shown.join(policy, on=keys, how="left", maintain_order="left")["probability"]
    ids = pl.concat([shown["item_id"], policy["item_id"]]).unique().sort()
    number = pl.DataFrame({"item_id": ids}).with_row_index("item")
    items = shown.join(number, on="item_id", how="left", maintain_order="left")["item"].to_numpy()
    place = _places(log)
    model = fit_reward_model(reward, items, place, len(ids), cluster=cluster)
    # what the policy would show in each slot, and what the model says of it
    slot = [name for name in keys if name != "item_id"]
    shown = shown.with_columns(place=place, fold=model.fold)
    alike = [*slot, "place", "fold"]
    slots = shown.group_by(alike).agg(pl.col("row").first())
    known = policy.join(number, on="item_id")
    pairs = slots.join(known, on=slot) if slot else slots.join(known, how="cross")
    value = model.predict(*(pairs[name].to_numpy() for name in ("row", "item", "place")))
    sums = (
        pairs.with_columns(value=value * pairs["probability"].to_numpy())
        .group_by(alike)
        .agg(pl.col("value").sum())
    )
    expected = shown.join(sums, on=alike, how="left", maintain_order="left")["value"]
    return LoggedRows(
        reward=reward,
        propensity=log["propensity"].to_numpy(),
        target=target.fill_null(0.0).to_numpy(),
        cluster=cluster,
        predicted=model.predict(np.arange(len(log)), items, place),
        expected=expected.fill_null(0.0).to_numpy(),
    )


def _as_text(frame: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    return frame.with_columns(pl.col(keys).cast(pl.String))


def _places(log: pl.DataFrame) -> npt.NDArray[np.int64]:
    """Positions from 1, 0 where the log has none: int64[n]."""
    if "position" not in log.columns:
        return np.zeros(len(log), np.int64)
    found = _numbers(log, ("position",), Path("the log"))["position"].to_numpy().astype(np.int64)
    if found.min() < 0:
        raise UserError("a position below 0", mend="positions count from 1")
    return found


def _cluster(log: pl.DataFrame) -> npt.NDArray[np.int64]:
    """Whose rows belong together: the user's, else the request's, else each by itself."""
    known = [name for name in ("user_id", "request_id") if name in log.columns]
    owner = log.with_row_index("row").select(
        pl.coalesce(
            *(pl.format("{} {}", pl.lit(name), pl.col(name).cast(pl.String)) for name in known),
            pl.format("row {}", "row"),
        )
    )
    return owner.to_series().rank("dense").to_numpy().astype(np.int64)


def _read(path: Path) -> pl.DataFrame:
    if not path.is_file():
        raise UserError("no such file", where=str(path))
    try:
        if path.name.endswith((".csv", ".csv.gz", ".csv.zst")):
            frame = pl.read_csv(path, infer_schema_length=10_000)
        else:
            frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        told = str(error).partition("\n")[0]
        raise UserError(f"not readable: {told}", where=str(path), mend="CSV or Parquet") from None
    if not len(frame):
        raise UserError("no rows", where=str(path))
    return frame


def _numbers(frame: pl.DataFrame, columns: Sequence[str], path: Path) -> pl.DataFrame:
    for name in columns:
        try:
            values = frame[name].cast(pl.Float64)
        except pl.exceptions.PolarsError:
            raise UserError(f"not all numbers: {name}", where=str(path)) from None
        if not values.is_finite().fill_null(False).all():
            raise UserError(f"empty or infinite values in {name}", where=str(path))
        frame = frame.with_columns(values)
    return frame

"""Negatives in the stage: drawn as often as they say, never wanted, and nothing of the future."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from raysys.features.examples import Examples
from raysys.features.log import EventColumns
from raysys.ingest.spread import InProcess
from raysys.learners.shown import in_shown_order
from raysys.stages.features import run
from raysys.stages.features_settings import FeaturesSettings, FromLog
from tests.features.every import N_ITEMS, PLAN
from tests.features.logs import as_rows, workspace
from tests.features.test_columns import LOGGED, WANTED, log, settings


def rows(folder, events: EventColumns, **how: object) -> pl.DataFrame:
    """Examples of all folds with their request's id and moment."""
    examples = {**WANTED["examples"], "negatives": {**WANTED["examples"]["negatives"], **how}}
    run(settings(examples=examples), workspace(folder, as_rows(events)), spread=InProcess())
    view = Examples(folder / "features", (0, 1, 2, 3))
    read = lambda kind: pl.read_parquet(view.files(kind), hive_partitioning=False)  # noqa: E731
    asked = read("requests").select("request", "request_id", "timestamp")
    return read("examples").join(asked, on="request").with_columns(wanted=pl.col("label") > 0)


@pytest.mark.long
def test_negatives_were_not_wanted_and_say_how_likely_they_were(tmp_path) -> None:
    events = log()
    found = rows(tmp_path, events)
    wanted, drawn = found.filter("wanted"), found.filter(~pl.col("wanted"))
    assert len(drawn) > len(wanted) > 200
    assert (wanted["sampling_probability"] == 1).all()
    assert drawn["sampling_probability"].is_between(0, 1, closed="right").all()
    assert (drawn["sampling_probability"] < 1).any()
    assert found.select("request", "item").is_unique().all()
    assert found["retrieved"].all() and (found["weight"] == 1).all()
    assert drawn["position"].is_nan().all() and not wanted["position"].is_nan().all()
    counts = found.group_by("request").agg(k=pl.col("wanted").sum(), n=pl.len())
    assert (counts["n"] <= 5 * counts["k"]).all()
    batch = Examples(tmp_path / "features", (0,)).batch()
    assert batch.sampling_probability.dtype == np.float32
    some = batch.take_requests(np.array([3, 1]))
    mine = slice(batch.offsets[3], batch.offsets[4])
    np.testing.assert_array_equal(
        some.sampling_probability[: some.sizes[0]], batch.sampling_probability[mine]
    )


@pytest.mark.long
@pytest.mark.parametrize("alpha", [0, 1])
def test_weighed_by_the_inverse_negatives_stand_for_all_items(tmp_path, alpha) -> None:
    """In a request that wanted k items: for the others, however many of these draw."""
    found = rows(tmp_path, log(5, 2500), shares={"in_session": 0, "hard": 0}, alpha=alpha)
    weight = pl.when("wanted").then(0).otherwise(1 / pl.col("sampling_probability")).sum()
    by_request = found.group_by("request").agg(weight=weight, k=pl.col("wanted").sum())
    for (k,), mine in by_request.filter(pl.col("k") <= 3).group_by("k"):
        error = mine["weight"].std() / np.sqrt(len(mine))
        assert len(mine) > 30
        assert abs(mine["weight"].mean() - (N_ITEMS - k)) < 4 * error, k


@pytest.mark.long
@pytest.mark.parametrize("hard", [0, 0.3])
def test_negatives_need_no_feature_of_covisitation(tmp_path, hard) -> None:
    plan = PLAN.model_dump(mode="json")
    plan["features"] = [each for each in plan["features"] if each["kind"] != "covisitation"]
    assert len(plan["features"]) < len(PLAN.features)
    how = {**WANTED["examples"]["negatives"], "shares": {"hard": hard}}
    examples = {**WANTED["examples"], "negatives": how}
    events = as_rows(log())
    run(
        settings(examples=examples, plan=plan),
        workspace(tmp_path / "a", events),
        spread=InProcess(),
    )
    view = Examples(tmp_path / "a" / "features", (0, 1, 2, 3))
    found = pl.read_parquet(view.files("examples"), hive_partitioning=False)
    whole = rows(tmp_path / "b", log(), shares={"hard": hard})
    keys = ["request", "item", "label", "sampling_probability"]
    assert found.select(keys).equals(whole.select(keys))
    assert (found["label"] == 0).any()


@pytest.mark.long
def test_no_negative_moves_with_what_happens_at_its_moment_or_later(tmp_path) -> None:
    events = log(6)
    moment = int(np.unique(events.time)[-60])
    later = events.time >= moment
    rng = np.random.default_rng(0)
    changed = replace(events, item=np.where(later, rng.permutation(events.item), events.item))
    before, after = (
        rows(tmp_path / name, log_, ranks=[1, 6]).filter(~pl.col("wanted"))
        for name, log_ in (("one", events), ("other", changed))
    )
    keys = ["request_id", "item", "sampling_probability"]
    past = pl.col("timestamp").dt.epoch("ms") <= moment
    strictly = pl.col("timestamp").dt.epoch("ms") < moment
    assert before.filter(strictly).select(keys).equals(after.filter(strictly).select(keys))
    assert not before.filter(~past).select(keys).equals(after.filter(~past).select(keys))
    assert before.filter(strictly)["request"].n_unique() > 50


def test_inferred_impressions_keep_their_probability(tmp_path) -> None:
    listed = as_rows(log(7))
    for at, row in enumerate(listed):
        if row["event_type"] == "impression" and at % 2:
            row |= {"inferred": True, "sampling_probability": 0.25}
    run(settings(**LOGGED), workspace(tmp_path, listed), spread=InProcess())
    batch = Examples(tmp_path / "features", (0, 1, 2, 3)).batch()
    assert set(batch.sampling_probability) == {np.float32(0.25), np.float32(1)}
    share = (batch.sampling_probability < 1).mean()
    assert 0.3 < share < 0.6


def test_learners_find_the_shown_position(tmp_path) -> None:
    run(settings(**LOGGED), workspace(tmp_path, as_rows(log(8))), spread=InProcess())
    batch = Examples(tmp_path / "features", (0, 1, 2, 3)).batch()
    kept = in_shown_order(batch, "position", where="tests")
    assert len(kept) > 20
    assert (kept.column("position") == np.arange(len(kept)) - kept.offsets[kept.group] + 1).all()
    assert len(kept.sampling_probability) == len(kept)


def test_what_the_page_on_labels_shows_is_accepted() -> None:
    page = Path(__file__).parents[2] / "docs" / "labels.md"
    blocks = re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    shown = [yaml.safe_load(b) for b in blocks if b.startswith(("labels:", "examples:"))]
    plan = PLAN.model_dump(mode="json")
    made = [FeaturesSettings.model_validate({**content, "plan": plan}) for content in shown]
    drawing = [m.examples for m in made if isinstance(m.examples, FromLog)]
    assert len(made) == 3
    assert drawing[0].negatives is not None and drawing[0].negatives.sizes == (3, 4, 3)

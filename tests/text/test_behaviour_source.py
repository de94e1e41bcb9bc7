"""An ingested log as judgements: what is read, that no future leaks, how it joins others."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from raysys.datasets.labelled import DRAFT
from raysys.datasets.splits import SplitSettings
from raysys.errors import UserError
from raysys.storage import Workspace
from raysys.text.behaviour_source import BehaviourSource, as_judged, pairs_of_log
from tests.synthetic import make_catalogue
from tests.text.shop_log import DAYS, START, grade, search_log, shop, write_ingested

SOURCE = BehaviourSource(kind="behaviour")
SPLIT = SplitSettings(validation=0.2, test=0.2)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return shop(tmp_path_factory.mktemp("shop"))


def test_what_is_clicked_for_a_query_gets_the_higher_grades(workspace: Workspace) -> None:
    source = SOURCE.model_copy(update={"prior": 0.5})  # the log is short
    pairs = pairs_of_log(source, workspace.ingest, SPLIT)
    assert dict(pairs.schema) == DRAFT and pairs["text_id"].n_unique() == pairs.height
    assert pairs.select("query", "item_id").is_unique().all()
    truth = [grade(query, text) for query, text in pairs.select("query", "text").rows()]
    by_truth = pairs.with_columns(truth=pl.Series(truth)).group_by("truth").agg(
        (pl.col("grade") * pl.col("weight")).sum() / pl.col("weight").sum()
    )  # fmt: skip
    mean = dict(by_truth.rows())
    assert mean[3] > 1.5 * mean[2] > 2 * mean[1]
    assert pairs["grade"].n_unique() <= 51
    assert len(set(pairs.select("query", "split").unique()["query"])) == pairs["query"].n_unique()


def test_train_says_the_same_whatever_comes_after_it(tmp_path: Path) -> None:
    """What happens in the last two fifths changes neither grades nor drawn items of train."""
    catalogue = make_catalogue(200)
    events = search_log(catalogue)
    cut = pa.scalar(START + dt.timedelta(days=0.75 * DAYS), events.schema.field("timestamp").type)
    early = pc.less(events["timestamp"], cut)
    swapped = events["position"].to_numpy(zero_copy_only=False)
    other = events.set_column(
        events.column_names.index("position"),
        events.schema.field("position"),
        pa.array(np.where(early, swapped, 8 - swapped), pa.int32(), from_pandas=True),
    )
    late_clicks = pc.and_(pc.invert(early), pc.equal(events["event_type"], "click"))
    other = other.filter(pc.invert(late_clicks))
    parts = []
    for name, log in (("as it was", events), ("otherwise", other)):
        workspace = Workspace(tmp_path / name)
        write_ingested(workspace, catalogue, log)
        pairs = pairs_of_log(SOURCE, workspace.ingest, SPLIT)
        parts.append({each: pairs.filter(split=each).drop("row", "text_id") for each in
                      ("train", "test")})  # fmt: skip
    assert parts[0]["train"].equals(parts[1]["train"])
    assert not parts[0]["test"].equals(parts[1]["test"])


def test_a_click_after_the_cut_does_not_teach(tmp_path: Path) -> None:
    """The impression is train's, the click comes when validation has begun."""
    catalogue = make_catalogue(200)
    events = search_log(catalogue, requests=600)
    late = pa.scalar(START + dt.timedelta(days=2 * DAYS), events.schema.field("timestamp").type)
    click = pc.equal(events["event_type"], "click")
    moments = pc.if_else(click, late, events["timestamp"])
    at = events.column_names.index("timestamp")
    workspace = Workspace(tmp_path / "ws")
    write_ingested(workspace, catalogue, events.set_column(at, events.field("timestamp"), moments))
    source = SOURCE.model_copy(update={"debias": False})
    pairs = pairs_of_log(source, workspace.ingest, SPLIT)
    assert not (pairs.filter(split="train")["grade"] > 0).any()


def test_days_that_are_held_back_are_not_read(workspace: Workspace) -> None:
    held_back = SOURCE.model_copy(update={"held_back_days": DAYS / 2, "negatives": 0})
    some = pairs_of_log(held_back, workspace.ingest, None)
    every = pairs_of_log(SOURCE.model_copy(update={"negatives": 0}), workspace.ingest, None)
    assert 0.3 * every.height < some.height < 0.95 * every.height
    assert set(some["split"]) == {"train"}


def test_a_log_without_queries_is_refused(tmp_path: Path) -> None:
    catalogue = make_catalogue(200)
    events = search_log(catalogue, requests=50)
    at = events.column_names.index("query")
    none = pa.nulls(events.num_rows, pa.string())
    workspace = Workspace(tmp_path / "ws")
    write_ingested(workspace, catalogue, events.set_column(at, events.field("query"), none))
    with pytest.raises(UserError, match="the log has no queries") as caught:
        pairs_of_log(SOURCE, workspace.ingest, SPLIT)
    assert "column of the query" in caught.value.mend


def test_a_log_too_short_for_a_split_says_which(tmp_path: Path) -> None:
    workspace = shop(tmp_path, requests=12)
    source = SOURCE.model_copy(update={"debias": False})
    with pytest.raises(UserError, match=r"nothing is left for (validation|test)"):
        pairs_of_log(source, workspace.ingest, SplitSettings(validation=0.05, test=0.05))


def test_gains_of_what_is_no_reaction_are_refused() -> None:
    with pytest.raises(ValueError, match="'clik' is no reaction"):
        BehaviourSource(kind="behaviour", gains={"clik": 1})
    with pytest.raises(ValueError, match="worth something"):
        BehaviourSource(kind="behaviour", gains={"click": 0})


def test_weak_grades_take_the_place_of_the_judges() -> None:
    weak = pl.DataFrame({"grade": [0.0, 0.3, 0.5, 1.0], "weight": [0.5, 1.0, 1.0, 0.8]})
    judged = pl.DataFrame({"grade": [1.0, 2.0, 3.0, 2.0]})
    source = BehaviourSource(kind="behaviour", top=1.0, weight=0.5)
    joined = as_judged(weak, judged, source)
    assert joined["grade"].to_list() == [1.0, 2.0, 2.0, 3.0]
    assert joined["weight"].to_list() == pytest.approx([0.25, 0.5, 0.5, 0.4])

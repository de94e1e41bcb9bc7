"""What clicks gain beside a few judgements: Home Depot's judged queries, and a log made of them.

Twenty minutes on one core; the cross-encoder's training takes nearly all of it, in proportion to
`--queries` and `--seeds`. Needs the data that RAYSYS_DATA names.

Of the training queries `--judged` have judges. For the others there is a log: lists of their
products and of drawn ones, in the order of a poor ranking, whose positions are looked at with a
probability of 1 / k; what is looked at is clicked by its relevance. Three models are judged on the
same queries, which neither judges nor log had: of the judgements, of both, and of all
judgements, which the log stands for.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa

from benchmarks.home_depot import read
from benchmarks.result import ROOT, Figure
from benchmarks.text_results import over_seeds, write_text_result
from raysys import schema
from raysys.catalogue import Catalogue
from raysys.datasets.splits import components
from raysys.evaluation.text_judge import TextJudge
from raysys.learners.text import make_text_learner
from raysys.learners.text_protocol import TextContext
from raysys.text.behaviour import pairs_from_behaviour
from raysys.text.behaviour_source import BehaviourSource, as_judged

DATA = Path(os.environ.get("RAYSYS_DATA", ROOT.parent / "shared" / "data"))
LIST: Final = 8  # products in a list
STRANGERS: Final = 3  # of them are drawn from the whole catalogue
NOISE: Final = 1.0  # spread of what the shop's ranking knows of a grade, which spans 2


def simulated(pairs: pl.DataFrame, requests: int, rng: np.random.Generator) -> pa.Table:
    """`schema.EVENTS`: so many lists for queries drawn of the pairs, and their clicks."""
    lowest, span = float(pairs["grade"].min()), float(np.ptp(pairs["grade"].to_numpy()))  # type: ignore[arg-type]
    every = pairs["item_id"].unique().sort().to_list()
    of_query = {name: dict(rows.select("item_id", "grade").rows())
                for (name,), rows in pairs.group_by(["query"], maintain_order=True)}  # fmt: skip
    names, events = list(of_query), []
    for number in range(requests):
        query = names[int(rng.integers(len(names)))]
        known = of_query[query]
        drawn = [every[at] for at in rng.integers(0, len(every), STRANGERS)]
        shown = list(dict.fromkeys([*known, *drawn]))
        worth = np.array([known.get(item, lowest) for item in shown])
        order = np.argsort(-(worth + NOISE * rng.standard_normal(len(shown))))[:LIST]
        for place, at in enumerate(order, start=1):
            row = {"event_id": f"{number}-{place}", "user_id": "u", "item_id": shown[at],
                   "request_id": str(number), "timestamp": number, "inferred": False}  # fmt: skip
            events.append({**row, "event_type": "impression", "query": query, "position": place})
            relevance = (worth[at] - lowest) / span
            if rng.random() < (0.05 + 0.6 * relevance**2) / place:
                events.append({**row, "event_id": f"{number}-{place}c", "event_type": "click"})
    return pa.Table.from_pylist(events, schema=schema.EVENTS)


def measure(asked: argparse.Namespace, seed: int) -> list[Figure]:
    """NDCG@10 of each model on the test queries, and what the log gains."""
    rng = np.random.default_rng(seed)
    pairs = pl.DataFrame(read(DATA / "search" / "home_depot.csv.gz", asked.queries, seed))
    train = pairs.filter(pl.col("split") == "train")
    names = rng.permutation(train["query"].unique().sort().to_list())
    judged = train.filter(pl.col("query").is_in(list(names[: asked.judged])))
    rest = train.filter(pl.col("query").is_in(list(names[asked.judged :])))
    items = pairs.unique("item_id", keep="first", maintain_order=True)
    catalogue = Catalogue(
        pa.Table.from_pylist(
            [{"item_id": a, "title": b} for a, b in items.select("item_id", "text").rows()],
            schema=schema.ITEMS,
        )
    )
    source = BehaviourSource(kind="behaviour", text=("title",), weight=asked.weight, seed=seed)
    log = pairs_from_behaviour(simulated(rest, asked.requests, rng), catalogue, source)
    weak = as_judged(pl.DataFrame(log), judged, source)
    held = {name: pairs.filter(pl.col("split") == name) for name in ("validation", "test")}
    unit = components(held["test"], "relevance")
    judge = TextJudge("relevance", _table(held["test"]), unit, least_grade=1.0, seed=seed)
    verdicts, figures = {}, []
    for name, rows, what in (
        ("judged", judged, f"{len(judged):,} judged pairs of {asked.judged:,} queries"),
        ("with_clicks", pl.concat([judged, weak.select(judged.columns)]),
         f"and {weak.height:,} pairs of a log of {asked.requests:,} lists"),
        ("all_judged", train, f"all {train.height:,} judged pairs"),
    ):  # fmt: skip
        learner = make_text_learner(asked.learner, _settings(asked), task="relevance")
        with tempfile.TemporaryDirectory() as scratch:
            context = TextContext(Path(scratch), seed)
            model = learner.fit(_table(rows), _table(held["validation"]), context)
        said = model.predict(_table(held["test"]).select(["query", "text"]))
        verdicts[name] = judge.verdict(said)
        found = verdicts[name].figures["ndcg@10"]
        print(f"  {name}: {found.value:.4f}", flush=True)
        note = f"{asked.learner}; {what}"
        figures.append(Figure(f"weak_{name}_ndcg10", found.value, "", found.low, found.high,
                              reference=note))  # fmt: skip
    gain = judge.gain(verdicts["with_clicks"], verdicts["judged"])
    figures.append(Figure("weak_gain", gain.value, "", gain.low, gain.high, "> 0",
                          "clicks over judgements alone, paired, drawn by query"))  # fmt: skip
    return figures


def _settings(asked: argparse.Namespace) -> dict[str, Any]:
    return {"vectors": None} if asked.learner == "relevance_trees" else {}


def _table(pairs: pl.DataFrame) -> pa.Table:
    return pairs.select(schema.LABELLED_PAIRS.names).to_arrow().cast(schema.LABELLED_PAIRS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    learners = ("cross_encoder", "bi_encoder", "relevance_trees")
    parser.add_argument("--learner", choices=learners, default="cross_encoder")
    parser.add_argument("--queries", type=int, default=1000, help="of Home Depot, in all")
    parser.add_argument("--judged", type=int, default=100, help="training queries with judges")
    parser.add_argument("--requests", type=int, default=12_000, help="lists in the log")
    parser.add_argument("--weight", type=float, default=0.3, help="of a pair of the log")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--dry", action="store_true", help="print figures, write nothing")
    asked = parser.parse_args()
    began = time.monotonic()
    figures = over_seeds([measure(asked, seed) for seed in range(asked.seeds)])
    if asked.dry:
        for each in figures:
            print(f"{each.name:28s} {each.value:.4f} [{each.low}, {each.high}] {each.reference}")
        return
    write_text_result(figures, time.monotonic() - began)


if __name__ == "__main__":
    main()

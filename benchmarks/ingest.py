"""Ingest, sessions and features of 1, 10 and 50 million events, beside one polars program.

About half an hour on two cores with all sizes, a few minutes with `--sizes 1m`.

Both run in processes of their own, from the same files to the same result: that it is the same is
checked on the logs of 1 and 10 million, and a difference ends the benchmark.
What raysys does beside (report, quarantine, catalogue, histories, neighbourhoods) is in its time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.by_hand_polars import HOUR_MS
from benchmarks.events_at_scale import Facts, make_log, write_settings
from benchmarks.measure import Taken, differences, fingerprint_events, measured
from benchmarks.result import Figure, write_result
from raysys.features.live import LiveFeatures
from raysys.features.log import EventColumns
from raysys.features.table import Table
from raysys.schema import EVENT_TYPES
from raysys.storage import read_manifest

CAP_BYTES = 16 << 30
COMPARED = 15_000_000
"""Rows of a log up to which both results are held to each other: both are in memory for that."""
AIMS = {
    "events_per_s_10m": "≥ 300,000",
    "peak_gb_50m": "< 6",
    "growth_exponent": "about 1",
    "ratio_polars_10m": "> 0.5",
    "ratio_polars_50m": "> 1",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1m,10m,50m")
    parser.add_argument("--cache", type=Path, required=True, help="folder that keeps the logs")
    parser.add_argument("--workspace", type=Path, help="default: a new temporary folder")
    parser.add_argument("--runs", type=int, default=1, help="of each size; medians are reported")
    parser.add_argument("--skip-polars", action="store_true")
    arguments = parser.parse_args()
    sizes = arguments.sizes.split(",")
    began = time.monotonic()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.workspace or Path(folder)
        ours: dict[str, float] = {}
        for size in sizes:
            log, facts = make_log(size, arguments.cache)
            workspace, by_hand = root / size, root / f"{size}-polars"
            runs = [_ours(log, workspace) for _ in range(arguments.runs)]
            check_counts(workspace, facts)
            ours[size] = statistics.median(run["seconds"] for run in runs)
            figures += _our_figures(size, facts, runs)
            if not arguments.skip_polars:
                others = [_by_hand(log, by_hand) for _ in range(arguments.runs)]
                if facts.rows <= COMPARED:
                    check_equal(workspace, by_hand)
                figures += _ratio(size, ours[size], others)
                shutil.rmtree(by_hand)
            if size == _middle(sizes):
                figures += kernel_figures(log) + live_figures(workspace / "features" / "state")
            if arguments.workspace is None:
                shutil.rmtree(workspace)
        if len(sizes) > 1:
            figures.append(_growth(sizes, arguments.cache, ours))
    for figure in figures:
        figure.aim = AIMS.get(figure.name, figure.aim)
    write_result("ingest", figures, time.monotonic() - began)


def _ours(log: Path, workspace: Path) -> dict[str, Any]:
    """Both stages as a user would run them, from nothing."""
    shutil.rmtree(workspace, ignore_errors=True)
    configs = write_settings(log, workspace)
    taken: dict[str, Taken] = {}
    inner: dict[str, float] = {}
    for stage, config in zip(("ingest", "features"), configs, strict=True):
        command = [sys.executable, "-m", "raysys", stage, "--quiet", "--config", str(config)]
        taken[stage] = measured([*command, "--workspace", str(workspace)]).demand()
        inner[stage] = json.loads((workspace / stage / "manifest.json").read_text())["seconds"]
    return {
        "seconds": sum(each.seconds for each in taken.values()),
        "cpu_seconds": sum(each.cpu_seconds for each in taken.values()),
        "peak": max(each.peak for each in taken.values()),
        "stages": {stage: (each.seconds, inner[stage]) for stage, each in taken.items()},
    }


def _by_hand(log: Path, out: Path) -> Taken:
    """The polars program; may run out of memory, which is an outcome."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.by_hand_polars"]
    threads = {"POLARS_MAX_THREADS": str(len(os.sched_getaffinity(0)))}
    taken = measured(
        [*command, "--log", str(log), "--out", str(out)], environment=threads, cap=CAP_BYTES
    )
    if taken.outcome == "failed":
        taken.demand()
    return taken


def _our_figures(size: str, facts: Facts, runs: Sequence[dict[str, Any]]) -> list[Figure]:
    rates = [facts.rows / run["seconds"] for run in runs]
    figures = [
        _over_runs(f"events_per_s_{size}", rates, "events/s", "of the files' rows, all stages"),
        _over_runs(f"seconds_{size}", [run["seconds"] for run in runs], "s"),
        _over_runs(f"cpu_seconds_{size}", [run["cpu_seconds"] for run in runs], "s"),
        _over_runs(f"peak_gb_{size}", [run["peak"] / 2**30 for run in runs], "GB"),
    ]
    for stage in runs[0]["stages"]:
        whole = [run["stages"][stage][0] for run in runs]
        alone = statistics.median(run["stages"][stage][1] for run in runs)
        said = f"{alone:.1f} s without starting Python and Ray"
        figures.append(_over_runs(f"{stage}_s_{size}", whole, "s", said))
    return figures


def _ratio(size: str, ours: float, others: Sequence[Taken]) -> list[Figure]:
    """What the polars program took, and how often ours fits into that; no ratio if it failed."""
    done = [each for each in others if each.outcome == "done"]
    said = "" if len(done) == len(others) else f"ran out of memory at {CAP_BYTES >> 30} GB"
    figures = [
        _over_runs(f"polars_peak_gb_{size}", [each.peak / 2**30 for each in others], "GB", said)
    ]
    if done:
        seconds = [each.seconds for each in done]
        cpu = [each.cpu_seconds for each in done]
        ratios = [each / ours for each in seconds]
        said = "seconds of the polars program ÷ ours"
        figures += [
            _over_runs(f"polars_seconds_{size}", seconds, "s"),
            _over_runs(f"polars_cpu_seconds_{size}", cpu, "s"),
            _over_runs(f"ratio_polars_{size}", ratios, "", said),
        ]
    return figures


def _growth(sizes: Sequence[str], cache: Path, ours: dict[str, float]) -> Figure:
    """Slope of log seconds over log events."""
    rows = [make_log(size, cache)[1].rows for size in sizes]
    slope = np.polyfit(np.log(rows), np.log([ours[size] for size in sizes]), 1)[0]
    return Figure("growth_exponent", float(slope), "", reference=" ".join(sizes))


def check_counts(workspace: Path, facts: Facts) -> None:
    """Hold the manifest of an ingest to what is known of the log.

    Raises:
        ValueError: naming the first count that differs.
    """
    counts = json.loads((workspace / "ingest" / "manifest.json").read_text())["counts"]
    expected = {"events.in": facts.rows, "events.out": facts.clean}
    expected |= {f"events.quarantined.{rule}": count for rule, count in facts.dirt.items()}
    for name, count in expected.items():
        if counts.get(name) != count:
            raise ValueError(f"{name}: {counts.get(name)} instead of {count}")


def check_equal(workspace: Path, by_hand: Path) -> None:
    """Hold both results to each other: events and sessions exactly, features to 1e-4.

    Raises:
        ValueError: saying what differs.
    """
    ours = fingerprint_events(workspace / "ingest" / "events")
    theirs = fingerprint_events(by_hand / "events")
    if ours != theirs:
        raise ValueError(f"events differ: {ours} and {theirs}")
    features = workspace / "features"
    examples, theirs = (
        _settled(each, features)
        for each in (read_examples(features), pl.read_parquet(by_hand / "examples.parquet"))
    )
    worst = differences(examples, theirs, ["request_id", "item_id"])
    print(f"equal on {examples.height:,} examples; largest difference {max(worst.values()):.1e}")


def _settled(examples: pl.DataFrame, features: Path) -> pl.DataFrame:
    """Without examples whose outcome may lie behind their fold's end, which no label knows of."""
    bounds = read_manifest(features).figures["folds"]["bounds"]
    ends = np.array(bounds[1:], dtype="datetime64[ms]").astype(np.int64)
    moments = examples["request_id"].str.split("@").list.last().cast(pl.Int64).to_numpy()
    end = ends[np.minimum(np.searchsorted(ends, moments, side="right"), len(ends) - 1)]
    return examples.filter(pl.Series(moments + HOUR_MS < end))


def read_examples(features: Path) -> pl.DataFrame:
    """Examples of all folds by request_id and item_id, with label and features."""
    found = {
        kind: pl.scan_parquet(features / kind / "**" / "*.parquet", hive_partitioning=False)
        for kind in ("examples", "requests")
    }
    items = pl.scan_parquet(features / "catalogue.parquet").select("item_id").with_row_index("item")
    return (
        found["examples"]
        .join(found["requests"].select("request", "request_id"), on="request")
        .join(items.with_columns(pl.col("item").cast(pl.Int32)), on="item")
        .drop("request", "item", "weight", "retrieved", "sampling_probability")
        .collect()
    )


def kernel_figures(log: Path) -> list[Figure]:
    """Events a second that one core counts (`apply`), and counts and reads (`replay`)."""
    rows = pl.scan_parquet(log / "events" / "**" / "*.parquet", hive_partitioning=False)
    ids = pl.col("user", "item").cast(pl.Categorical).to_physical().cast(pl.Int64)
    frame = (
        rows.filter(pl.col("user").is_not_null() & (pl.col("time").dt.year() < 2100))
        .select(ids, pl.col("time").dt.epoch("ms"), pl.col("price").abs())
        .collect()
        .sort("time")
    )
    fan = int(frame["item"].max()) + 1  # type: ignore[arg-type]
    keys = (frame["user"] * fan + frame["item"]).to_numpy()
    columns = (keys, frame["time"].to_numpy(), np.ones(len(keys)), frame["price"].to_numpy())
    half_lives = np.array([7.0, 28.0])
    counted = np.ones(len(keys), dtype=np.bool_)
    reads = np.zeros(len(keys), dtype=np.bool_)
    reads[::10] = True

    def apply(n: int) -> None:
        Table(half_lives, fan).apply(*(column[:n] for column in columns))

    def replay(n: int) -> None:
        Table(half_lives, fan).replay(*(column[:n] for column in (*columns, counted, reads)))

    figures = []
    for name, work in (("replay", replay), ("apply", apply)):
        work(1000)  # compiles
        rates = [len(keys) / _seconds(lambda run=work: run(len(keys))) for _ in range(3)]  # type: ignore[misc]
        said = "one core, one table of user × item, two half-lives"
        said += ", every tenth row read" if name == "replay" else ""
        figures.append(_over_runs(f"{name}_events_per_s", rates, "events/s", said))
    return figures


def live_figures(state: Path, times: int = 2000) -> list[Figure]:
    """Microseconds of one live event, and of the features of 100 candidates; medians."""
    live = LiveFeatures.load(state)
    chance = np.random.default_rng(17)
    users = chance.integers(0, live.n_users, times).astype(np.int32)
    items = chance.integers(0, len(live.catalogue), (times, 100)).astype(np.int32)
    purchase = EVENT_TYPES.index("purchase")
    update, read = [], []
    for number in range(times):
        at = live.as_of + 1000
        event = EventColumns(
            user=users[number : number + 1],
            item=items[number, :1],
            kind=np.array([purchase], dtype=np.int8),
            time=np.array([at], dtype=np.int64),
            quantity=np.ones(1),
            price=np.full(1, 2.5),
            store=np.full(1, -1, dtype=np.int32),
            order=np.array([number], dtype=np.int64),
        )
        update.append(_seconds(lambda one=event: live.apply(one)) * 1e6)  # type: ignore[misc]
        user, candidates = int(users[number]), items[number]
        read.append(
            _seconds(lambda u=user, c=candidates, t=at: live.batch(u, c, t + 1)) * 1e6  # type: ignore[misc]
        )
    said = f"{len(live.tables)} tables, {len(live.names)} features"
    return [
        _quartiles("live_update_us", update[times // 10 :], said),
        _quartiles("live_read_100_us", read[times // 10 :], said),
    ]


def _middle(sizes: Sequence[str]) -> str:
    """The log that kernel and state are measured on."""
    return "10m" if "10m" in sizes else sizes[0]


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _over_runs(name: str, values: Sequence[float], unit: str, reference: str = "") -> Figure:
    """The median of some runs, with the least and the most if there are several."""
    low, high = (min(values), max(values)) if len(values) > 1 else (None, None)
    return Figure(name, statistics.median(values), unit, low, high, reference=reference)


def _quartiles(name: str, values: Sequence[float], reference: str) -> Figure:
    """The median, with the quartiles."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return Figure(name, float(middle), "µs", float(low), float(high), reference=reference)


if __name__ == "__main__":
    main()

"""What an experiment that mixes its arms within users has found, in words, figures and a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from raysys.experiments.analysis import without_nan
from raysys.experiments.arm_values import ArmValue, found_so_far, value_arms
from raysys.experiments.definition import Experiment
from raysys.experiments.interleaving import Preference, judge_interleaved
from raysys.experiments.lists import lists_of
from raysys.experiments.parts import Metric
from raysys.report import COLOURS, Report, Section, new_figure
from raysys.storage import write_atomic

_DAYS_AT_LEAST = 2


@dataclass(frozen=True)
class ListsJudged:
    """An interleaved experiment, or one with a bandit.

    Attributes:
        experiment: which.
        sentence: what it has come to.
        lists: counts for the manifest.
        figures: for the manifest.
        header, rows: a table for people.
        preference: of an interleaved one.
        values: of the arms of a bandit.
        days: lists by day and arm, of a bandit: `day`, `arm`, `lists`.
    """

    experiment: Experiment
    sentence: str
    lists: dict[str, int]
    figures: dict[str, Any]
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    preference: Preference | None = None
    values: tuple[ArmValue, ...] = ()
    days: pl.DataFrame | None = None


def judge_lists(
    experiment: Experiment, metric: Metric, exposures: pl.LazyFrame, answers: pl.LazyFrame
) -> ListsJudged:
    """Judge an experiment with `interleave` or `bandit`.

    Args:
        experiment: which.
        metric: its primary.
        exposures: as `read_exposures` gives them.
        answers: columns of `event_sources.ANSWERING`.

    Raises:
        UserError: no list was shown; of an interleaved one, fewer than two users have clicked.
    """
    if experiment.interleave:
        found = judge_interleaved(experiment, metric, exposures, answers)
        return _of_preference(experiment, found)
    values = value_arms(experiment, metric, exposures, answers)
    day = pl.col("timestamp").dt.date().alias("day")
    days = lists_of(experiment, exposures).group_by(day, "arm").agg(lists=pl.len())
    return ListsJudged(
        experiment,
        found_so_far(values),
        {each.arm: each.lists for each in values},
        {"values": [without_nan(asdict(each)) for each in values]},
        ("arm", "lists", "share now", f"value of {metric.name}", "interval"),
        tuple(
            (
                each.arm, f"{each.lists:,}", _percent(each.share), _percent(each.value),
                f"{_percent(each.low)} to {_percent(each.high)}",
            )
            for each in values
        ),
        values=tuple(values),
        days=days.sort("day", "arm").collect(),
    )  # fmt: skip


def write_lists_report(found: ListsJudged, folder: Path) -> None:
    """Write `report.html` and `report.json` into `folder`."""
    content = {"verdict": [found.sentence], "lists": found.lists, **found.figures}
    write_atomic(folder / "report.json", json.dumps(without_nan(content), indent=1) + "\n")
    experiment = found.experiment
    page = Report(f"Experiment: {experiment.name}", experiment.question or "")
    short = page.section("Verdict").text(found.sentence)
    short.table(found.header, found.rows)
    if found.preference is not None:
        first, second = (arm.name for arm in experiment.arms)
        _draw_preference(page.section("Preference"), found.preference, first, second)
    if found.values:
        _draw_values(page.section("What each arm would earn alone"), found.values)
    if found.days is not None and found.days["day"].n_unique() >= _DAYS_AT_LEAST:
        names = [arm.name for arm in experiment.arms]
        _draw_days(page.section("How lists were given to arms"), found.days, names)
    page.section("How it was judged").text(
        "Every list was drafted from the lists of both arms in turns (team draft); an event counts "
        "for the arm that brought its item. The interval is of users, not of lists"
        + (", and holds however often one looks." if experiment.analysis == "sequential" else ".")
        if found.preference is not None
        else "Each list says the probability with which its arm was drawn; an arm's value is the "
        "share of rewarded lists, each weighed by the inverse of that probability and normalised. "
        "The interval is of users, not of lists, and is for one look."
    )
    page.write(folder / "report.html")


def _of_preference(experiment: Experiment, found: Preference) -> ListsJudged:
    first, second = (arm.name for arm in experiment.arms)
    ties = found.requests - sum(found.wins)
    return ListsJudged(
        experiment,
        found.sentence,
        {"lists": found.lists, "with events": found.requests, "users": found.users},
        {"preference": without_nan(asdict(found))},
        ("lists", "with events", "users", f"{first} wins", f"{second} wins", "ties", "p"),
        (
            (
                f"{found.lists:,}", f"{found.requests:,}", f"{found.users:,}",
                f"{found.wins[0]:,}", f"{found.wins[1]:,}", f"{ties:,}", f"{found.p_value:.2g}",
            ),
        ),
        preference=found,
    )  # fmt: skip


def _draw_preference(section: Section, found: Preference, first: str, second: str) -> None:
    figure, axes = new_figure(9, 1.7)
    axes.axvline(0, color=COLOURS[5], linewidth=1)
    axes.plot([found.low, found.high], [0, 0], color=COLOURS[0], linewidth=3)
    axes.plot([found.lead], [0], "o", color=COLOURS[0])
    reach = max(0.05, 1.15 * float(np.nanmax(np.abs([found.low, found.high]))))
    axes.set_xlim(-reach, reach)
    axes.set_yticks([])
    axes.set_xlabel(f"← {first}  ·  lead, of lists with events  ·  {second} →")
    section.plot(figure, "By how many lists the second arm leads, with its interval.")


def _draw_values(section: Section, values: Sequence[ArmValue]) -> None:
    figure, axes = new_figure(9, 0.9 + 0.45 * len(values))
    for place, each in enumerate(reversed(values)):
        if np.isfinite(each.low):
            axes.plot([each.low, each.high], [place, place], color=COLOURS[0], linewidth=3)
        axes.plot([each.value], [place], "o", color=COLOURS[0])
    axes.set_yticks(range(len(values)), [each.arm for each in reversed(values)])
    axes.set_ylim(-0.6, len(values) - 0.4)
    axes.grid(False, axis="y")
    axes.set_xlabel("rewarded lists, of all")
    section.plot(figure, "If every list had been this arm's, with its interval.")


def _draw_days(section: Section, days: pl.DataFrame, names: Sequence[str]) -> None:
    wide = days.pivot("arm", index="day", values="lists").fill_null(0).sort("day")
    counts = np.stack([
        wide[name].to_numpy() if name in wide.columns else np.zeros(len(wide)) for name in names
    ]).astype(np.float64)  # fmt: skip
    figure, axes = new_figure(9, 3)
    axes.stackplot(
        wide["day"].to_list(),
        counts / counts.sum(0),
        labels=list(names),
        colors=[COLOURS[number % len(COLOURS)] for number in range(len(names))],
    )
    axes.set_ylim(0, 1)
    axes.set_ylabel("share of lists")
    axes.legend(frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))  # areas fill it
    figure.autofmt_xdate()
    section.plot(figure, "The bandit moves lists to the arms that earn more.")


def _percent(value: float) -> str:
    return f"{value:.2%}" if np.isfinite(value) else "not known"

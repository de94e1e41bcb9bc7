"""The report on the last period: an HTML page with plots, and the same figures as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from raysys.evaluation.ensemble_report import inside
from raysys.evaluation.figures import Evaluation
from raysys.evaluation.intervals import Interval, signed
from raysys.evaluation.judge import RECALL_AT
from raysys.report import COLOURS, Report, new_figure, plain_ticks
from raysys.storage import write_atomic

COLUMNS = {
    "ndcg@10": "NDCG@10",
    "mrr": "MRR",
    "map@10": "MAP@10",
    "recall@10": "recall@10",
    "recall@50": "recall@50",
    "hit_rate@10": "hit rate@10",
}
PROBABILITIES = {
    "auc": "AUC",
    "log_loss": "log loss",
    "brier": "Brier score",
    "calibration_error": "calibration error",
}
LISTS = {
    "coverage@10": "coverage",
    "distinct_categories@10": "categories",
    "category_entropy@10": "entropy (bits)",
    "personalisation@10": "personalisation",
    "novelty@10": "novelty (bits)",
}
KIND_COLOURS = dict(
    zip(("ensemble", "fallback", "learner", "baseline"), COLOURS[:3] + COLOURS[5:6], strict=True)
)


def write_report(evaluation: Evaluation, folder: Path) -> None:
    """Write `report.html` and `report.json` into `folder`."""
    content = json.dumps(evaluation.to_dict(), indent=1, allow_nan=False)
    write_atomic(folder / "report.json", content + "\n")
    best = evaluation.best_single
    page = Report(
        evaluation.title,
        f"Bundle {evaluation.bundle}, judged on a period that nothing was fitted or chosen on.",
    )
    ensemble = evaluation.verdicts["ensemble"].metrics["ndcg@10"]
    gap = evaluation.differences[best]
    between = f"95%: {signed(gap.low)} to {signed(gap.high)}" if gap.known else "no interval"
    page.section("In short").facts(
        [
            ("NDCG@10 of the ensemble", f"{ensemble.value:.4f}"),
            (f"ahead of {best} ({between})", signed(gap.value)),
            *[(name, value) for name, value in evaluation.period.items()],
        ]
    ).text(_verdict(best, gap))
    _ranking(page, evaluation)
    _difference(page, evaluation)
    _recall(page, evaluation)
    _probability(page, evaluation)
    _slices(page, evaluation)
    _lists(page, evaluation)
    inside(page, evaluation)
    _protocol(page, evaluation)
    page.write(folder / "report.html")


def _verdict(best: str, gap: Interval) -> str:
    if not gap.known:
        return f"This period cannot tell the ensemble from {best}: there is no interval."
    if gap.low > 0:
        return f"The ensemble ranks better than {best}, and chance does not explain it."
    if gap.high < 0:
        return f"The ensemble ranks worse than {best}: serve that learner alone, or train again."
    return f"This period cannot tell the ensemble from {best}: the interval holds zero."


def _ranking(page: Report, evaluation: Evaluation) -> None:
    section = page.section("Rankings")
    section.text(
        "Each cell is a mean over requests, ± half its 95% interval (both ends are in "
        "report.json). Higher is better. What was bought but not retrieved counts against "
        "everybody, so nobody can reach 1."
    )
    verdicts = list(evaluation.verdicts.values())
    section.table(
        ["scorer", *COLUMNS.values()],
        [[_name(v.name), *(_cell(v.metrics[m]) for m in COLUMNS)] for v in verdicts],
        strong=[i for i, v in enumerate(verdicts) if v.name == "ensemble"],
    )
    ordered = sorted(verdicts, key=lambda v: v.metrics["ndcg@10"].value)
    figure, axes = new_figure(9, 0.7 + 0.34 * len(ordered))
    _forest(
        axes,
        [v.name for v in ordered],
        [v.metrics["ndcg@10"] for v in ordered],
        [KIND_COLOURS[v.kind] for v in ordered],
    )
    axes.set_xlabel("NDCG@10")
    axes.set_xlim(left=0)
    _legend(axes, [(kind, KIND_COLOURS[kind]) for kind in KIND_COLOURS], loc="lower right")
    section.plot(figure, "NDCG@10 with 95% intervals.")


def _difference(page: Report, evaluation: Evaluation) -> None:
    section = page.section("Ensemble minus each other")
    section.text(
        "Both are judged on the same requests and the same draws, so these intervals are much "
        "narrower than those above. Right of zero: the ensemble is better."
    )
    ordered = sorted(evaluation.differences.items(), key=lambda pair: -pair[1].value)
    figure, axes = new_figure(9, 0.7 + 0.34 * len(ordered))
    _forest(
        axes,
        [name for name, _ in ordered],
        [gap for _, gap in ordered],
        [KIND_COLOURS[evaluation.verdicts[name].kind] for name, _ in ordered],
    )
    axes.axvline(0, color="#1d2733", linewidth=1)
    axes.set_xlabel("difference in NDCG@10")
    section.plot(figure, "Paired differences with 95% intervals.")
    section.table(
        ["against", "difference in NDCG@10", "low", "high"],
        [
            [name, signed(gap.value), signed(gap.low), signed(gap.high)]
            for name, gap in reversed(ordered)
        ],
    )


def _recall(page: Report, evaluation: Evaluation) -> None:
    section = page.section("Recall by depth")
    figure, axes = new_figure(9, 4.4)
    styles = {"ensemble": (2.4, "-"), "learner": (1.4, "-"), "baseline": (1.4, "--")}
    colour = iter(COLOURS[1:] * 3)
    for verdict in evaluation.verdicts.values():
        if verdict.kind not in styles:
            continue
        width, style = styles[verdict.kind]
        tint = COLOURS[0] if verdict.kind == "ensemble" else next(colour)
        label = verdict.name
        axes.plot(RECALL_AT, verdict.recall_curve, style, label=label, color=tint, linewidth=width)
    axes.axhline(evaluation.ceiling, color="#7a7a7a", linewidth=1, linestyle=":")
    axes.annotate(
        "retrieved at all", (1, evaluation.ceiling), va="bottom", fontsize=9, color="#5c6975"
    )
    axes.set_xscale("log")
    axes.set_xticks(RECALL_AT, [str(k) for k in RECALL_AT])
    axes.minorticks_off()
    axes.set_ylim(0, 1.08 * evaluation.ceiling or None)
    axes.set_xlabel("first k places")
    axes.set_ylabel("recall")
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(0.01, 0.92))
    section.plot(figure, "Share of all that was bought within the first k places.")


def _probability(page: Report, evaluation: Evaluation) -> None:
    section = page.section("Probabilities")
    section.text(
        "How likely each candidate is to be bought, over all candidates of all requests. Every "
        "scorer gets its probabilities the same way: scores made comparable within a request, "
        "then an isotonic or logistic curve fitted on out-of-fold scores, whichever lost less on "
        "rows it had not seen. AUC: higher is better; the other "
        "three: lower. Calibration error: mean distance between promise and outcome; its "
        "interval leans upwards, since an error cannot be negative."
    )
    verdicts = list(evaluation.verdicts.values())
    section.table(
        ["scorer", *PROBABILITIES.values()],
        [[_name(v.name), *(_cell(v.metrics[m]) for m in PROBABILITIES)] for v in verdicts],
        strong=[i for i, v in enumerate(verdicts) if v.name == "ensemble"],
    )
    figure, axes = new_figure(9, 4.0)
    shown = [v for v in verdicts if v.name in ("ensemble", evaluation.best_single, "popularity")]
    seen: list[float] = []
    for verdict, colour, mark in zip(shown, COLOURS, "os^", strict=False):
        curve = verdict.reliability
        kept = (curve.count > 0) & (curve.observed > 0)
        axes.plot(
            *(curve.promised[kept], curve.observed[kept]),
            marker=mark,
            markersize=4.5,
            linewidth=1,
            color=colour,
            label=verdict.name,
        )
        seen += [*curve.promised[kept], *curve.observed[kept]]
    if seen:
        ends = (min(seen) * 0.8, min(1.0, max(seen) * 1.2))
        axes.plot(ends, ends, color="#7a7a7a", linewidth=1, linestyle=":")
    axes.set_xscale("log")
    axes.set_yscale("log")
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    axes.set_xlabel("promised probability")
    axes.set_ylabel("share bought")
    axes.legend(frameon=False, fontsize=9)
    section.plot(
        figure, "Reliability: bins with as many candidates each; on the dotted line: as promised."
    )


def _slices(page: Report, evaluation: Evaluation) -> None:
    section = page.section("Slices")
    section.text(
        "Slices by orders keep whole requests. Slices by department and price keep the lists as "
        "they were served, and count only items of that kind as bought: how well is somebody "
        "served who came for just those. Compare scorers within a slice, not slices with each "
        "other."
    )
    baselines = [v for v in evaluation.verdicts.values() if v.kind == "baseline"]
    names = ["ensemble", evaluation.best_single]
    if baselines:
        names.append(max(baselines, key=lambda v: v.metrics["ndcg@10"].value).name)
    names = list(dict.fromkeys(names))
    groups = list(dict.fromkeys(group for group, _ in evaluation.slices))
    for group in groups:
        parts = [name for g, name in evaluation.slices if g == group]
        figure, axes = new_figure(9, 0.9 + 0.42 * len(parts))
        for place, scorer in enumerate(names):
            found = [evaluation.verdicts[scorer].slices[group, part] for part in reversed(parts)]
            shift = (place - (len(names) - 1) / 2) * -0.2
            _points(axes, np.arange(len(parts)) + shift, found, COLOURS[place], scorer)
        axes.set_yticks(range(len(parts)), list(reversed(parts)))
        axes.set_xlim(left=0)
        axes.set_xlabel("NDCG@10")
        axes.legend(frameon=False, fontsize=9)
        section.plot(figure, f"By {group}.")
        section.table(
            [group, "requests", *names, f"ensemble minus {evaluation.best_single}"],
            [
                [
                    _name(part),
                    evaluation.slices[group, part],
                    *(_cell(evaluation.verdicts[n].slices[group, part]) for n in names),
                    _gap(evaluation, group, part),
                ]
                for part in parts
            ],
        )


def _gap(evaluation: Evaluation, group: str, part: str) -> str:
    mine = evaluation.verdicts["ensemble"].slices[group, part].value
    theirs = evaluation.verdicts[evaluation.best_single].slices[group, part].value
    return f"{mine - theirs:+.4f}"


def _lists(page: Report, evaluation: Evaluation) -> None:
    section = page.section("What the first ten places hold")
    section.text(
        "Coverage: share of the catalogue that anybody is shown. Categories: how many different "
        "ones stand on ten places, and their entropy. Personalisation: how much two "
        "users' lists differ on average (0: all the same, 1: nothing in common). Novelty: "
        "surprise of the items shown, by how rarely they are bought. None of them is better "
        "when higher as such: they say what kind of lists these are."
    )
    verdicts = list(evaluation.verdicts.values())
    section.table(
        ["scorer", *LISTS.values()],
        [
            [
                _name(v.name),
                *(_cell(v.metrics[m], 4 if m.startswith("coverage") else 2) for m in LISTS),
            ]
            for v in verdicts
        ],
        strong=[i for i, v in enumerate(verdicts) if v.name == "ensemble"],
    )


def _protocol(page: Report, evaluation: Evaluation) -> None:
    drawn = "users with all their requests" if evaluation.cluster == "user" else "requests"
    section = page.section("How this was measured")
    for text in (
        "Time split. Folds are blocks of time. The learners judged here were fitted on the train "
        "folds; the ensemble's weights and probabilities on scores of later folds than those each "
        "model was fitted on; this period is later than all of that. No choice was made on it.",
        "As served. Every scorer ranks the candidates that retrieval returned, no others. Items "
        "that were bought but not retrieved stay in the denominators of NDCG, recall and MAP, and "
        f"cost everybody the same: retrieval returned {evaluation.ceiling:.1%} of what a "
        "request bought, on average.",
        "Ties. Equal scores are ordered by item number, which knows nothing of the outcome.",
        f"Intervals. 95% percentile bootstrap with {evaluation.resamples:,} draws of {drawn}; "
        "all scorers share the draws. It covers the chance of who came, not the chance in "
        "fitting the models.",
        "Fallbacks. What would have been served without the transformer, without anything but "
        "trees, or with baselines only.",
    ):
        section.text(text)


def _forest(
    axes: Any, names: Sequence[str], found: Sequence[Interval], colours: Sequence[str]
) -> None:
    """One horizontal interval a row, from the bottom up."""
    for place, (interval, colour) in enumerate(zip(found, colours, strict=True)):
        axes.plot([interval.low, interval.high], [place, place], color=colour, linewidth=2)
        axes.plot(interval.value, place, "o", color=colour, markersize=6)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)


def _points(
    axes: Any,
    heights: npt.NDArray[np.floating],
    found: Sequence[Interval],
    colour: str,
    label: str,
) -> None:
    for height, interval in zip(heights, found, strict=True):
        axes.plot([interval.low, interval.high], [height, height], color=colour, linewidth=1.6)
    values = [interval.value for interval in found]
    axes.plot(values, heights, "o", color=colour, markersize=5, label=label)


def _legend(axes: Any, entries: Sequence[tuple[str, str]], loc: str) -> None:
    for label, colour in entries:
        axes.plot([], [], "o-", color=colour, label=label)
    axes.legend(fontsize=9, loc=loc, framealpha=0.85, edgecolor="none")


def _cell(interval: Interval, digits: int = 4) -> str:
    """`0.2358 ±0.0106`, or the value alone where there is no interval."""
    if np.isnan(interval.value):
        return "–"
    text = f"{interval.value:.{digits}f}"
    if not interval.known:
        return text
    return f"{text} ±{(interval.high - interval.low) / 2:.{digits}f}"


def _name(name: str) -> Markup:
    """A name that does not break over lines, however many columns follow."""
    return Markup('<span style="white-space: nowrap">{}</span>').format(name)

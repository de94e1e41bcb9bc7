"""The report's pages on the ensemble: weights, lost members, diversity, what quality costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from raysys.evaluation.figures import Evaluation
from raysys.evaluation.intervals import Interval, signed
from raysys.report import COLOURS, Report, Section, new_figure, plain_ticks

INK = "#1d2733"


def inside(page: Report, evaluation: Evaluation) -> None:
    """Sections on the ensemble, as far as there is something to say."""
    _weights(page, evaluation)
    _losses(page, evaluation)
    _diversity(page, evaluation)
    _cost(page, evaluation)


def _weights(page: Report, evaluation: Evaluation) -> None:
    section = page.section("Inside the ensemble")
    section.text(
        "Weights of the members in every fallback, fitted on out-of-fold scores by the method "
        "that did best there on blocks it was not fitted on. Where trees join the members, a "
        "member's share is that of the splits on its scores. Members that say nearly the same "
        "share their weight in ways that mean little: see how alike they are below."
    )
    for name, reason in evaluation.dropped.items():
        section.note(f"{name} has no say: {reason}.")
    combinations = evaluation.combinations
    figure, axes = new_figure(9, 0.9 + 0.45 * len(combinations))
    names = list(combinations)
    left = np.zeros(len(names))
    for place, member in enumerate(evaluation.learners):
        share = np.array([combinations[name].share.get(member, 0.0) for name in names])
        axes.barh(
            names, share, left=left, color=COLOURS[place % len(COLOURS)], label=member, height=0.6
        )
        left += share
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the weight")
    axes.grid(axis="y", visible=False)
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="lower center", bbox_to_anchor=(0.45, 1.0))
    section.plot(figure, "Weights by fallback.")
    section.table(
        ["fallback", "method", "calibration", "NDCG@10 held out of the last fold", "members"],
        [
            [
                name,
                c.method.replace("_", " "),
                c.served_calibration.to_dict()["kind"],
                c.figures.get("held_out_ndcg", float("nan")),
                ", ".join(m for m in c.members if m in c.needed),
            ]
            for name, c in combinations.items()
        ],
    )


def _losses(page: Report, evaluation: Evaluation) -> None:
    if not evaluation.losses:
        return
    section = page.section("When a member is lost")
    section.text(
        "What would have been served had a learner failed or missed the deadline in every "
        "request: the fallback that answers then, its own NDCG@10 and what the loss costs "
        "against the whole ensemble, both with 95% intervals, paired."
    )
    section.table(
        ["left", "answers", "NDCG@10", "minus the ensemble", "low", "high"],
        [
            [
                loss.what,
                loss.fallback.replace("_", " "),
                _spread(loss.ndcg),
                *map(signed, (loss.gap.value, loss.gap.low, loss.gap.high)),
            ]
            for loss in evaluation.losses
        ],
    )


def _diversity(page: Report, evaluation: Evaluation) -> None:
    if len(evaluation.learners) < 2:
        return
    section = page.section("How alike the members are")
    section.text(
        "Members that rank alike bring each other little; so do those that miss the same. "
        "Rank correlation: Spearman's, within each request, the mean over requests. Error "
        "overlap: of the relevant candidates that one of two members leaves below the tenth "
        "place, the share that both do."
    )
    for values, low, caption in (
        (evaluation.correlation, -1.0, "Rank correlation within requests."),
        (evaluation.overlap, 0.0, "Overlap of errors."),
    ):
        _matrix(section, evaluation.learners, values, low, caption)


def _matrix(
    section: Section, names: Any, values: npt.NDArray[np.float64], low: float, caption: str
) -> None:
    figure, axes = new_figure(9, 1.2 + 0.5 * len(names))
    image = axes.imshow(values, cmap="RdBu_r" if low < 0 else "Blues", vmin=low, vmax=1)
    axes.grid(visible=False)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    for (i, j), value in np.ndenumerate(values):
        if not np.isnan(value):
            ink = "#ffffff" if abs(value) > 0.6 else INK
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=9, color=ink)
    figure.colorbar(image, ax=axes, shrink=0.85)
    section.plot(figure, caption)


def _cost(page: Report, evaluation: Evaluation) -> None:
    found = evaluation.subsets
    if not found:
        return
    section = page.section("Quality against cost")
    section.text(
        "Every subset of members that is reached by dropping, one after the other, whoever is "
        "missed least, or by adding whoever helps most. Quality: NDCG of a linear stack on "
        "blocks of the last out-of-fold fold that it was not fitted on. Cost: median "
        "milliseconds of the members for a request of 100 candidates on one thread, measured "
        "while training. On the front no other subset ranks better in no more time. "
        "`ensemble: {keep: {ndcg_per_ms: …}}` drops members that add too little for their time."
    )
    section.table(
        ["learner", "ms for 100 candidates"],
        [[name, round(value, 3)] for name, value in evaluation.milliseconds.items()],
    )
    figure, axes = new_figure(9, 4.2)
    best = [each for each in found if each.best]
    rest = [each for each in found if not each.best]
    axes.plot(
        [s.milliseconds for s in rest], [s.ndcg for s in rest], "o", color="#9aa5b1", markersize=5,
        label="other subsets",
    )  # fmt: skip
    axes.step(
        [s.milliseconds for s in best], [s.ndcg for s in best], "o-", where="post",
        color=COLOURS[0], markersize=6, label="Pareto front",
    )  # fmt: skip
    if min(s.milliseconds for s in found) > 0:
        axes.set_xscale("log")
        plain_ticks(axes.xaxis)
    axes.set_xlabel("milliseconds for 100 candidates")
    axes.set_ylabel("NDCG, held out")
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    section.plot(figure, "Quality against cost of subsets.")
    cheapest = {round(each.ndcg, 6): each for each in reversed(found)}
    told = sorted(cheapest.values(), key=lambda each: each.milliseconds)
    section.text(
        "Of subsets that rank alike, members without any weight among them, the table names the "
        "cheapest."
    )
    section.table(
        ["members", "ms", "NDCG, held out", "on the front"],
        [
            [
                ", ".join(each.members),
                f"{each.milliseconds:.3f}",
                f"{each.ndcg:.4f}",
                "yes" if each.best else "",
            ]
            for each in told
        ],
        strong=[place for place, each in enumerate(told) if each.best],
    )


def _spread(interval: Interval) -> str:
    """`0.2358 [0.2281, 0.2436]`, or the value alone where there is no interval."""
    if not interval.known:
        return f"{interval.value:.4f}"
    return f"{interval.value:.4f} [{interval.low:.4f}, {interval.high:.4f}]"

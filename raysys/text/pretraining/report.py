"""The page on a pre-training: what was read, how each objective went, what it came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raysys.report import COLOURS, Report, Section, new_figure

TITLES: Mapping[str, str] = {
    "masked": "Masked language modelling",
    "causal": "Causal language modelling",
    "pairs": "Next-sentence prediction",
    "contrastive": "Contrastive pre-training",
}
FIGURES: Mapping[str, str] = {
    "perplexity": "perplexity of a guessed token",
    "character_perplexity": "perplexity of a character",
    "accuracy": "pairs told right",
    "hard_accuracy": "pairs told right, negatives of the same category",
    "recall_at_10": "recall among the first 10",
    "recall_at_10_titles": "recall among the first 10: titles and descriptions",
    "recall_at_10_queries": "recall among the first 10: queries and items",
    "recall_at_10_items": "recall among the first 10: items and next items",
    "mrr": "mean reciprocal rank",
    "loss": "loss, nats",
}
"""Figures of objectives as the report and the terminal call them."""
NEW_HEAD = "the model came without a head for it, and one drawn anew knows nothing"
"""Why there is no figure before."""


@dataclass(frozen=True)
class Outcome:
    """What one objective came to.

    Attributes:
        kind: of the objective.
        criterion: the figure that decided what was kept.
        before, after: figures on held-out data, before the first step and of the weights kept.
            Where `new_head`, those before are of chance rather than of the model.
        counts: texts, tokens or pairs that it had.
        steps: of the optimiser.
        seconds: of training, evaluations included.
        examples_per_s, tokens_per_s: trained on.
        history: one entry an evaluation, see `training.Fitted`.
        new_head: the model had no head for the objective, and began with one drawn anew.
    """

    kind: str
    criterion: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    counts: Mapping[str, int]
    steps: int
    seconds: float
    examples_per_s: float
    tokens_per_s: float
    history: Sequence[Mapping[str, float]] = field(default_factory=list)
    new_head: bool = False

    @property
    def known_before(self) -> Mapping[str, float]:
        """Figures of the model before the first step; none where its head was drawn."""
        return {} if self.new_head else self.before


def write_report(
    path: Path, model: str, corpus: Mapping[str, int] | None, outcomes: Sequence[Outcome]
) -> None:
    """Write the page.

    Args:
        path: of the HTML file.
        model: what all began with.
        corpus: counts of its texts; None: no objective read any.
        outcomes: of the objectives, in order.
    """
    page = Report(
        "Pre-training",
        f"{model}, taught the shop's language by {len(outcomes)} objective(s), each from where the "
        "one before ended. All figures are of data that nothing was trained on.",
    )
    summary = page.section("Before and after")
    rows = [
        (TITLES[each.kind], FIGURES[name], each.known_before.get(name, "–"), each.after.get(name))
        for each in outcomes
        for name in FIGURES
        if name in each.after
    ]
    summary.table(("objective", "figure", "before", "after"), rows)
    summary.note(
        "Perplexity is e to the mean surprise at a token: of so many equally likely ones it is "
        "like having to pick. Only perplexities of characters can be compared "
        "between tokenizers, and no perplexity of masks with one of causal modelling."
    )
    for each in outcomes:
        if each.new_head:
            summary.note(f"{TITLES[each.kind]} has no figure before: {NEW_HEAD}.")
    if corpus is not None:
        texts = page.section("Texts")
        texts.table(("", "texts"), [(name.replace("_", " "), n) for name, n in corpus.items()])
    for each in outcomes:
        _objective(page.section(TITLES[each.kind]), each)
    page.write(path)


def _objective(section: Section, outcome: Outcome) -> None:
    section.facts(
        [
            ("steps", f"{outcome.steps:,}"),
            ("seconds", f"{outcome.seconds:,.0f}"),
            ("examples/s", f"{outcome.examples_per_s:,.1f}"),
            ("tokens/s", f"{outcome.tokens_per_s:,.0f}"),
            *((name.replace("_", " "), f"{count:,}") for name, count in outcome.counts.items()),
        ]
    )
    points = [entry for entry in outcome.history if outcome.criterion in entry]
    if not points:
        return
    figure, axes = new_figure()
    steps = [entry["step"] for entry in points]
    axes.plot(
        *(steps, [entry["training_loss"] for entry in points]),
        marker="o", markersize=3, label="loss in training",
    )  # fmt: skip
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats")
    beside: Any = axes
    if outcome.criterion != "loss":
        beside = axes.twinx()
        beside.grid(visible=False)
        beside.set_ylabel(FIGURES[outcome.criterion])
        beside.spines["right"].set_visible(True)
    before = outcome.known_before
    first = [(0, before[outcome.criterion])] if outcome.criterion in before else []
    judged = [*first, *((entry["step"], entry[outcome.criterion]) for entry in points)]
    beside.plot(
        [step for step, _ in judged], [value for _, value in judged],
        marker="o", markersize=3, color=COLOURS[1], label=f"held out: {FIGURES[outcome.criterion]}",
    )  # fmt: skip
    lines = [*axes.get_lines(), *(beside.get_lines() if beside is not axes else [])]
    axes.legend(lines, [line.get_label() for line in lines], frameon=False)
    section.plot(figure, "The loss in training is the mean since the evaluation before.")
